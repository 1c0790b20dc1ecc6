"""What fits into the quickstart's time: some steps and batches are timed, and the rest follows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainerCallback

from ..metrics import compute_accuracy
from ..training import ElasticTrainer, ElasticTrainingArguments

TIMED_STEPS = 6  # the first two are not counted
TIMED_SHARE = 0.1  # of the budget, at most
# What measuring latency, export, the second process and the table take, as seen on 2 cores: as long as so many steps and seconds.
AFTERWARDS_STEPS, AFTERWARDS_SECONDS = 100, 25
TRAIN_SHARE = 0.7  # of what is left for training and evaluation
FEWEST_ROWS, FEWEST_SIZES, FEWEST_STEPS = 600, 6, 1
FEW = 0.25  # of the steps that are wanted
BATCH, TIMED_ROWS = 32, 96


class StepClock(TrainerCallback):
    """Notes when training began and each step ended, and stops it after a point in time (`time.perf_counter`, seconds)."""

    def __init__(self, until: float):
        self.until = until
        self.times: list[float] = []

    @property
    def steps(self) -> int:
        """Steps done."""
        return len(self.times) - 1

    def on_train_begin(self, args, state, control, **kwargs):
        """Called by the trainer."""
        self.times.append(time.perf_counter())

    def on_step_end(self, args, state, control, **kwargs):
        """Called by the trainer."""
        self.times.append(time.perf_counter())
        if self.times[-1] > self.until:
            control.should_training_stop = True
        return control


@dataclass(frozen=True)
class Plan:
    """What is done in the time that there is.

    Attributes:
        steps: of training.
        sizes: that the search evaluates at most.
        rows: by name of a split, how many are evaluated.
        train_until: when training ends at the latest (`time.perf_counter`, seconds).
        words: what was timed, what was chosen and what was cut.
    """

    steps: int
    sizes: int
    rows: dict[str, int]
    train_until: float
    words: str


def make_plan(model, data, args, folder: Path, started: float) -> Plan:
    """Time some steps and batches, and fit the rest into what is left of `args.budget_seconds` since `started`."""
    step = time_step(model, data, args, folder)
    row = time_row(model, data)
    subnets = list(model.space.enumerate())
    flops = model.flops_of(subnets, batch_size=1, sequence_length=args.max_length)
    shares = (flops / flops.max()).tolist()
    now = time.perf_counter()
    return fit(args, step, row, shares, {name: len(rows) for name, rows in data.splits.items()}, started, now)


def fit(args, step: float, row: float, shares: list[float], rows: dict[str, int], started: float, now: float) -> Plan:
    """The plan.

    Args:
        args: `QuickstartArguments`.
        step: seconds of a training step.
        row: seconds in which the full size evaluates a row.
        shares: work of every size, as a share of the full one's.
        rows: rows by name of a split.
        started: when the budget began.
        now: when training can begin.
    """
    left = max(0.0, started + args.budget_seconds - now - AFTERWARDS_SECONDS - AFTERWARDS_STEPS * step)
    wanted = max(1, int(rows["train"] / args.train_batch_size * args.epochs))
    steps = min(wanted, max(FEWEST_STEPS, int(TRAIN_SHARE * left / step)))
    evaluation = left - steps * step
    sizes = min(args.n_trials, len(shares))
    # The table at the end runs five models, about as much work as two full ones, over the test split.
    per_row = row * (sum(sorted(shares)[-sizes:]) + 2)
    held_out = {name: count for name, count in rows.items() if name != "train"}
    most = min(held_out.values())
    fitting = int(evaluation / per_row)
    if fitting < FEWEST_ROWS:
        sizes = min(sizes, max(FEWEST_SIZES, int(sizes * fitting / FEWEST_ROWS)))
        fitting = FEWEST_ROWS
    evaluated = {name: min(fitting, count) for name, count in held_out.items()}
    words = [
        f"timed here: {step:.2f} s a training step, {1e3 * row:.1f} ms to evaluate a row at full size",
        f"in {args.budget_seconds:g} s fit: {steps:,} steps of {args.train_batch_size} examples, "
        f"{min(evaluated.values()):,} rows a split, {sizes} sizes",
    ]
    cut = [f"steps, {wanted:,} wanted"] * (steps < wanted) + [f"rows, {most:,} there"] * (min(evaluated.values()) < most)
    cut += [f"sizes, {len(shares)} there"] * (sizes < len(shares))
    words.append(f"cut: {'; '.join(cut) or 'nothing'}")
    if steps < FEW * wanted:
        words.append("so few steps teach little: take a machine that is less busy, or a larger --budget_seconds")
    return Plan(steps, sizes, evaluated, now + max(steps * step, TRAIN_SHARE * left) * 1.1, "\n".join(words))


def time_step(model, data, args, folder: Path) -> float:
    """Seconds of a training step; the weights stay as they are, since the learning rate is 0."""
    clock = StepClock(until=time.perf_counter() + TIMED_SHARE * args.budget_seconds)
    make_trainer(model, data, args, folder, TIMED_STEPS, clock, learning_rate=0.0, logging_strategy="no").train()
    times = clock.times[2:] if clock.steps > 2 else clock.times
    return (times[-1] - times[0]) / (len(times) - 1)


@torch.inference_mode()
def time_row(model, data) -> float:
    """Seconds in which the full size evaluates a row, in batches like those of the search."""
    rows = data.splits["validation"].select(range(min(TIMED_ROWS, len(data.splits["validation"]))))
    batches = [data.collator([rows[i] for i in range(at, min(at + BATCH, len(rows)))]) for at in range(0, len(rows), BATCH)]
    view = model.eval().cpu().view(None)
    view(**batches[0])
    start = time.perf_counter()
    for batch in batches:
        view(**batch)
    return (time.perf_counter() - start) / len(rows)


def make_trainer(model, data, args, folder: Path, steps: int, clock: StepClock, **options):
    """The trainer of all sizes for a number of steps."""
    settings = {
        "output_dir": str(folder / "training"),
        "max_steps": steps,
        "per_device_train_batch_size": args.train_batch_size,
        "per_device_eval_batch_size": 64,
        "learning_rate": args.learning_rate,
        "warmup_steps": max(1, steps // 10),
        "bf16": "auto",
        "use_cpu": not torch.cuda.is_available(),
        "num_random_subnets": 1,
        "task_weight": 1.0,
        "save_strategy": "no",
        "logging_steps": max(1, steps // 5),
        "disable_tqdm": False,
        "report_to": ["none"],
        "seed": args.seed,
        **options,
    }
    return ElasticTrainer(
        model=model,
        args=ElasticTrainingArguments(**settings),
        train_dataset=data.splits["train"],
        eval_dataset=data.splits["validation"],
        data_collator=data.collator,
        compute_metrics=compute_accuracy,
        callbacks=[clock],
    )

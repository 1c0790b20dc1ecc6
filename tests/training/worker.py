"""What every process of a distributed test runs: `python worker.py cases.json`; each case leaves its results in a folder.

The tests import it too, to train the same cases in one process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from accelerate import DistributedType, PartialState
from datasets import Dataset
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import VOCAB, config_of, randomize

from hf_elastic import ElasticForCausalLM, ElasticForMaskedLM, ElasticForSequenceClassification, ElasticTrainer
from hf_elastic.metrics import compute_accuracy
from hf_elastic.training import ElasticTrainingArguments, checkpoints
from hf_elastic.training.lora import add_lora

SPACE = {"num_hidden_layers": [1, 2, 4], "num_attention_heads": [2, 4], "intermediate_size": [16, 48]}
SUBNETS = {"half": {"num_hidden_layers": 2, "intermediate_size": 16}}
DROPOUT = {
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "elm": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
}
BLOCKS = ["bert", "mobilebert"]
HEADS = {
    "classifier": ("bert", ElasticForSequenceClassification),
    "masked": ("bert", ElasticForMaskedLM),
    "causal": ("gpt2", ElasticForCausalLM),
    "blocks": ("elm", ElasticForMaskedLM),
}


def make_model(kind: str, dropout: float = 0.0, **changes):
    name, elastic = HEADS[kind]
    supernet = {"block_type": [BLOCKS]} if kind == "blocks" else {}
    config = config_of(name, num_labels=3, **dict.fromkeys(DROPOUT[name], dropout), **supernet)
    base = randomize(elastic.stock_class(config)(config))
    space = {**SPACE, "block_type": BLOCKS, "per_layer": ["block_type"]} if supernet else SPACE
    return elastic.from_base(base, **{"space": space, "subnets": SUBNETS, **changes})


def make_rows(kind: str, count: int = 64, length: int = 8) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCAB, (count, length), generator=generator)
    rows = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    if kind == "classifier":
        rows["labels"] = (ids.sum(1) % 3).tolist()
    else:  # rows with few labels and rows with many, so that processes do not count the same number
        rows["labels"] = [[-100] * (index * 3 % length) + row[index * 3 % length :] for index, row in enumerate(ids.tolist())]
    return Dataset.from_dict(rows)


def make_arguments(folder: Path, changes: dict, *, plain_cpu: bool = False) -> ElasticTrainingArguments:
    """Plain descent: Adam turns the rounding noise of gradients that should be zero (key biases) into whole steps."""
    options = {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 20,
        "learning_rate": 0.05,
        "optim": "sgd",
        "logging_steps": 5,
        "use_cpu": True,
        "report_to": ["none"],
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 3,
        "num_random_subnets": 1,
    }
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        del os.environ[name]  # what arguments made before have left: sharding, and with transformers 4.57 bf16
    args = ElasticTrainingArguments(**{**options, **changes})
    if args.fsdp and not plain_cpu:
        # accelerate shards on accelerators only, though FSDP itself runs on CPUs.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return args


# What FSDP reduces gradients with; torch 2.13 has renamed it.
SCATTER = "reduce_scatter_single" if "reduce_scatter_single" in vars(dist) else "reduce_scatter_tensor"


class Recorder(ElasticTrainer):
    """Keeps which sizes each step drew and how many gradient elements the processes reduced for it."""

    counted = 0

    def training_step(self, model, inputs, num_items_in_batch=None):
        if isinstance(model, torch.nn.parallel.DistributedDataParallel) and not self.drawn:
            model.register_comm_hook(None, self.count_reduced)
        with mock.patch.object(dist, SCATTER, partial(self.count_scattered, getattr(dist, SCATTER))):
            loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self.reduced.append(self.counted)
            self.counted = 0
        return loss

    def count_reduced(self, _, bucket):
        self.counted += bucket.buffer().numel()
        future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
        return future.then(lambda done: done.value()[0] / dist.get_world_size())

    def count_scattered(self, scatter, *args, **kwargs):
        self.counted += 1  # FSDP pads the gradients, so rounds are counted
        return scatter(*args, **kwargs)

    def _sizes(self, elastic):
        sizes = super()._sizes(elastic)
        self.drawn.append([[size.role, elastic.layout.subnet_of(size.cut).to_dict()] for size in sizes])
        return sizes


class Killer(TrainerCallback):
    """Dies as if the machine had, after some steps or in the middle of writing a checkpoint."""

    def __init__(self, step: int, where: str):
        self.step, self.where = step, where

    def on_step_end(self, args, state, control, **kwargs):
        if self.where == "step" and state.global_step == self.step:
            self.die()

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)


def note_gathered(growth, gathered: list) -> None:
    """Note what this process has measured of each network, each time before the processes add it up."""
    gather = growth.gather

    def note_and_gather(device):
        gathered.append([[network.own_components, network.own_count] for network in growth.networks])
        gather(device)

    growth.gather = note_and_gather


def train_case(case: dict, folder: Path) -> ElasticTrainer:
    """Train a case, evaluate it if asked, and save what the test compares."""
    torch.manual_seed(0)
    kind = case.get("kind", "classifier")
    model = make_model(kind, case.get("dropout", 0.0), **case.get("model", {}))
    teacher = None
    if "lora" in case:
        model = add_lora(model, case["lora"])
    if case.get("teacher"):
        stock, elastic = HEADS[kind]
        changes = case["teacher"] if isinstance(case["teacher"], dict) else {"num_hidden_layers": 3}
        config = config_of(changes.pop("model_type", stock), num_labels=3, **changes)
        teacher = randomize(elastic.stock_class(config)(config), seed=7)
    rows = make_rows(kind)
    if case.get("poison"):  # one row, and so a batch of one process, has a loss that is not finite
        ids = [[min(token, VOCAB - 2) for token in row] for row in rows["input_ids"][:]]
        ids[40][0] = VOCAB - 1
        rows = rows.remove_columns("input_ids").add_column("input_ids", ids)
        with torch.no_grad():
            model.get_input_embeddings().weight[VOCAB - 1] = float("nan")
    if case.get("all_labelled"):  # micro-batches count alike: terms over all tokens are weighted as those over labels
        rows = rows.remove_columns("labels").add_column("labels", rows["input_ids"][:])
    if case.get("unlabelled"):  # half of the batches count nothing
        labels = [row if index % 8 < 4 else [-100] * len(row) for index, row in enumerate(rows["labels"][:])]
        rows = rows.remove_columns("labels").add_column("labels", labels)
    trainer_class = type("Recorded", (Recorder,), {"reduced": [], "drawn": [], "gathered": []})
    trainer = trainer_class(
        model=model,
        args=make_arguments(folder, case.get("args", {}), plain_cpu="plain_cpu" in case),
        teacher=teacher,
        train_dataset=rows,
        eval_dataset=rows.select(range(32)) if kind == "classifier" else None,
        compute_metrics=compute_accuracy if kind == "classifier" else None,
    )
    if trainer.sampler.growth is not None:
        note_gathered(trainer.sampler.growth, trainer.gathered)
    if "kill" in case:
        killer = Killer(**case["kill"])
        trainer.add_callback(killer)
        if killer.where == "save":
            save = trainer._save_rng_state

            def save_and_die(output_dir):
                if trainer.state.global_step == killer.step and trainer.args.process_index == trainer.args.world_size - 1:
                    killer.die()
                save(output_dir)

            trainer._save_rng_state = save_and_die
        if killer.where == "mark":  # all is written and nobody knows
            mark = checkpoints.mark_complete

            def mark_or_die(folder, sampler):
                if trainer.state.global_step == killer.step:
                    killer.die()
                mark(folder, sampler)

            checkpoints.mark_complete = mark_or_die
    trainer.train(resume_from_checkpoint=case.get("resume"))
    return trainer


def run_case(case: dict, folder: Path) -> None:
    """Leave `rank{N}.json`, and `weights.pt` of the first process."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.time()
    record: dict = {}
    try:
        trainer = train_case(case, folder)
        record = {"drawn": trainer.drawn, "reduced": trainer.reduced, "log": trainer.state.log_history}
        if trainer.sampler.growth is not None:
            record |= {"gathered": trainer.gathered, "grown": trainer.elastic.config.grown}
        if case.get("evaluate"):
            record["metrics"] = trainer.evaluate()
        if case.get("save"):
            trainer.save_model(str(folder / "saved"))
        weights = trainer.accelerator.get_state_dict(trainer.model)
        weights |= {f"projectors.{name}": weight for name, weight in trainer.projectors.state_dict().items()}
        if trainer.is_world_process_zero():
            torch.save(weights, folder / "weights.pt")
    except (ValueError, FloatingPointError) as error:
        record["error"] = f"{type(error).__name__}: {error}"
    record["seconds"] = time.time() - start
    (folder / f"rank{os.environ.get('RANK', 0)}.json").write_text(json.dumps(record, default=str))


def main() -> None:
    torch.set_num_threads(1)
    for name, case in json.loads(Path(sys.argv[1]).read_text()).items():
        run_case(case, Path(sys.argv[1]).parent / name)
    with contextlib.suppress(ValueError, AssertionError):
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

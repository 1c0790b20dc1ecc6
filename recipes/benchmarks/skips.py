"""Skipped attention and feed-forwards beside fewer layers and narrower ones of equal latency, after a short healing.

    python recipes/benchmarks/skips.py run --data-dir DATA_DIR
    python recipes/benchmarks/skips.py table --output recipes/benchmarks/results/skips    prints what is recorded

DATA_DIR has glue/sst2 and wikitext2. Three models: MiniLM fine-tuned on SST-2 for a moment (accuracy), and a small Llama and a
small GPT-2 trained from new weights on WikiText-2 (loss, nats per token). For each share of the full latency and each kind of cut
the best size that keeps to it: of skips the one with the least `output_change`, of depth the deepest (the layers of the highest
influence), of widths the widest (heads and feed-forward by the same share, ranked by activation). All latencies are measured in
one run, in torch. Each size is then cut out and trained alone, with the full model as its teacher. A seed draws the rows of the
healing. Every case writes a record of its sizes and every healing one, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from importance import cell
from importance_models import LENGTH, MAX_LENGTH, case_of
from rich.console import Console
from rich.table import Table

from hf_elastic.core.modeling_elastic import ElasticPreTrainedModel
from hf_elastic.core.spec import SKIP
from hf_elastic.data.calibration import calibration_batches
from hf_elastic.measure.removals import measure_removals
from hf_elastic.measure.workload import Workload
from hf_elastic.utils.files import write_atomically

CASES = {
    "classifier-SST-2": {"learning_rate": 1e-4},
    "decoder-WikiText-2": {"learning_rate": 1e-3},
    "gpt2-WikiText-2": {"learning_rate": 1e-3},
}
SHARES = (0.85, 0.7, 0.55, 0.4)  # of the latency of the full model
CALIBRATION = 128  # texts that rank and that removals are measured on
AXES = ("attention", "mlp")


def supernet(case):
    """The case's model with every kind of cut."""
    config = case.stock.config
    shared = getattr(config, "num_key_value_heads", 1)
    ffn = getattr(config, "intermediate_size", None) or config.n_inner
    space = {
        "num_hidden_layers": list(range(1, config.num_hidden_layers + 1)),
        "num_attention_heads": list(range(shared, config.num_attention_heads + 1, shared)),
        "intermediate_size": [ffn // config.num_attention_heads, ffn],
        **{axis: ["full", SKIP] for axis in AXES},
        "per_layer": list(AXES),
    }
    texts = calibration_batches(case.tokenizer, case.texts(CALIBRATION, 0), max_length=case.max_length)
    return case.elastic_class.from_base(case.stock, space, calibration=texts), texts


def candidates(model, texts: list) -> dict[str, list[dict]]:
    """For each kind of cut its sizes, the best first."""
    layers, heads, ffn = model.layout.num_layers, model.space["num_attention_heads"], model.layout.value("intermediate_size")
    removals = measure_removals(model, texts)
    ranked = {axis: np.argsort(removals.changes[axis], kind="stable").tolist() for axis in AXES}
    skips = []
    # With so many of each to skip, those that change least: no other size of this latency has a smaller sum.
    for counts in itertools.product(range(layers), repeat=2):
        gone = {axis: ranked[axis][:count] for axis, count in zip(AXES, counts)}
        skips.append({axis: [SKIP if layer in gone[axis] else "full" for layer in range(layers)] for axis in AXES})
    skips.sort(key=lambda size: removals.of(model, size))
    widths = [{"num_attention_heads": count, "intermediate_size": ffn * count // heads[-1]} for count in heads[-2::-1]]
    return {
        "depth": [{"num_hidden_layers": depth} for depth in range(layers - 1, 0, -1)],
        "width": widths,
        "skips": skips[1:],
    }


def choose(model, kinds: dict[str, list[dict]], workload: Workload) -> list[dict]:
    """For each share of the latency and each kind the first size within it, with what it takes."""
    sizes = {kind: [model.subnet(size) for size in found] for kind, found in kinds.items()}
    everything = list(dict.fromkeys([model.subnet(None), *itertools.chain(*sizes.values())]))
    found = workload.measure(model, everything, repeats=30)
    full = found[everything[0]].median_ms
    chosen = []
    for share, (kind, ordered) in itertools.product(SHARES, sizes.items()):
        size = next((one for one in ordered if found[one].median_ms <= share * full), None)
        if size is not None:
            facts = {"latency_ms": found[size].median_ms, "parameters": model.num_parameters_of(size)}
            chosen.append({"share": share, "kind": kind, "size": size.to_dict(), **facts})
    return [
        {"share": 1.0, "kind": "full", "size": None, "latency_ms": full, "parameters": model.num_parameters_of(None)},
        *chosen,
    ]


def heal(case, model, size: dict, steps: int, seed: int, options: dict) -> torch.nn.Module:
    """A size cut out and trained alone, with the full model as its teacher."""
    from hf_elastic import ElasticTrainer, ElasticTrainingArguments

    extracted = model.extract(size)
    student = extracted if isinstance(extracted, ElasticPreTrainedModel) else type(model).from_base(extracted, importance="none")
    rows = [
        {key: value[index] for key, value in batch.items()}
        for batch in case.labelled(16 * steps, seed + 1)
        for index in range(len(batch["labels"]))
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = ElasticTrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=16, warmup_steps=steps // 10, seed=seed,
            save_strategy="no", report_to=[], disable_tqdm=True, logging_steps=steps, eval_subnets=[], **options,
        )  # fmt: skip
        collate = _padded(case.tokenizer) if case.kind == "classifier" else None
        ElasticTrainer(model=student, args=arguments, teacher=model.base, train_dataset=rows, data_collator=collate).train()
    return student.base.eval()


def _padded(tokenizer):
    from transformers import DataCollatorWithPadding

    collate = DataCollatorWithPadding(tokenizer)

    def without_padding(rows: list[dict]) -> dict:
        kept = [
            {**{k: v[row["attention_mask"].bool()] for k, v in row.items() if k != "labels"}, "labels": row["labels"]}
            for row in rows
        ]
        return collate(kept)

    return without_padding


def run(args: argparse.Namespace, folder: Path) -> None:
    """Choose and heal what is missing."""
    torch.set_num_threads(args.threads)
    for name in args.cases:
        case = case_of(name, folder, args.data_dir)
        model, texts = supernet(case)
        record = folder / f"{name}.json"
        if not record.exists():
            length = LENGTH if case.kind == "decoder" else MAX_LENGTH
            chosen = choose(model, candidates(model, texts), Workload(sequence_length=length, threads=args.threads))
            write_atomically(record, json.dumps({"case": name, "unit": case.unit, "sizes": chosen}, indent=2) + "\n")
        quality = case.quality(model.base)
        for (place, one), seed in itertools.product(enumerate(json.loads(record.read_text())["sizes"]), range(args.seeds)):
            healed = folder / f"{name}-{place}-{seed}.json"
            if healed.exists() or (one["size"] is None and seed):
                continue
            start = time.process_time()
            before = quality(model.view(one["size"]))
            after = before if one["size"] is None else quality(heal(case, model, one["size"], args.steps, seed, CASES[name]))
            result = {"before": before, "after": after, "steps": args.steps, "seconds": time.process_time() - start}
            write_atomically(healed, json.dumps(result, indent=2) + "\n")
            print(f"{name}, {one['share']}, {one['kind']}, seed {seed}: {before:.3f} -> {after:.3f}", flush=True)


def table(folder: Path) -> None:
    """Print what is recorded: mean, and sample deviation over seeds where there are several.

    Raises:
        ValueError: nothing is recorded.
    """
    records = [json.loads(path.read_text()) for name in CASES if (path := folder / f"{name}.json").exists()]
    if not records:
        raise ValueError(f"output: {folder} has no records")
    console = Console(width=150)
    for record in records:
        heads = ("share", "cut", "what", "latency ms", "of full", "parameters", f"{record['unit']} before", "healed")
        grid, full = Table(*heads, title=record["case"]), record["sizes"][0]["latency_ms"]
        for place, one in enumerate(record["sizes"]):
            runs = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{record['case']}-{place}-*.json"))]
            values = [cell([run[key] for run in runs]) for key in ("before", "after")]
            cost = (f"{one['latency_ms']:.2f}", f"{one['latency_ms'] / full:.2f}", f"{one['parameters']:,}")
            grid.add_row(f"{one['share']:.2f}", one["kind"], what(one), *cost, *values)
        console.print(grid)
        runs = [json.loads(path.read_text()) for path in folder.glob(f"{record['case']}-*-*.json")]
        console.print(f"seconds of CPU: {sum(run['seconds'] for run in runs):.0f}")


def what(one: dict) -> str:
    """A size in few words."""
    size = one["size"]
    if one["kind"] == "depth":
        return f"{size.get('num_hidden_layers') or len(size['layers'])} layers"
    if one["kind"] == "width":
        return f"{size['num_attention_heads']} heads, {size['intermediate_size']} neurons"
    if one["kind"] == "full":
        return ""
    gone = ([index for index, name in enumerate(size[axis]) if name == SKIP] for axis in AXES)
    return ", ".join(f"no {axis} in {layers}" for axis, layers in zip(AXES, gone) if layers)


def main() -> int:
    """Parse and run; 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--data-dir", help="folder that holds glue/sst2 and wikitext2; to run")
    parser.add_argument("--output", default="runs/skips", help="folder for models and records")
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES), help="which models")
    parser.add_argument("--seeds", type=int, default=3, help="of the healing, how many (count)")
    parser.add_argument("--steps", type=int, default=60, help="of the healing, batches of 16 (count)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (count)")
    args = parser.parse_args()
    if args.command == "run" and args.data_dir is None:
        parser.error("--data-dir is needed: the folder that holds glue/sst2 and wikitext2")
    for option in ("seeds", "steps", "threads"):
        if vars(args)[option] < 1:
            parser.error(f"--{option} is {vars(args)[option]}; at least 1 is needed")
    folder = Path(args.output)
    try:
        if args.command == "run":
            folder.mkdir(parents=True, exist_ok=True)
            run(args, folder)
        table(folder)
    except (FileNotFoundError, ValueError) as error:
        print(f"skips.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Full, half, a third and a fifth of a trained elastic classifier in every runtime: latency, size on disk, accuracy.

    python recipes/benchmarks/shipping.py --model runs/sizes/sst2/elastic-0 --dataset glue/sst2 --data_dir DATA_DIR

Latencies are medians with 95% intervals, at 32 tokens and batch 1 and 32, of rounds in which each cell has its turn, alone,
in a process of its runtime. Accuracy is that of `parity.json`, on the held-out rows of the data. Run it on a quiet machine.
`--explore true` times other settings of the runtimes as well (sleeping threads, memory arena, bfloat16).
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from shipping_runtimes import Variant, time_in_turns

from hf_elastic.cli.common import parse
from hf_elastic.cli.data import DataArguments, load_elastic, load_tokenizer
from hf_elastic.cli.export_data import read_calibration, read_held_out
from hf_elastic.export import export_subnet
from hf_elastic.export.onnx.format import GRAPH
from hf_elastic.graphs.openvino import IR
from hf_elastic.measure.latency import Latency, machine_facts
from hf_elastic.utils.files import write_atomically
from hf_elastic.utils.progress import Bar

SHARES = {"half": 0.5, "third": 0.34, "fifth": 0.2}
LENGTH, BATCHES = 32, (1, 32)
# Column -> format and options of the export.
EXPORTS = {
    "ONNX fp32": ("onnx", {}),
    "ONNX fp32, fused": ("onnx", {"optimize": "O2"}),
    "ONNX int8": ("onnx-int8", {}),
    "ONNX int8, fused": ("onnx-int8", {"optimize": "O2"}),
    "ONNX int8 static": ("onnx-int8-static", {}),
    "ONNX int8 weights": ("onnx-int8-weights", {"weights_compute": "int8"}),
    "OpenVINO fp32": ("openvino", {}),
    "OpenVINO int8": ("openvino-int8", {}),
    "OpenVINO int8 static": ("openvino-int8-static", {}),
}
# Inputs of one batch and length only, as a server that pads to a few lengths has them; for each runtime in which it helps.
FIXED = {"onnxruntime": {}, "openvino": {"fixed shape": {"fixed": True}}}
EXPLORED = {
    "onnxruntime": {
        "sleeping threads": {"session": {"session.intra_op.allow_spinning": "0"}},
        "no arena": {"arena": False},
        "fixed shape": {"fixed": True},
        "1 thread": {"threads": 1},
    },
    "openvino": {
        "no dynamic quantization": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
        "bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
    },
}


@dataclass(kw_only=True)
class ShippingArguments(DataArguments):
    """What to compare."""

    output: str = field(default="shipping.json", metadata={"help": "File for the results."})
    columns: list[str] | None = field(default=None, metadata={"help": "Some of the columns; default: all."})
    threads: int = field(default=2, metadata={"help": "CPU threads of every runtime."})
    rounds: int = field(default=8, metadata={"help": "Turns of each cell (count)."})
    repeats: int = field(default=10, metadata={"help": "Calls of each cell per turn, after a warm-up (count)."})
    max_eval_rows: int | None = field(default=1000, metadata={"help": "Score on the first so many rows only (count)."})
    calibration: str | None = field(default=None, metadata={"help": "As for hf-elastic export."})
    calibration_rows: int = field(default=128, metadata={"help": "As for hf-elastic export (count)."})
    explore: bool = field(default=False, metadata={"help": "Time other settings of the runtimes as well."})


def choose_sizes(model) -> dict[str, str | None]:
    """full, half, third and fifth -> the named size whose FLOPs are nearest to that share of the full ones."""
    full = model.flops_of(None)
    chosen: dict[str, str | None] = {"full": None}
    for label, share in SHARES.items():
        chosen[label] = min(model.config.subnets, key=lambda name: abs(model.flops_of(name) / full - share))
    return chosen


def export_all(model, tokenizer, args, name: str | None, columns: list[str], folder: Path) -> dict[str, dict]:
    """Write a size in every format; column -> its parity record, with the file under "file"."""
    held_out, calibration = read_held_out(args, model, tokenizer), read_calibration(args)
    records = {}
    # One export for each level of optimization: its int8 formats start from the float graph of the same export.
    for level in (None, "O2"):
        chosen = {EXPORTS[column][0]: column for column in columns if EXPORTS[column][1].get("optimize") == level}
        if not chosen:
            continue
        options = {key: value for column in chosen.values() for key, value in EXPORTS[column][1].items()}
        if any(kind.endswith("static") for kind in chosen):
            options["calibration"] = calibration
        target = folder / (level or "plain")
        found = export_subnet(model, name, target, list(chosen), tokenizer=tokenizer, held_out=held_out, **options)
        for kind, column in chosen.items():
            records[column] = {**found[kind], "file": target / kind / (IR if kind.startswith("openvino") else GRAPH)}
    view = model.view(name)
    records["torch fp32"] = {"held_out": {"file": held_out.score_of(view)}}
    with torch.autocast("cpu", torch.bfloat16):
        records["torch bf16"] = {"held_out": {"file": held_out.score_of(view)}}
    parameters = sum(parameter.numel() for parameter in view.parameters())
    for column in ("torch fp32", "torch bf16"):
        records[column]["size_mb"] = 4e-6 * parameters  # autocast keeps float32 weights
    return records


def variants_of(args, size: str, name: str | None, records: dict[str, dict]) -> list[Variant]:
    """The cells of one size."""
    checkpoint, called = Path(args.model).absolute(), "full" if name is None else name
    found = [
        Variant(called, "torch fp32", "torch", checkpoint),
        Variant(called, "torch bf16", "torch", checkpoint, {"autocast": True}),
    ]
    for column, record in records.items():
        if "file" not in record:
            continue
        runtime = "openvino" if column.startswith("OpenVINO") else "onnxruntime"
        found.append(Variant(called, column, runtime, record["file"]))
        for what, settings in {**FIXED[runtime], **(EXPLORED[runtime] if args.explore else {})}.items():
            found.append(Variant(called, f"{column}; {what}", runtime, record["file"], settings))
    return found


def rows_of(sizes: dict, records: dict, samples: dict, model) -> list[dict]:
    """The table as data: one row per size and column."""
    rows = []
    baseline = Latency.from_samples(samples[1, LENGTH]["full", "torch fp32"]).median_ms
    accuracy = records["full"]["torch fp32"]["held_out"]["file"]["accuracy"]
    for size, name in sizes.items():
        called = "full" if name is None else name
        for key in samples[1, LENGTH]:
            if key[0] != called:
                continue
            record = records[size][key[1].split(";")[0]]
            timed = {batch: Latency.from_samples(samples[batch, LENGTH][key]) for batch in BATCHES}
            scores = record["held_out"]["file"]
            rows.append(
                {
                    "size": size, "subnet": called, "flops_share": model.flops_of(name) / model.flops_of(None),
                    "runtime": key[1], "size_mb": record["size_mb"], **scores,
                    "points_lost": 100 * (accuracy - scores["accuracy"]), "times_faster": baseline / timed[1].median_ms,
                    **{f"ms_batch_{b}": t.median_ms for b, t in timed.items()},
                    **{f"interval_ms_batch_{b}": [t.low_ms, t.high_ms] for b, t in timed.items()},
                }
            )  # fmt: skip
    return rows


def table_of(rows: list[dict], title: str) -> Table:
    """For the terminal."""
    table = Table(
        "size", "runtime", "MB", "ms, batch 1", f"ms, batch {BATCHES[1]}", "x faster, batch 1", "accuracy", "points lost",
        title=title, title_justify="left",
    )  # fmt: skip
    for row in rows:
        low, high = row["interval_ms_batch_1"]
        size = row["size"] if row["size"] == "full" else f"{row['size']} ({row['subnet']}, {row['flops_share']:.0%})"
        table.add_row(
            size, row["runtime"], f"{row['size_mb']:.0f}", f"{row['ms_batch_1']:.2f} [{low:.2f}, {high:.2f}]",
            f"{row[f'ms_batch_{BATCHES[1]}']:.1f}", f"{row['times_faster']:.1f}", f"{row['accuracy']:.1%}",
            f"{row['points_lost']:+.1f}",
        )  # fmt: skip
    return table


def goal_of(rows: list[dict]) -> str:
    """The fastest int8 row that loses at most one point, against the full model in torch float32."""
    good = [row for row in rows if "int8" in row["runtime"] and row["points_lost"] <= 1]
    if not good:
        return "no int8 size loses at most 1 point"
    best = max(good, key=lambda row: row["times_faster"])
    met = "reached" if best["times_faster"] >= 6 else "missed"
    return (
        f"fastest int8 with at most 1 point lost: {best['size']}, {best['runtime']}: {best['times_faster']:.1f} times faster "
        f"than the full model in torch fp32 at batch 1, {best['points_lost']:+.1f} points (goal: 6 times, {met})"
    )


def main() -> None:
    """Export, measure, print, write."""
    (args,) = parse([ShippingArguments], sys.argv[1:], "shipping")
    torch.set_num_threads(args.threads)
    model, tokenizer = load_elastic(args.model).eval(), load_tokenizer(args.model)
    columns = [c for c in EXPORTS if args.columns is None or c in args.columns]
    sizes, records, variants = choose_sizes(model), {}, []
    shapes = [(batch, LENGTH) for batch in BATCHES]
    with tempfile.TemporaryDirectory() as folder, Bar(True) as bar:
        bar.start("exporting", 0, len(sizes))
        for size, name in sizes.items():
            records[size] = export_all(model, tokenizer, args, name, columns, Path(folder) / size)
            variants += variants_of(args, size, name, records[size])
            bar.advance()
        samples = time_in_turns(variants, args.threads, shapes, model.config.vocab_size, args.rounds, args.repeats, bar)
    rows, facts = rows_of(sizes, records, samples, model), machine_facts()
    held_out = records["full"][columns[0]]["held_out"]
    title = f"{facts['processor']}, {args.threads} threads, {LENGTH} tokens; {held_out['rows']:,} rows of {held_out['name']}"
    console = Console()
    if not console.is_terminal:
        console.width = 140
    console.print(table_of(rows, title))
    print(goal_of(rows))
    result = {
        "title": title,
        "machine": facts,
        "rounds": args.rounds,
        "repeats": args.repeats,
        "goal": goal_of(rows),
        "rows": rows,
    }
    write_atomically(Path(args.output), json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

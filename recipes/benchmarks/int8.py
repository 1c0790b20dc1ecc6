"""Every named size of a trained elastic classifier in torch, ONNX and dynamic int8 ONNX: latency, file size, accuracy.

    python recipes/benchmarks/int8.py --model runs/sizes/sst2/elastic-0 --dataset DATA_DIR/glue/sst2 --max_length 64

Latencies are medians of interleaved runs at 32 tokens, torch's and onnxruntime's in a run each, since their threads get in each
other's way. Run it on a quiet machine.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from hf_elastic.cli.common import parse
from hf_elastic.cli.data import DataArguments, load_elastic, load_tokenizer, prepare_for
from hf_elastic.cli.quickstart_report import accuracy
from hf_elastic.export import export_subnet
from hf_elastic.export.onnx import OnnxRunner
from hf_elastic.search.measure import machine_facts, measure_latency

THREADS, LENGTH, BATCHES = 2, 32, (1, 32)
FORMATS = {"torch": "", "ONNX": "onnx", "ONNX int8": "onnx-int8"}


def latencies(runners: dict, batch: int) -> dict[str, float]:
    """Median milliseconds of each runner."""
    tensors = {"input_ids": torch.randint(1000, 20000, (batch, LENGTH)), "attention_mask": torch.ones(batch, LENGTH).long()}
    tensors["token_type_ids"] = torch.zeros(batch, LENGTH).long()
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    found = {}
    for is_torch in (True, False):
        group = {name: runner for name, runner in runners.items() if isinstance(runner, torch.nn.Module) == is_torch}
        calls = {name: (lambda r=r: r(**tensors)) if is_torch else (lambda r=r: r(arrays)) for name, r in group.items()}
        with torch.inference_mode():
            timed = measure_latency(calls, repeats=40, min_rounds=12, warmup=3)
        found |= {name: latency.median_ms for name, latency in timed.items()}
    return found


def main() -> None:
    """Export, measure, print."""
    torch.set_num_threads(THREADS)
    (args,) = parse([DataArguments], sys.argv[1:], "int8", "Compare sizes in torch, ONNX and int8.")
    model, tokenizer = load_elastic(args.model), load_tokenizer(args.model)
    data = prepare_for(model, tokenizer, args)
    split = "test" if "test" in data.splits else "validation"
    texts = [" ".join(str(row[column]) for column in data.text_columns) for row in data.raw[split].select(range(32))]
    names = ["largest", *sorted(model.config.subnets, key=lambda name: -model.flops_of(name))]
    runners, sizes = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            export = Path(folder) / name
            export_subnet(model, name, export, ["safetensors", "onnx", "onnx-int8"], tokenizer=tokenizer, texts=texts)
            for label, sub in FORMATS.items():
                files = list((export / sub).glob("model.*"))
                sizes[name, label] = sum(file.stat().st_size for file in files) / 1e6
                runners[f"{name}, {label}"] = OnnxRunner(export / sub / "model.onnx") if sub else model.view(name)
        timed = {batch: latencies(runners, batch) for batch in BATCHES}
        facts = machine_facts()
        title = f"{facts['processor']}, {THREADS} threads, {LENGTH} tokens; accuracy on {len(data.splits[split])} rows of {split}"
        table = Table(
            "size", "format", "MB", *(f"ms, batch {batch}" for batch in BATCHES), "x faster, batch 1", "accuracy", title=title
        )
        for name in names:
            for label in FORMATS:
                key = f"{name}, {label}"
                times = [f"{timed[batch][key]:.2f}" for batch in BATCHES]
                ratio = timed[1]["largest, torch"] / timed[1][key]
                right = accuracy(runners[key], data, split)
                table.add_row(name, label, f"{sizes[name, label]:.0f}", *times, f"{ratio:.1f}", f"{right:.1%}")
        Console(width=130).print(table)


if __name__ == "__main__":
    main()

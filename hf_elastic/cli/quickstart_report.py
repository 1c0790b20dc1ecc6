"""What the quickstart shows at the end: the exported size at work elsewhere, and one table of honest numbers."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from ..core.errors import UserError

BATCH = 32  # rows
MOST_SECONDS = 10.0  # of measuring latency, for the torch models and for the ONNX files
Z = 1.96  # half a 95% interval in standard errors

ELSEWHERE = """
import sys

sys.modules["hf_elastic"] = None  # importing it fails, as where it is not installed
import transformers
from transformers import pipeline

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
classify = pipeline("text-classification", model=sys.argv[1], device="cpu")
best = classify(dict(zip(("text", "text_pair"), sys.argv[2:])), truncation=True)
print(f"{type(classify.model).__module__}.{type(classify.model).__name__}|{best['label']}|{best['score']:.2f}")
"""


def classify_elsewhere(export: Path, data, console) -> None:
    """Load the exported checkpoint in a fresh process without hf_elastic, and classify a held-out text.

    Raises:
        ValueError: the process failed; its last line is in the message.
    """
    row = data.raw["test" if "test" in data.raw else "validation"][0]
    texts = [str(row[column]) for column in data.text_columns]
    command = [sys.executable, "-c", ELSEWHERE, str(export.absolute()), *texts]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise UserError(f"the exported checkpoint does not load alone: {result.stderr.strip().splitlines()[-1]}")
    model_class, label, score = result.stdout.strip().splitlines()[-1].split("|")
    line = f'loaded as {model_class}; "{" | ".join(texts)[:100]}" -> {label} ({score})'
    console.print(line, highlight=False, markup=False)  # code has brackets


def print_result(model, data, chosen, folder: Path, rows: dict[str, int], seed: int, console) -> None:
    """Size, parameters, FLOPs, latency and accuracy of the full, chosen and smallest size, and of each ONNX file.

    Latencies are measured interleaved, torch's and onnxruntime's in a run each, at batch 1. Accuracy is on the test split, which
    neither training nor the search has seen (on the validation split where the data has no test); `rows` says on how many rows.
    """
    from rich.table import Table
    from transformers import AutoModelForSequenceClassification

    from ..measure.latency import measure_latency
    from ..runtimes.onnxruntime import OnnxRunner

    split = "test" if "test" in data.splits else "validation"
    batches = in_batches(data, split, rows[split])
    longest = max(data.splits[split], key=lambda row: len(row["input_ids"]))
    inputs = {name: tensor for name, tensor in data.collator([longest]).items() if name != "labels"}
    length = inputs["input_ids"].shape[1]
    stock = AutoModelForSequenceClassification.from_pretrained(folder / "export").eval()
    smallest = model.space.smallest
    runners = {
        "full": (None, model.view(None)),
        "chosen": (chosen.subnet, stock),
        "smallest": (smallest, model.view(smallest)),
        "chosen, ONNX": (chosen.subnet, OnnxRunner(folder / "export" / "onnx" / "model.onnx")),
        "chosen, ONNX int8": (chosen.subnet, OnnxRunner(folder / "export" / "onnx-int8" / "model.onnx")),
    }
    latencies = {}
    # Each is timed without the other around: where waiting threads spin, they would take each other's cores.
    for is_torch in (True, False):
        group = {n: r for n, (_, r) in runners.items() if isinstance(r, torch.nn.Module) == is_torch}
        calls = {name: _call(runner, inputs) for name, runner in group.items()}
        with torch.inference_mode():
            latencies.update(measure_latency(calls, repeats=60, min_rounds=20, budget_seconds=MOST_SECONDS, seed=seed))
    table = Table()
    headers = ["size", "layers x width", "parameters", f"GFLOPs, 1 x {length} tokens", "latency (95% interval)", "faster"]
    for header in (*headers, "% right (interval)"):
        table.add_column(header, no_wrap=not header.startswith("GFLOPs"))
    hits = {}
    for name, (subnet, runner) in runners.items():
        spelled = model.subnet(subnet)
        ratio = latencies["full"].median_ms / latencies[name].median_ms
        hits[name] = right_answers(runner, batches)
        share = float(hits[name].mean())
        low, high = accuracy_interval(share, len(hits[name]))
        table.add_row(
            name,
            f"{len(model.resolve(subnet).layers)} x {spelled['hidden_size']}",
            f"{model.num_parameters_of(subnet) / 1e6:.1f} M",
            f"{model.flops_of(subnet, 1, length) / 1e9:.2f}",
            str(latencies[name]),
            f"{ratio:.1f}x" if name != "full" else "",
            f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
        )
    console.print(table)
    console.print(f"accuracy on {rows[split]:,} rows of the {split} split, the same for all:", highlight=False)
    for name in ("chosen", "smallest"):
        console.print(f"  {comparison(hits['full'], hits[name], name)}", highlight=False)


def accuracy_interval(share: float, rows: int) -> list[float]:
    """95% interval of a share of right answers on a number of independent rows (Wilson, JASA 22(158), 1927)."""
    centre, spread = share + Z**2 / (2 * rows), Z * math.sqrt(share * (1 - share) / rows + Z**2 / (4 * rows**2))
    return [(centre - spread) / (1 + Z**2 / rows), (centre + spread) / (1 + Z**2 / rows)]


def comparison(full: np.ndarray, other: np.ndarray, name: str) -> str:
    """By how much the full size is better on the same rows, `bool[rows]` each, and whether that is more than noise."""
    difference = full.astype(float) - other
    points, spread = 100 * difference.mean(), 100 * Z * difference.std() / math.sqrt(len(difference))
    verdict = "" if abs(points) > spread else ", which is within its noise"
    return f"full - {name}: {points:+.1f} points (95% interval {points - spread:+.1f} to {points + spread:+.1f}){verdict}"


def _call(runner, inputs: dict):
    """One forward pass as a function without arguments; ONNX sessions get their arrays ready-made."""
    if isinstance(runner, torch.nn.Module):
        return lambda: runner(**inputs)
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    return lambda: runner(arrays)


def in_batches(data, split: str, count: int) -> list[dict[str, torch.Tensor]]:
    """The first rows of a split; rows of similar length share a batch."""
    rows = sorted(data.splits[split].select(range(count)), key=lambda row: len(row["input_ids"]))
    return [dict(data.collator(rows[start : start + BATCH])) for start in range(0, count, BATCH)]


def right_answers(runner, batches: list[dict[str, torch.Tensor]]) -> np.ndarray:
    """Which rows a torch model or an ONNX session answers right, `bool[rows]`."""
    found = []
    for batch in batches:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        if isinstance(runner, torch.nn.Module):
            with torch.inference_mode():
                logits = runner(**inputs).logits
        else:
            logits = torch.as_tensor(runner({name: tensor.numpy() for name, tensor in inputs.items()})["logits"])
        found.append(logits.argmax(-1) == batch["labels"])
    return torch.cat(found).numpy()


def next_commands(folder: Path, dataset: str) -> str:
    """Three commands that go on from here."""
    elastic, data = folder / "elastic", f"--dataset {dataset}"
    lines = [
        "Next:",
        f"  hf-elastic export --model {elastic} --subnet smallest --output_dir {folder}/smallest --formats safetensors onnx-int8",
        f"  hf-elastic search --model {elastic} {data} --objectives accuracy parameters --output_dir {folder}/by-parameters",
        f"  hf-elastic train --model {elastic} {data} --output_dir {folder}/longer --sampling all --num_train_epochs 1",
    ]
    return "\n".join(lines)

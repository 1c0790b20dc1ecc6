"""What the quickstart shows at the end: the exported size at work elsewhere, and one table of honest numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from ..core.errors import UserError

# Runs in a process in which hf_elastic cannot be imported.
ELSEWHERE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_elastic":
            raise ImportError("hf_elastic is not here")

sys.meta_path.insert(0, Refuse())
try:
    import hf_elastic
    sys.exit("hf_elastic could be imported")
except ImportError:
    pass
import transformers
from transformers import pipeline

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
classify = pipeline("text-classification", model=sys.argv[1], device="cpu")
best = classify(sys.argv[2], truncation=True)[0]
print(f"{type(classify.model).__module__}.{type(classify.model).__name__}|{best['label']}|{best['score']:.2f}")
"""


def classify_elsewhere(export: Path, data, console) -> None:
    """Load the exported checkpoint in a fresh process without hf_elastic, and classify a held-out text.

    Raises:
        ValueError: the process failed; its last line is in the message.
    """
    row = data.raw["test" if "test" in data.raw else "validation"][0]
    text = " ".join(str(row[column]) for column in data.text_columns)
    command = [sys.executable, "-c", ELSEWHERE, str(export.absolute()), text]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise UserError(f"the exported checkpoint does not load alone: {result.stderr.strip().splitlines()[-1]}")
    model_class, label, score = result.stdout.strip().splitlines()[-1].split("|")
    console.print(f'loaded as {model_class}; "{text[:100]}" -> {label} ({score})', highlight=False)


def final_table(model, data, chosen, folder: Path, seed: int):
    """Size, parameters, FLOPs, latency and accuracy of the full, chosen and smallest size, and of each ONNX file.

    Latencies are measured interleaved, torch's and onnxruntime's in a run each, at batch 1. Accuracy is on the test split, which
    neither training nor the search has seen (on the validation split where the data has no test).
    """
    from rich.table import Table
    from transformers import AutoModelForSequenceClassification

    from ..measure.latency import measure_latency
    from ..runtimes.onnxruntime import OnnxRunner

    split = "test" if "test" in data.splits else "validation"
    longest = max(data.splits[split], key=lambda row: len(row["input_ids"]))
    inputs = {name: tensor for name, tensor in data.collator([longest]).items() if name != "labels"}
    length = inputs["input_ids"].shape[1]
    stock = AutoModelForSequenceClassification.from_pretrained(folder / "export").eval()
    smallest = smallest_standard(model)
    runners = {
        "full": (None, model.view(None)),
        "chosen": (chosen.subnet, stock),
        "smallest": (smallest, model.view(smallest)),
        "chosen, ONNX": (chosen.subnet, OnnxRunner(folder / "export" / "onnx" / "model.onnx")),
        "chosen, ONNX int8": (chosen.subnet, OnnxRunner(folder / "export" / "onnx-int8" / "model.onnx")),
    }
    latencies = {}
    # torch and onnxruntime keep threads of their own spinning for a while, so each is timed without the other around.
    for is_torch in (True, False):
        group = {n: r for n, (_, r) in runners.items() if isinstance(r, torch.nn.Module) == is_torch}
        calls = {name: _call(runner, inputs) for name, runner in group.items()}
        with torch.inference_mode():
            latencies.update(measure_latency(calls, repeats=60, min_rounds=20, seed=seed))
    table = Table()
    for header in (
        "size",
        "layers x ffn",
        "parameters",
        f"GFLOPs, 1 x {length} tokens",
        "latency (95% interval)",
        "",
        f"accuracy, {split}",
    ):
        table.add_column(header, no_wrap=header in ("size", "latency (95% interval)", ""))
    for name, (subnet, runner) in runners.items():
        spelled = model.subnet(subnet)
        ratio = latencies["full"].median_ms / latencies[name].median_ms
        table.add_row(
            name,
            f"{len(model.resolve(subnet).layers)} x {spelled['intermediate_size']}",
            f"{model.num_parameters_of(subnet) / 1e6:.1f} M",
            f"{model.flops_of(subnet, 1, length) / 1e9:.2f}",
            str(latencies[name]),
            f"{ratio:.1f}x faster" if name != "full" else "",
            f"{accuracy(runner, data, split):.1%}",
        )
    return table


def smallest_standard(model):
    """The smallest size of the space that is a stock model."""
    subnets = [s for s in model.space.enumerate() if model.portability_of(s) == "standard"]
    counts = model.num_parameters_of(subnets)
    return subnets[int(counts.argmin())]


def _call(runner, inputs: dict):
    """One forward pass as a function without arguments; ONNX sessions get their arrays ready-made."""
    if isinstance(runner, torch.nn.Module):
        return lambda: runner(**inputs)
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    return lambda: runner(arrays)


def accuracy(runner, data, split: str) -> float:
    """Share of right answers of a torch model or an ONNX session, 0 to 1."""
    rows = data.splits[split]
    correct = 0
    for start in range(0, len(rows), 32):
        batch = dict(data.collator([rows[i] for i in range(start, min(start + 32, len(rows)))]))
        labels = batch.pop("labels")
        if isinstance(runner, torch.nn.Module):
            with torch.inference_mode():
                logits = runner(**batch).logits
        else:
            logits = torch.as_tensor(runner({name: tensor.numpy() for name, tensor in batch.items()})["logits"])
        correct += int((logits.argmax(-1) == labels).sum())
    return correct / len(rows)


def next_commands(folder: Path) -> str:
    """Three commands that go on from here."""
    elastic = folder / "elastic"
    lines = [
        "Next:",
        f"  hf-elastic export --model {elastic} --subnet smallest --output_dir {folder}/smallest --formats safetensors onnx-int8",
        f"  hf-elastic search --model {elastic} --objectives accuracy parameters --output_dir {folder}/by-parameters",
        f"  hf-elastic train --model {elastic} --output_dir {folder}/longer --sampling all --num_train_epochs 1",
    ]
    return "\n".join(lines)

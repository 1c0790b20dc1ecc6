"""What zero-copy views, sandwich steps and counts cost, as ratios measured in one run.

    python recipes/benchmarks/core.py [forward] [step] [views] [memory] [counts]

Each pair is timed A B A B, interleaved and shuffled, after a warm-up; medians. Weights are random: only shapes matter.
"""

from __future__ import annotations

import copy
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import BertConfig, LlamaConfig

from hf_elastic import ElasticConfig, ElasticForCausalLM, ElasticForSequenceClassification
from hf_elastic.core.modeling_elastic import ElasticPreTrainedModel
from hf_elastic.measure.latency import machine_facts, measure_latency

THREADS = 2
SIZES = {
    "full": None,
    "half FFN": {"intermediate_size": 0.5},
    "half heads": {"num_attention_heads": 0.5},
    "half depth": {"num_hidden_layers": 0.5},
    "half of all": {"num_hidden_layers": 0.5, "intermediate_size": 0.5, "num_attention_heads": 0.5},
    "quarter": {"num_hidden_layers": 0.25, "intermediate_size": 0.25, "num_attention_heads": 0.25},
}


def bert(layers: int = 12) -> ElasticForSequenceClassification:
    """BERT-base shape."""
    base = BertConfig(num_hidden_layers=layers)
    depths = sorted({max(1, layers // 4), layers // 2, layers})
    space = {"num_hidden_layers": depths, "num_attention_heads": [3, 6, 12], "intermediate_size": [768, 1536, 3072]}
    return ElasticForSequenceClassification(ElasticConfig(base_config=base, space=space)).eval()


def llama() -> ElasticForCausalLM:
    """A small Llama: 12 layers of 768, grouped queries, gated feed-forward of 2048, a vocabulary of 32,000."""
    base = LlamaConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    space = {"num_hidden_layers": [3, 6, 12], "num_key_value_heads": [1, 2, 4], "intermediate_size": [512, 1024, 2048]}
    return ElasticForCausalLM(ElasticConfig(base_config=base, space=space)).eval()


def subnet_of(model, shares: dict | None) -> dict | None:
    """A size by shares of the full one; grouped queries lose key-value heads."""
    if shares is None:
        return None
    axes = {"num_attention_heads": "num_key_value_heads"} if "kv" in model.layout.full else {}
    return {axes.get(axis, axis): int(model.layout.value(axes.get(axis, axis)) * share) for axis, share in shares.items()}


def inputs_of(batch: int, length: int) -> dict[str, torch.Tensor]:
    """Random tokens without padding."""
    ids = torch.randint(5, 30000, (batch, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def forward(console: Console) -> None:
    """Forward of a view, in both memory layouts / forward of the same size extracted into a stock model."""
    columns = ("view, standard", "view, prefix", "extracted", "ratios")
    table = Table("model", "size", "batch x tokens", *columns, title="zero-copy forward, inference mode")
    for name, model in (("BERT-base", bert()), ("Llama 12 x 768", llama())):
        prefix = copy.deepcopy(model)
        prefix.set_memory_layout("prefix")
        for label, shares in SIZES.items():
            subnet = subnet_of(model, shares)
            views, stock = (model.view(subnet), prefix.view(subnet)), model.extract(subnet)
            stock = stock.base if isinstance(stock, ElasticPreTrainedModel) else stock  # the wrapper is not what is timed
            for batch, length in ((1, 32), (32, 32)):
                inputs = inputs_of(batch, length)
                with torch.inference_mode():
                    timed = measure_latency(
                        {column: lambda one=one, i=inputs: one(**i) for column, one in zip(columns, (*views, stock))},
                        repeats=40 if batch == 1 else 24,
                        min_rounds=10 if batch == 1 else 24,
                        relative_interval=0.01,
                        warmup=2,
                    )
                *medians, alone = (one.median_ms for one in timed.values())
                times = [f"{median:.1f} ms" for median in (*medians, alone)]
                table.add_row(name, label, f"{batch} x {length}", *times, " ".join(f"{one / alone:.2f}" for one in medians))
    console.print(table)


def step(console: Console) -> None:
    """One sandwich step over three sizes / sum of the three extracted models' own forward and backward."""
    ratio = step_ratio(bert(layers=6), torch.device("cpu"), batch=16, length=64)
    console.print(f"sandwich step of 3 sizes, BERT 6 x 768, 16 x 64 tokens, fp32: {ratio}")
    if not torch.cuda.is_available():
        console.print("no GPU here: the step in bf16, with and without torch.compile, was not measured")
        return
    for compiled in (False, True):
        ratio = step_ratio(bert(), torch.device("cuda"), batch=64, length=128, compiled=compiled)
        name = f"{torch.cuda.get_device_name()}, {'torch.compile' if compiled else 'eager'}"
        console.print(f"sandwich step of 3 sizes, BERT-base, 64 x 128 tokens, bf16, {name}: {ratio}")


def step_ratio(model, device: torch.device, batch: int, length: int, *, compiled: bool = False) -> str:
    """Time the two kinds of steps, interleaved: bf16 autocast on a GPU, fp32 on a CPU."""
    depth, width = model.layout.num_layers // 2, model.layout.value("intermediate_size")
    subnets = [None, {"num_hidden_layers": depth, "intermediate_size": width // 2}]
    subnets.append({"num_hidden_layers": depth, "intermediate_size": width // 4})
    inputs = {**inputs_of(batch, length), "labels": torch.randint(0, 2, (batch,))}
    inputs = {key: value.to(device) for key, value in inputs.items()}
    stock = [model.extract(subnet).to(device).train() for subnet in subnets]
    model.to(device).train()
    for subnet in subnets:  # as ElasticTrainer does: what is built before is not traced
        model.trained_module(model.resolve(subnet))
    runner = torch.compile(model) if compiled else model
    runners = [torch.compile(one) for one in stock] if compiled else stock

    def backward(one):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            loss = one(**inputs).loss
        loss.backward()

    def elastic_step():
        model.zero_grad(set_to_none=True)
        for subnet in subnets:
            model.select(subnet)
            backward(runner)
        _wait(device)

    def separate_steps():
        for one, compiled_one in zip(stock, runners):
            one.zero_grad(set_to_none=True)
            backward(compiled_one)
        _wait(device)

    timed = measure_latency({"elastic": elastic_step, "separate": separate_steps}, repeats=12, min_rounds=8, warmup=2)
    elastic, separate = timed["elastic"].median_ms, timed["separate"].median_ms
    return f"{elastic:.0f} ms, separately {separate:.0f} ms, ratio {elastic / separate:.2f}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def views(console: Console) -> None:
    """Time to get a view of a size, seen and new."""
    model = bert()
    generator = random.Random(0)
    fresh = []
    for _ in range(12):
        subnet = model.space.sample(generator)
        model.forget_views()
        start = time.perf_counter()
        model.view(subnet)
        fresh.append(time.perf_counter() - start)
    seen = {"num_hidden_layers": 6, "intermediate_size": 1536}
    times = {}
    for name, call in (("view", model.view), ("select", model.select)):
        call(seen)
        start = time.perf_counter()
        for _ in range(10_000):
            call(seen)
        times[name] = (time.perf_counter() - start) / 10_000
    console.print(f"view of a new size, 12 layers: median {np.median(fresh) * 1e3:.1f} ms, longest {max(fresh) * 1e3:.1f} ms")
    console.print(f"of a seen size: view {times['view'] * 1e6:.1f} us, select {times['select'] * 1e6:.1f} us")


SERVE = """
import gc, sys, torch
sys.path.insert(0, {folder!r})
import core
torch.set_num_threads(core.THREADS)
model = core.bert()
inputs = core.inputs_of(8, 64)
gc.collect()
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts here: building the model is not serving it
with torch.inference_mode():
    for shares in {shares!r}:
        model.view(core.subnet_of(model, shares))(**inputs)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def memory(console: Console) -> None:
    """Peak resident memory of a process while it serves six sizes / while it serves the full model alone (Linux)."""
    peaks = {}
    for name, shares in {"full": [None], "six": list(SIZES.values())}.items():
        code = SERVE.format(folder=str(Path(__file__).parent), shares=shares)
        runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
        peaks[name] = sorted(int(run.stdout.split()[-1]) for run in runs)[1] / 1024
    ratio = peaks["six"] / peaks["full"]
    console.print(
        f"peak memory, BERT-base: full alone {peaks['full']:.0f} MB, six sizes {peaks['six']:.0f} MB, ratio {ratio:.3f}"
    )


def counts(console: Console) -> None:
    """Subnets per second whose parameters and FLOPs are counted."""
    model = bert()
    number = 200_000
    generator = np.random.default_rng(0)
    arrays = {
        "num_hidden_layers": generator.integers(1, 13, number),
        "num_attention_heads": generator.integers(1, 13, (number, 12)),
        "intermediate_size": generator.integers(1, 3073, (number, 12)),
    }
    start = time.perf_counter()
    table, kept = model.counts.population(arrays, number)
    model.counts.parameters(table, kept)
    model.counts.flops(table, kept, 1, 128)
    vectorised = number / (time.perf_counter() - start)
    sampler = random.Random(0)
    subnets = [model.space.sample(sampler) for _ in range(20_000)]
    start = time.perf_counter()
    model.num_parameters_of(subnets)
    model.flops_of(subnets)
    listed = len(subnets) / (time.perf_counter() - start)
    console.print(f"parameters and FLOPs: {vectorised:,.0f} subnets per second from arrays, per-layer sizes; ", end="")
    console.print(f"{listed:,.0f} from a list of Subnets")


BENCHMARKS = {"forward": forward, "step": step, "views": views, "memory": memory, "counts": counts}


def main() -> None:
    """Run the named benchmarks, or all."""
    names = sys.argv[1:] or list(BENCHMARKS)
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    console = Console(width=120)
    facts = machine_facts()
    console.print(f"{facts['processor']}, {THREADS} threads, torch {facts['torch']}, transformers {facts['transformers']}")
    for name in names:
        BENCHMARKS[name](console)


if __name__ == "__main__":
    main()

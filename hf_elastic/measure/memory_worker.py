"""The process that `measure_memory` starts: one JSON job per line in, one JSON answer per line out.

It imports the libraries, runs nothing itself, and forks for each job: the child loads one model, runs it, and reads its own
high-water mark. It must never start a thread pool, which a child would inherit without its threads.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from transformers.utils import logging

from ..core.errors import UserError
from ..utils.memory import give_back_memory
from .workload import Workload, exported_call, model_call

MEGABYTE = 1e6


def kibibytes(field: str) -> int:
    """A field of /proc/self/status: VmRSS is memory now, VmHWM the most since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise UserError(f"/proc/self/status has no {field}")


def call_twice(call: Callable) -> None:
    """Twice, since the second call meets what the first one left."""
    with torch.inference_mode():
        for _ in range(2):
            call()


def peak_on_cpu(make_call: Callable[[], Callable]) -> dict[str, float]:
    """Load, reset the high-water mark, run, and read it."""
    before = kibibytes("VmRSS")
    call = make_call()
    gc.collect()
    give_back_memory()  # what loading needed for a moment
    loaded = kibibytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    call_twice(call)
    used = {"peak_mb": kibibytes("VmHWM") - before, "loaded_mb": loaded - before}
    return {name: value * 1024 / MEGABYTE for name, value in used.items()}


def peak_on_cuda(make_call: Callable[[], Callable], device: str) -> dict[str, float]:
    """As `peak_on_cpu`, of the device's memory."""
    call = make_call()
    torch.cuda.synchronize(device)
    loaded = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call_twice(call)
    return {"peak_mb": torch.cuda.max_memory_allocated(device) / MEGABYTE, "loaded_mb": loaded / MEGABYTE}


def run_job(job: dict) -> dict[str, float]:
    """Do what `memory._write_job` wrote."""
    workload, device = Workload(**job["workload"]), job["device"]
    inputs = {name: torch.tensor(values, device=device) for name, values in job["inputs"].items()}
    if workload.threads is not None:
        torch.set_num_threads(workload.threads)
    if workload.exports:
        import_module(workload.runtime)
        from ..graphs import onnx  # noqa: F401 - importing belongs to what was there before

        return peak_on_cpu(lambda: exported_call(workload, Path(job["file"]), inputs))
    kind = getattr(import_module(job["module"]), job["class"])
    dtype = getattr(torch, job["dtype"].removeprefix("torch."))

    def make_call() -> Callable:
        config = kind.config_class.from_pretrained(job["folder"])
        zeros = {name: torch.zeros(shape, dtype=dtype) for name, shape in job["shapes"].items()}
        model = kind.from_pretrained(None, config=config, state_dict=zeros, dtype=dtype).to(device).eval()
        for parameter in model.parameters():
            # Zeros take no memory until they are written; only what two calls touch would count: a few rows of embeddings.
            parameter.data = parameter.data.clone()
        with torch.inference_mode():
            return model_call(workload, model, inputs)

    return peak_on_cpu(make_call) if device == "cpu" else peak_on_cuda(make_call, device)


def answer(job: dict) -> dict:
    """What a job gives, or why it failed."""
    try:
        return run_job(job)
    except Exception as error:  # whatever it is, the caller hears of it
        traceback.print_exc()
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())}


def main() -> None:
    """Serve until the input ends."""
    logging.disable_progress_bar()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a model or a library prints must not reach the answers
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            print(json.dumps({"error": f"the process was killed by signal {status & 127}"}), file=answers, flush=True)


if __name__ == "__main__":
    main()

"""True peak memory of sizes: each runs in a fresh process, whose high-water mark is read."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers.utils import logging

from ..modeling_elastic import ElasticPreTrainedModel
from ..space import Subnet
from .targets import Target


@dataclass(frozen=True)
class PeakMemory:
    """What one size needs beyond a process that has loaded nothing but the libraries; MB are 10^6 bytes.

    Attributes:
        peak_mb: most memory at any moment of two calls: weights, activations, cache and what the runtime keeps.
        loaded_mb: memory once the model is loaded, before the first call.
    """

    peak_mb: float
    loaded_mb: float


def measure_memory(
    model: ElasticPreTrainedModel,
    subnets: Sequence[Subnet],
    target: Target,
    progress: Callable[[int, int], object] | None = None,
) -> dict[Subnet, PeakMemory]:
    """Peak memory of each subnet.

    One process imports the libraries and then forks for each subnet, so that a fresh process costs no seconds. On the CPU the
    kernel's high-water mark (VmHWM) is read, after it was reset behind the loading; on CUDA `torch.cuda.max_memory_allocated`.
    Not a sum of what was allocated, which says nothing about a peak.

    Args:
        model: the supernet; its device is used.
        subnets: each once.
        target: the runtime and the shape of the input.
        progress: called after each subnet with how many are done, and how many there are.

    Raises:
        ValueError: the system has no /proc, the model has no such phase, or a process failed.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise ValueError(f"peak memory is read from /proc, which {sys.platform} does not have; it needs Linux")
    target.check_phase(model)
    command = [sys.executable, "-m", "hf_elastic.search.memory_worker"]
    found = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker,
    ):
        for place, subnet in enumerate(subnets):
            job = _write_job(model, subnet, target, Path(folder) / str(place))
            print(json.dumps(job), file=worker.stdin, flush=True)
            answer = json.loads(worker.stdout.readline() or '{"error": "the process ended"}')
            if "error" in answer:
                raise ValueError(f"peak memory of {subnet}: {answer['error']}")
            found[subnet] = PeakMemory(**answer)
            if progress is not None:
                progress(place + 1, len(subnets))
        worker.stdin.close()
    return found


def _write_job(model: ElasticPreTrainedModel, subnet: Subnet, target: Target, path: Path) -> dict:
    """Write what a fresh process has to load, and say what it has to do."""
    inputs = target.make_input(model)
    job = {"target": asdict(target), "device": str(model.device), "inputs": {k: v.tolist() for k, v in inputs.items()}}
    if target.exports:
        return {**job, "file": str(target.write_file(model.view(subnet), inputs, path))}
    extracted = model.extract(subnet)
    with _no_progress_bar():
        extracted.save_pretrained(path)
    kind = type(extracted)
    return {**job, "folder": str(path), "module": kind.__module__, "class": kind.__name__, "dtype": str(model.dtype)}


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Without transformers' own bar for each size that is saved."""
    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()

"""True peak memory of sizes: each runs in a fresh process, whose high-water mark is read."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue

from ..core.errors import UserError
from ..core.modeling_elastic import ElasticPreTrainedModel
from ..core.space import Subnet
from ..utils.options import check_integers
from .workload import Workload


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
    workload: Workload,
    progress: Callable[[int, int], object] | None = None,
    workers: int = 1,
) -> dict[Subnet, PeakMemory]:
    """Peak memory of each subnet.

    One process imports the libraries and then forks for each subnet, so that a fresh process costs no seconds. On the CPU the
    kernel's high-water mark (VmHWM) is read, after it was reset behind the loading; on CUDA `torch.cuda.max_memory_allocated`.
    Not a sum of what was allocated, which says nothing about a peak. A torch model has weights of zeros there: what they are
    changes no size, and writing and reading those of a few dozen sizes takes minutes.

    Args:
        model: the supernet; its device is used.
        subnets: each once.
        workload: the runtime and the shape of the input.
        progress: called after each subnet with how many are done, and how many there are.
        workers: how many subnets to run at a time, each in a process of its own; all of them have to fit into memory.

    Raises:
        ValueError: the system has no /proc, the model has no such phase, or a process failed.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise UserError(f"peak memory is read from /proc, which {sys.platform} does not have; it needs Linux")
    workload.check_phase(model)
    check_integers(1, workers=workers)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        idle: Queue = Queue()
        for _ in range(min(workers, len(subnets))):
            idle.put(stack.enter_context(_worker()))
        # The jobs are written here, since nothing else about a model is safe in several threads but its views.
        jobs = (_write_job(model, subnet, workload, Path(folder) / str(place)) for place, subnet in enumerate(subnets))
        found: dict[Subnet, PeakMemory] = {}
        with ThreadPoolExecutor(workers) as pool:
            waiting = [(subnet, pool.submit(_run, idle, job)) for subnet, job in zip(subnets, jobs)]
            for place, (subnet, future) in enumerate(waiting):
                answer = future.result()
                if "error" in answer:
                    raise UserError(f"peak memory of {subnet}: {answer['error']}")
                found[subnet] = PeakMemory(**answer)
                if progress is not None:
                    progress(place + 1, len(subnets))
    return found


@contextmanager
def _worker() -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "hf_elastic.measure.memory_worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        yield worker
        worker.stdin.close()


def _run(idle: Queue, job: dict) -> dict:
    """Have an idle worker do a job."""
    worker = idle.get()
    try:
        print(json.dumps(job), file=worker.stdin, flush=True)
        return json.loads(worker.stdout.readline() or '{"error": "the process ended"}')
    except BrokenPipeError:
        return {"error": "the process ended"}
    finally:
        idle.put(worker)


def _write_job(model: ElasticPreTrainedModel, subnet: Subnet, workload: Workload, path: Path) -> dict:
    """Write what a fresh process has to load, and say what it has to do."""
    inputs = workload.make_input(model)
    job = {"workload": asdict(workload), "device": str(model.device), "inputs": {k: v.tolist() for k, v in inputs.items()}}
    if workload.exports:
        return {**job, "file": str(workload.write_file(model.view(subnet), inputs, path))}
    kind, config = model.standalone(subnet)
    config.save_pretrained(path)
    shapes = {name: list(tensor.shape) for name, tensor in model.view(subnet).state_dict().items()}
    job |= {"folder": str(path), "shapes": shapes, "dtype": str(model.dtype)}
    return {**job, "module": kind.__module__, "class": kind.__name__}

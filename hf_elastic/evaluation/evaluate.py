"""Score sizes on tasks, and time them side by side."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import torch
import transformers
from transformers import PreTrainedTokenizerBase

from ..core.errors import UserError
from ..measure.latency import Latency, machine_facts, measure_latency
from ..measure.workload import Workload, use_threads
from ..utils.options import check_integers
from ..utils.progress import Bar
from .candidates import Candidate, Candidates
from .harness import SEED, VERSION, CandidateLM, chance, load_task, run_task
from .results import Results
from .suite import TaskFile


@dataclass(frozen=True)
class Settings:
    """What a score depends on besides the model and the task.

    Attributes:
        num_fewshot: shots before each item (count).
        limit: only so many items of each task, the first ones; None for all.
        batch_size: requests per forward.

    Raises:
        ValueError: a negative number of shots, or a limit or batch size below 1.
    """

    num_fewshot: int = 0
    limit: int | None = None
    batch_size: int = 8

    def __post_init__(self):
        check_integers(0, num_fewshot=self.num_fewshot)
        check_integers(1, batch_size=self.batch_size)
        check_integers(1, or_none=True, limit=self.limit)


def evaluate(
    candidates: Candidates,
    tokenizer: PreTrainedTokenizerBase,
    files: Sequence[TaskFile],
    output: Path,
    settings: Settings,
    target: Workload | None = None,
) -> Results:
    """Score every size on every task, going on where `output` ends.

    Args:
        candidates: the sizes.
        tokenizer: theirs.
        files: the tasks.
        output: the file of results, whole after every task.
        settings: shots, items and batch size.
        target: what is timed; None times nothing.

    Raises:
        ValueError: `output` holds results of something else, or a task cannot be run.
    """
    identity = {"model": candidates.digest, "num_fewshot": settings.num_fewshot, "limit": settings.limit, "seed": SEED}
    results = Results(output, {**identity, "lm_eval": VERSION}, {"versions": versions(), "machine": machine_facts()})
    for candidate in candidates.sizes:
        results.add_size(candidate)
    if target is not None:
        measure(candidates.sizes, results, target)
    for place, file in enumerate(files):
        task = load_task(file, settings.num_fewshot)
        results.add_task(file, chance(task, settings.limit))
        for candidate in candidates.sizes:
            if results.score(candidate.name, file.name) is None:
                print(f"{file.name} ({place + 1} of {len(files)}), {candidate.name}", file=sys.stderr)
                model = CandidateLM(candidate, tokenizer, settings.batch_size)
                results.put_score(candidate.name, file.name, run_task(file, task, model, settings.limit))
    results.put_averages([file.name for file in files])
    return results


def measure(sizes: Sequence[Candidate], results: Results, target: Workload) -> None:
    """Time the sizes, interleaved in one run, unless the results have that already.

    Raises:
        ValueError: a model cannot run this input.
    """
    names = [size.name for size in sizes]
    if results.latencies(names, asdict(target)) is not None:
        return
    with use_threads(target.threads), torch.inference_mode(), Bar(True) as bar:
        bar.start("measuring latency", 0, None)
        calls = {size.name: size.call(target) for size in sizes}
        try:
            calls[names[0]]()
        except (IndexError, RuntimeError) as error:
            raise UserError(f"sequence_length: the model cannot run {target.sequence_length} tokens: {error}") from error
        latencies: dict[str, Latency] = measure_latency(calls, seed=target.seed, progress=bar.update)
    results.put_latencies(latencies, asdict(target))


def versions() -> dict[str, str]:
    """Versions of what computes a score."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__), "transformers": transformers.__version__}
    return {**found, "datasets": datasets.__version__, "lm_eval": VERSION}

"""Score sizes on tasks, and time them side by side."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import datasets
import torch
import transformers
from transformers import PreTrainedTokenizerBase

from ..core.errors import UserError
from ..measure.latency import Latency, machine_facts, measure_latency
from ..measure.workload import Workload, use_threads
from ..utils.progress import Bar
from .candidates import Candidate, Candidates
from .config import EvaluationConfig
from .harness import SEED, VERSION, CandidateLM, chance, load_task, run_task
from .results import Results
from .suite import TaskFile


def evaluate(
    candidates: Candidates,
    tokenizer: PreTrainedTokenizerBase,
    files: Sequence[TaskFile],
    output: Path,
    config: EvaluationConfig,
    *,
    overwrite: bool = False,
) -> Results:
    """Score every size on every task, going on where `output` ends.

    Args:
        candidates: the sizes.
        tokenizer: theirs.
        files: the tasks.
        output: the file of results, whole after every task.
        config: shots, items, batch size, and what is timed; the rest of it has chosen the sizes and the tasks.
        overwrite: begin anew; the old results stay until the first new one is there.

    Raises:
        UserError: `output` holds results of something else, or a task cannot be run.
    """
    identity = {"model": candidates.digest, "num_fewshot": config.num_fewshot, "limit": config.limit, "seed": SEED}
    results = Results(output, {**identity, "lm_eval": VERSION}, {"versions": versions(), "machine": machine_facts()}, overwrite)
    for candidate in candidates.sizes:
        results.add_size(candidate)
    if config.latency:
        measure(candidates.sizes, results, Workload(sequence_length=config.sequence_length, threads=config.threads))
    for place, file in enumerate(files):
        task = load_task(file, config.num_fewshot)
        results.add_task(file, chance(task, config.limit))
        for candidate in candidates.sizes:
            if results.score(candidate.name, file.name) is None:
                print(f"{file.name} ({place + 1} of {len(files)}), {candidate.name}", file=sys.stderr)
                model = CandidateLM(candidate, tokenizer, config.batch_size)
                results.put_score(candidate.name, file.name, run_task(file, task, model, config.limit))
    results.put_averages([file.name for file in files])
    return results


def measure(sizes: Sequence[Candidate], results: Results, workload: Workload) -> None:
    """Time the sizes, interleaved in one run, unless the results have that already.

    Raises:
        UserError: a model cannot run this input.
    """
    names = [size.name for size in sizes]
    if results.latencies(names, asdict(workload)) is not None:
        return
    with use_threads(workload.threads), torch.inference_mode(), Bar(True) as bar:
        bar.start("measuring latency", 0, None)
        calls = {size.name: size.call(workload) for size in sizes}
        try:
            calls[names[0]]()
        except (IndexError, RuntimeError) as error:
            raise UserError(f"sequence_length: the model cannot run {workload.sequence_length} tokens: {error}") from error
        latencies: dict[str, Latency] = measure_latency(calls, seed=workload.seed, progress=bar.update)
    results.put_latencies(latencies, asdict(workload))


def versions() -> dict[str, str]:
    """Versions of what computes a score."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__), "transformers": transformers.__version__}
    return {**found, "datasets": datasets.__version__, "lm_eval": VERSION}

"""Trainings of a benchmark in processes of their own, a few at a time."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

# glibc then keeps freed memory: a gradient of the embeddings is 47 MB, and fresh pages for it cost about a tenth of a step.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36), "MALLOC_TOP_PAD_": str(2**28)}


@dataclass(frozen=True)
class Job:
    """One process.

    Attributes:
        name: for messages.
        command: what to run.
        log: file for what it prints.
        needs: a file that has to be there before it starts; None starts at once.
    """

    name: str
    command: Sequence[str]
    log: Path
    needs: Path | None = None


def run_jobs(jobs: Sequence[Job], workers: int, threads: int, title: str) -> None:
    """Run every job, `workers` at a time and in their order, each with `threads` threads; show progress on stderr.

    A job that fails does not end the others: they may have run for an hour.

    Raises:
        SystemExit: at the end, if a job failed or never got what it needs; names each.
    """
    waiting, running, failed = list(jobs), {}, []
    try:
        with Progress(console=Console(stderr=True)) as progress:
            bar = progress.add_task(title, total=len(jobs))
            while True:
                for job in list(waiting):
                    if len(running) < workers and (job.needs is None or job.needs.exists()):
                        waiting.remove(job)
                        running[job] = _start(job, threads)
                if not running:
                    break
                time.sleep(0.5)
                for job, process in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[job]
                    if process.returncode:
                        failed.append(f"{job.name} failed; see {job.log}")
                        progress.console.print(failed[-1])
                    progress.advance(bar)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    if problems := failed + [f"{job.name} needs {job.needs}, which is missing" for job in waiting]:
        raise SystemExit("\n".join(problems))


def _start(job: Job, threads: int) -> subprocess.Popen:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **MALLOC, "OMP_NUM_THREADS": str(threads)}
    with job.log.open("w") as file:
        return subprocess.Popen(job.command, env=environment, stdout=file, stderr=file)

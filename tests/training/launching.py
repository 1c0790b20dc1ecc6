"""Starts real processes for a test, and leaves none behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("worker.py")
TIMEOUT = 400  # seconds, on a machine that is busy with other work


def launch(command: list[str], **environment: str) -> tuple[int, str]:
    """Run a command in a process group of its own, which is gone afterwards; its status and all it printed."""
    return wait(start(command, **environment))


def start(command: list[str], **environment: str) -> subprocess.Popen:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "FSDP_"))}
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command,
        env={**inherited, **settings, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait(process: subprocess.Popen) -> tuple[int, str]:
    try:
        printed, _ = process.communicate(timeout=TIMEOUT)
        return process.returncode, printed
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_cases(folder: Path, cases: dict[str, dict], processes: int = 2) -> tuple[int, str]:
    """Run cases one after the other in each of several processes; results are in `folder`/name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{'-'.join(cases)[:40]}.json"
    path.write_text(json.dumps(cases))
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    return launch([sys.executable, *several, str(WORKER), str(path)])


def record(folder: Path, rank: int = 0) -> dict:
    """What a process has noted of a case."""
    return json.loads((folder / f"rank{rank}.json").read_text())

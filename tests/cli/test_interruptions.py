"""The command line, stopped in the middle: what is left, and what goes on."""

import contextlib
import os
import signal
import subprocess
import sys
import time

from hf_elastic.cli.main import main


def test_interrupted_training_resumes(elastic, data, tmp_path):
    """Ctrl-C in the middle leaves whole checkpoints, from which the same command goes on."""
    options = ["--model", elastic, "--dataset", data, "--output_dir", tmp_path / "run", "--max_length", 8, "--use_cpu", "true"]
    options += ["--save_steps", 2, "--learning_rate", "1e-3", "--eval_strategy", "no"]
    command = [sys.executable, "-m", "hf_elastic.cli.main", "train", *map(str, options), "--max_steps"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*command, "100000", "--disable_tqdm", "true"], **pipes, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run").glob("checkpoint-*/sampler.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    error = None
    while error is None and time.monotonic() < deadline + 60:
        os.killpg(process.pid, signal.SIGINT)  # again where Python drops one: it does inside a finalizer
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    assert "--resume_from_checkpoint true" in error and "Traceback" not in error
    steps = [int(path.name.partition("-")[2]) for path in (tmp_path / "run").glob("checkpoint-*")]
    again = subprocess.run([*command, str(max(steps) + 2), "--resume_from_checkpoint", "true"], **pipes)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_failed_export_leaves_nothing(elastic, tmp_path, capsys, monkeypatch):
    """An export over its tolerance fails as a whole; what was there before stays."""
    from hf_elastic.export import checkpoint
    from hf_elastic.export.parity import Tolerance

    arguments = ["export", "--model", str(elastic), "--output_dir", str(tmp_path / "out"), "--overwrite", "true"]
    assert main(arguments) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(checkpoint, "FLOAT32", Tolerance(max_relative_difference=-1.0))
    assert main(arguments) == 2
    assert "the export differs from the model it came from" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before

"""`hf-elastic quickstart`: what fits into its time, what it says of its accuracies, and the whole of it with little data."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from hf_elastic.cli.main import main
from hf_elastic.cli.quickstart import QuickstartArguments
from hf_elastic.cli.quickstart_budget import FEWEST_ROWS, StepClock, fit
from hf_elastic.cli.quickstart_report import accuracy_interval, comparison
from hf_elastic.search import Frontier

ROWS = {"train": 6400, "validation": 3000, "test": 2800}
SHARES = [0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 0.3, 0.5]


def plan(step, row, budget=330.0, **options):
    return fit(QuickstartArguments(budget_seconds=budget, epochs=1.0, **options), step, row, SHARES, ROWS, 100.0, 120.0)


def test_a_fast_machine_does_everything():
    found = plan(step=0.05, row=0.001)
    assert (found.steps, found.sizes, found.rows) == (400, 8, {"validation": 3000, "test": 2800})
    assert found.words.endswith("cut: nothing")


def test_a_slower_machine_cuts_steps_and_rows_until_they_fit():
    step, row = 0.5, 0.01
    found = plan(step, row)
    assert 0 < found.steps < 400 and found.sizes == 8
    assert FEWEST_ROWS <= found.rows["validation"] == found.rows["test"] < 2800
    spent = 20 + found.steps * step + found.rows["test"] * row * (sum(SHARES) + 2)
    assert 200 < spent < 330
    assert f"{found.steps:,} steps" in found.words
    assert "cut: steps, 400 wanted; rows, 2,800 there" in found.words


def test_a_very_slow_machine_cuts_sizes_too():
    found = plan(step=7.0, row=0.5)
    assert (found.steps, found.sizes, found.rows["test"]) == (1, 6, FEWEST_ROWS)
    assert "sizes, 8 there" in found.words and "so few steps teach little" in found.words


def test_n_trials_and_splits_are_bounds():
    args = QuickstartArguments(n_trials=3)
    found = fit(args, 0.01, 0.001, SHARES, {"train": 64, "validation": 40}, 0.0, 1.0)
    assert (found.sizes, found.rows) == (3, {"validation": 40})


def test_training_ends_when_its_time_is_over():
    control = SimpleNamespace(should_training_stop=False)
    clock = StepClock(until=time.perf_counter() + 1e6)
    clock.on_train_begin(None, None, control)
    clock.on_step_end(None, None, control)
    assert clock.steps == 1 and not control.should_training_stop
    clock.until = 0.0
    clock.on_step_end(None, None, control)
    assert clock.steps == 2 and control.should_training_stop


@pytest.mark.parametrize("share", [0.0, 0.5, 0.82, 1.0])
def test_interval_of_an_accuracy(share):
    """By simulation: of accuracies that the ends would give, about a fortieth are as far out as what was found."""
    rows = 400
    low, high = accuracy_interval(share, rows)
    assert 0 <= low <= share <= high <= 1 and high - low < 0.11
    draws = np.random.default_rng(0).binomial(rows, [[low], [high]], size=(2, 20_000)) / rows
    if 0 < share < 1:
        assert np.mean(draws[0] >= share) == pytest.approx(0.025, abs=0.012)
        assert np.mean(draws[1] <= share) == pytest.approx(0.025, abs=0.012)


def test_difference_on_the_same_rows():
    full, other = np.repeat([True, False], [900, 100]), np.repeat([True, False], [800, 200])
    assert comparison(full, other, "chosen").startswith("full - chosen: +10.0 points (95% interval +8.1 to +11.9)")
    assert "noise" not in comparison(full, other, "chosen")
    assert comparison(full, np.roll(full, 100), "chosen").endswith("which is within its noise")


@pytest.mark.parametrize(
    ("options", "message"), [(["--budget_seconds", "0"], "budget_seconds (0.0)"), (["--n_trials", "0"], "n_trials")]
)
def test_bad_options(options, message, capsys):
    assert main(["quickstart", *options]) == 2
    assert message in capsys.readouterr().err


def run(*arguments, cwd, **environment):
    script = "import sys, hf_elastic_cli; sys.exit(hf_elastic_cli.main())"  # that of `hf-elastic`
    command = [sys.executable, "-c", script, "quickstart", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, **environment})


@pytest.mark.slow
def test_quickstart(tmp_path):
    """The real model on few rows: every step runs."""
    (tmp_path / "data").mkdir()
    for split, count in (("train", 64), ("validation", 40), ("test", 40)):
        pairs = [(i % 2, f"get the value {i}", f"return the [value] {i + 1 - i % 2}") for i in range(count)]
        lines = "\n".join(f"{'own' if label else 'other'}\t{one}\t{two}" for label, one, two in pairs)
        (tmp_path / "data" / f"{split}.tsv").write_text(f"label\tsentence1\tsentence2\n{lines}\n")
    out = tmp_path / "quickstart"
    options = ["--dataset", "data", "--output_dir", out]
    result = run(*options, "--n_trials", 4, "--budget_seconds", 30, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for name in ("elastic/config.json", "search/frontier.png", "search/report.html", "export/parity.json"):
        assert (out / name).exists(), name
    frontier = Frontier.load(out / "search" / "frontier.json")
    assert len(frontier.evaluated) == 4 and {"full", "chosen"} <= {point.name for point in frontier.evaluated}
    for point in frontier.evaluated:
        assert point.details["accuracy"] == pytest.approx(accuracy_interval(point.values["accuracy"], 40))
    for name in ("onnx", "onnx-int8"):
        assert json.loads((out / "export" / name / "parity.json").read_text())["passed"]
    for words in (
        "transformers.models.bert.modeling_bert.BertForSequenceClassification",
        "| return the [value] ",
        "timed here:",
        "sizes, 12 there",
        "full - smallest:",
        "chosen, ONNX int8",
        "hf-elastic export",
    ):
        assert words in result.stdout, words
    again = run(*options, cwd=tmp_path)
    assert again.returncode == 2 and "--overwrite" in again.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no libgomp")
def test_waiting_threads_sleep(tmp_path):
    """libgomp prints what it has read when torch loads it; a folder that is not empty then ends the command."""
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "mine").touch()
    result = run(cwd=tmp_path, OMP_DISPLAY_ENV="true")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in result.stderr and "--overwrite" in result.stderr, result.stderr


def test_defaults_fit_six_minutes():
    assert {field.name: field.default for field in dataclasses.fields(QuickstartArguments)}["budget_seconds"] < 360

import dataclasses
import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.benchmark

RECIPES = Path(__file__).parents[2] / "recipes" / "benchmarks"
TEXT = "the cat sat on the mat and the dog ran after a small red ball until it was dark and all went home . "


def recipe(monkeypatch, name: str):
    monkeypatch.syspath_prepend(str(RECIPES))
    monkeypatch.setattr(importlib.import_module("ranking_scores"), "DRAWS", 100)
    return importlib.import_module(name)


@pytest.fixture
def ranking(monkeypatch):
    return recipe(monkeypatch, "ranking")


@pytest.fixture
def runs(monkeypatch):
    return recipe(monkeypatch, "ranking_runs")


@pytest.fixture
def data_dir(tmp_path):
    folder = tmp_path / "data" / "wikitext2"
    folder.mkdir(parents=True)
    for split, lines in (("train", 60), ("valid", 12), ("test", 12)):
        (folder / f"{split}.txt").write_text("".join(f"{number} {TEXT}\n" for number in range(lines)))
    return folder.parent


@pytest.fixture
def preset(runs):
    space = {"num_hidden_layers": [1, 2], "hidden_size": [16, 32], "intermediate_size": [16, 32, 48]}
    small = {"vocab_size": 300, "length": 16, "head_size": 16, "architectures": 6, "batch_size": 2, "n_trials": 12}
    return dataclasses.replace(runs.PRESETS["small"], space=space, tokens=96, validation_blocks=4, **small)


# --- scores --------------------------------------------------------------------------------------------------------


def test_rank_correlations_by_hand(monkeypatch):
    scores = recipe(monkeypatch, "ranking_scores")
    before = [
        {"decoder_parameters": 100, "proxy": 1},
        {"decoder_parameters": 105, "proxy": 2},
        {"decoder_parameters": 200, "proxy": 4},
        {"decoder_parameters": 210, "proxy": 3},
        {"decoder_parameters": 400, "proxy": 5},
    ]
    records = [{"before": one, "perplexity": perplexity} for one, perplexity in zip(before, (50, 40, 30, 20, 10))]
    found, pairs = scores.score(records)
    assert pairs == 2  # 100 with 105, 200 with 210
    assert [found["decoder_parameters"][name][0] for name in scores.STATISTICS] == pytest.approx([1, 1, 1])
    # One of ten pairs is swapped: tau = (9 - 1) / 10, rho = 1 - 6 * 2 / (5 * 24), and one of the two near pairs is right.
    assert [found["proxy"][name][0] for name in scores.STATISTICS] == pytest.approx([0.9, 0.8, 0.5])
    for one in found["proxy"].values():
        value, low, high = one
        assert low <= value <= high and low < high
    assert found["decoder_parameters"]["Spearman"][1:] == pytest.approx((1, 1))


def test_no_pair_of_nearly_equal_size(monkeypatch):
    scores = recipe(monkeypatch, "ranking_scores")
    values = np.array([1.0, 2.0, 4.0, 8.0])
    assert np.isnan(scores.with_interval(scores.near, values, values, values)).all()


# --- the sample ----------------------------------------------------------------------------------------------------


def test_costs_are_spread(runs):
    costs = [1, 1.01, 10, 11, 100, 1000]
    assert sorted(runs.spread(costs, 4)) in ([0, 2, 4, 5], [0, 3, 4, 5])
    assert sorted(runs.spread(costs[:2], 4)) == [0, 1]


@pytest.mark.slow
def test_sample_and_training(runs, ranking, preset, data_dir, tmp_path, capsys):
    folder = tmp_path / "small"
    sample = runs.set_up(preset, str(data_dir), folder, 0)
    subnets = [json.dumps(one["subnet"], sort_keys=True) for one in sample]
    assert len(set(subnets)) == 6
    origins = [one["origin"] for one in sample]
    assert origins.count("random") == 4 and {"frontier of capacity", "frontier of decoder_parameters"} < set(origins)
    assert runs.set_up(preset, "nowhere", folder, 0) == sample  # nothing is made again
    weights = (folder / "supernet" / "model.safetensors").read_bytes()
    shutil.rmtree(folder / "supernet")  # of published results only the records are there
    assert runs.set_up(preset, str(data_dir), folder, 0) == sample
    assert (folder / "supernet" / "model.safetensors").read_bytes() == weights
    with pytest.raises(ValueError, match="has results with tokens 96; give another folder"):
        runs.set_up(dataclasses.replace(preset, tokens=192), str(data_dir), folder, 0)

    for place in (0, 1, 2, 4):
        record = runs.train_one(preset, folder, sample[place], 0)
        assert record["tokens"] == 96 and 1 < record["perplexity"] < 2 * preset.vocab_size
        ranking.record_of(folder, place).write_text(json.dumps(record))
    again = runs.train_one(preset, folder, sample[4], 0)
    assert again["perplexity"] == pytest.approx(record["perplexity"], rel=1e-4)
    ranking.table(folder)
    printed = capsys.readouterr().out
    assert "4 architectures, 96 tokens each" in printed and "layer_capacity" in printed


@pytest.mark.slow
def test_counts_are_those_of_the_models_that_are_trained(runs, preset, data_dir, tmp_path):
    from hf_elastic.cli.data import load_elastic

    (one, *_) = runs.set_up(preset, str(data_dir), tmp_path / "out", 0)
    model = runs.plain_model(load_elastic(str(tmp_path / "out" / "supernet")), one["subnet"])
    assert sum(p.numel() for p in model.parameters()) == one["before"]["parameters"]
    inside = sum(p.numel() for name, p in model.named_parameters() if ".h." in name or "ln_f" in name)
    assert inside == one["before"]["decoder_parameters"]


# --- the command ---------------------------------------------------------------------------------------------------


def command(ranking, monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ranking.py", *arguments])
    return ranking.main()


@pytest.mark.slow
def test_what_is_recorded_is_not_trained_again(ranking, runs, preset, data_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(runs.PRESETS, "small", preset)
    jobs = []
    monkeypatch.setattr(ranking, "run_jobs", lambda given, *options: jobs.extend(given))
    options = ("run", "--data-dir", str(data_dir), "--output", str(tmp_path / "runs"))
    folder = tmp_path / "runs" / "small"
    assert command(ranking, monkeypatch, *options) == 2  # nothing was trained, so that there is no table
    places = [place for job in jobs for place in job.command[job.command.index("--places") + 1 :]]
    assert sorted(places) == list("012345")
    for place in range(5):
        record = {"perplexity": 10 + place, "tokens": 1, "seconds": 1, **json.loads((folder / "sample.json").read_text())}
        record |= record["architectures"][place]
        ranking.record_of(folder, place).write_text(json.dumps(record))
    jobs.clear()
    assert command(ranking, monkeypatch, *options) == 0
    assert [job.command[-2:] for job in jobs] == [("--places", "5")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "--data-dir is needed"),
        (["run", "--data-dir", "nowhere"], "no wikitext2 in nowhere"),
        (["run", "--data-dir", "nowhere", "--architectures", "3"], "--architectures is 3; at least 4"),
        (["run", "--data-dir", "nowhere", "--learning-rate", "3"], "--learning-rate is 3.0; it must be between 0 and 1"),
        (["table", "--workers", "0"], "--workers is 0; at least 1"),
        (["table"], "has 0 records; 4 are needed"),
    ],
)
def test_bad_input_is_one_line(ranking, monkeypatch, tmp_path, capsys, arguments, message):
    try:
        code = command(ranking, monkeypatch, *arguments, "--output", str(tmp_path))
    except SystemExit as stop:
        code = stop.code
    errors = capsys.readouterr().err
    assert code == 2 and message in errors.splitlines()[-1] and "Traceback" not in errors
    assert not list(tmp_path.rglob("sample.json"))


# --- processes -----------------------------------------------------------------------------------------------------


def job(workers, folder: Path, name: str, code: str, needs: Path | None = None):
    return workers.Job(name, (sys.executable, "-S", "-c", code), folder / f"{name}.log", needs)


def test_jobs_wait_for_what_they_need(monkeypatch, tmp_path):
    workers = recipe(monkeypatch, "workers")
    first = tmp_path / "first"
    jobs = [
        job(workers, tmp_path, "second", f"open({str(first)!r}).close(); print('second')", first),
        job(workers, tmp_path, "first", f"import os; print(os.environ['OMP_NUM_THREADS']); open({str(first)!r}, 'w').close()"),
    ]
    workers.run_jobs(jobs, 2, 3, "jobs")
    assert [(tmp_path / f"{name}.log").read_text() for name in ("first", "second")] == ["3\n", "second\n"]


def test_a_job_that_fails_leaves_the_others(monkeypatch, tmp_path):
    workers = recipe(monkeypatch, "workers")
    late, absent = tmp_path / "late", tmp_path / "absent"
    jobs = [
        job(workers, tmp_path, "broken", "raise SystemExit('no such thing')"),
        job(workers, tmp_path, "hungry", "pass", absent),
        job(workers, tmp_path, "long", f"import time; time.sleep(2); open({str(late)!r}, 'w')"),
    ]
    with pytest.raises(SystemExit) as stop:
        workers.run_jobs(jobs, 2, 1, "jobs")
    assert str(stop.value) == f"broken failed; see {tmp_path / 'broken.log'}\nhungry needs {absent}, which is missing"
    assert "no such thing" in (tmp_path / "broken.log").read_text() and late.exists()

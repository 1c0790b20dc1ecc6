"""The benchmark of skips, on a tiny model."""

import argparse
import importlib
import json
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from tiny import WORDS, config_of, randomize, save_tokenizer

from hf_elastic import ElasticForSequenceClassification
from hf_elastic.measure.workload import Workload

pytestmark = pytest.mark.benchmark
RECIPES = Path(__file__).parents[2] / "recipes" / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module("skips")


@pytest.fixture
def case(benchmark, monkeypatch, tmp_path):
    models = importlib.import_module("importance_models")
    monkeypatch.setattr(models, "EVALUATED", {"tiny": 20})
    monkeypatch.setattr(benchmark, "CALIBRATION", 8)
    config = config_of("bert", num_labels=2)
    stock = randomize(ElasticForSequenceClassification.stock_class(config)(config))
    rows = {"text": [f"{WORDS[i]} {WORDS[i + 1]}" for i in range(40)], "label": [i % 2 for i in range(40)]}
    splits = dict.fromkeys(("train", "validation"), Dataset.from_dict(rows))
    return models.Case(stock, save_tokenizer(tmp_path / "tokenizer"), splits, "classifier", "tiny")


def test_sizes_are_chosen_healed_and_shown(benchmark, case, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "case_of", lambda *_: case)
    monkeypatch.setattr(benchmark, "SHARES", (0.99, 0.6))
    options = {"cases": ["classifier-SST-2"], "data_dir": "", "seeds": 1, "steps": 1, "threads": 1}
    benchmark.run(argparse.Namespace(**options), tmp_path)
    record = json.loads((tmp_path / "classifier-SST-2.json").read_text())
    full, *sizes = record["sizes"]
    assert {one["kind"] for one in sizes} <= {"depth", "width", "skips"} and len(sizes) >= 3
    for one in sizes:
        assert one["latency_ms"] <= one["share"] * full["latency_ms"] and one["parameters"] < full["parameters"]
    healed = sorted(tmp_path.glob("classifier-SST-2-*-0.json"))
    assert len(healed) == len(record["sizes"])
    before = [path.stat().st_mtime_ns for path in healed]
    benchmark.run(argparse.Namespace(**options), tmp_path)
    assert [path.stat().st_mtime_ns for path in healed] == before, "goes on where it was"
    benchmark.table(tmp_path)
    shown = capsys.readouterr().out
    assert "skips" in shown and "layers" in shown and "neurons" in shown


def test_candidates_are_the_best_of_their_kind_first(benchmark, case):
    model, texts = benchmark.supernet(case)
    kinds = benchmark.candidates(model, texts)
    assert [size["num_hidden_layers"] for size in kinds["depth"]] == [3, 2, 1]
    assert kinds["width"] == [{"num_attention_heads": count, "intermediate_size": 12 * count} for count in (3, 2, 1)]
    assert len(kinds["skips"]) == 15
    removals = benchmark.measure_removals(model, texts)
    changes = [removals.of(model, size) for size in kinds["skips"]]
    assert changes == sorted(changes) and changes[0] > 0
    assert benchmark.choose(model, {"depth": kinds["depth"]}, Workload(sequence_length=8))[0]["kind"] == "full"


def test_bad_input_is_one_line(benchmark, monkeypatch, tmp_path, capsys):
    for arguments, message in ((["table", "--output", str(tmp_path)], "has no records"), (["run"], "--data-dir is needed")):
        monkeypatch.setattr(sys, "argv", ["skips.py", *arguments])
        try:
            status = benchmark.main()
        except SystemExit as end:
            status = end.code
        assert status == 2 and message in capsys.readouterr().err

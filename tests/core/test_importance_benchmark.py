"""The benchmark of rankings, on a tiny model."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import WORDS, batch, config_of, randomize, save_tokenizer, space_of
from transformers import AutoModelForCausalLM

from hf_elastic import ElasticForCausalLM, ElasticForSequenceClassification
from hf_elastic.core.importance import importance_order

pytestmark = pytest.mark.benchmark
RECIPES = Path(__file__).parents[2] / "recipes" / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module("importance")


def test_every_ranking_of_a_case(benchmark, monkeypatch, tmp_path, capsys):
    models = importlib.import_module("importance_models")
    monkeypatch.setattr(models, "EVALUATED", {"tiny": 20})
    monkeypatch.setattr(benchmark, "CALIBRATION", 16)
    config = config_of("bert", num_labels=2)
    stock = randomize(ElasticForSequenceClassification.stock_class(config)(config))
    rows = {"text": [f"{WORDS[i]} {WORDS[i + 1]}" for i in range(40)], "label": [i % 2 for i in range(40)]}
    splits = dict.fromkeys(("train", "validation"), Dataset.from_dict(rows))
    bench = benchmark.Bench(models.Case(stock, save_tokenizer(tmp_path / "tokenizer"), splits, "classifier", "tiny"))
    bench.run(0)
    bench.run(1)
    assert set(bench.found) == {"full", *benchmark.CUTS, "half the layers"}
    for cut in benchmark.CUTS:
        assert {name: len(values) for name, values in bench.found[cut].items()} == {
            name: 2 if name == "random" or "task's" in name else 1 for name in benchmark.RANKINGS
        }
    record = {"case": "classifier-SST-2", "unit": "accuracy", "seconds": 1.0, **bench.found}
    (tmp_path / "classifier-SST-2.json").write_text(json.dumps(record))
    benchmark.table(tmp_path)
    assert f"{bench.found['full']:.3f}" in capsys.readouterr().out


@torch.no_grad()
def test_random_rankings_keep_groups(benchmark):
    base = randomize(AutoModelForCausalLM.from_config(config_of("llama")))
    model = ElasticForCausalLM.from_base(base, {**space_of("llama"), "num_key_value_heads": [2]}, importance="none")
    expected = model(**batch()).logits
    before = importance_order(model)
    benchmark.shuffle(model, 0)
    torch.testing.assert_close(model(**batch()).logits, expected, atol=1e-5, rtol=0)
    after = importance_order(model)
    assert any(not np.array_equal(before[key], after[key]) for key in before)


def test_bad_input_is_one_line(benchmark, monkeypatch, tmp_path, capsys):
    for arguments, message in ((["table", "--output", str(tmp_path)], "has no records"), (["run"], "--data-dir is needed")):
        monkeypatch.setattr(sys, "argv", ["importance.py", *arguments])
        try:
            status = benchmark.main()
        except SystemExit as end:
            status = end.code
        assert status == 2 and message in capsys.readouterr().err

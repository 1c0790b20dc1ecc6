"""The benchmark of runtimes: which sizes it takes, what it calls reached, and one small run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import WORDS, config_of, decisive, randomize, save_tokenizer
from transformers import AutoModelForSequenceClassification

from hf_elastic import ElasticForSequenceClassification

pytestmark = pytest.mark.benchmark

BENCHMARKS = Path(__file__).parents[2] / "recipes" / "benchmarks"
SUBNETS = {name: {"num_hidden_layers": layers} for name, layers in (("three", 3), ("two", 2), ("one", 1))}


@pytest.fixture
def shipping(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import shipping

    return shipping


@pytest.fixture(scope="module")
def model():
    stock = decisive(randomize(AutoModelForSequenceClassification.from_config(config_of("bert", num_labels=2))))
    return ElasticForSequenceClassification.from_base(stock, space={"num_hidden_layers": [1, 2, 3, 4]}, subnets=SUBNETS)


def test_the_sizes_are_the_nearest_named_ones(shipping, model):
    assert shipping.choose_sizes(model) == {"full": None, "half": "two", "third": "one", "fifth": "one"}


@pytest.mark.parametrize(("times", "lost", "wanted"), [(7.0, 0.9, "reached"), (5.9, 0.0, "missed"), (9.0, 1.1, "no int8 size")])
def test_the_goal_is_speed_with_accuracy(shipping, times, lost, wanted):
    row = {"size": "half", "runtime": "ONNX int8", "times_faster": times, "points_lost": lost}
    faster = {**row, "runtime": "OpenVINO fp32", "times_faster": 99.0, "points_lost": 0.0}
    assert wanted in shipping.goal_of([row, faster])


@pytest.mark.slow
def test_a_small_run(model, tmp_path):
    save_tokenizer(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    for split in ("train", "dev"):
        rows = [f"{i % 2}\t{WORDS[i % 2]} {WORDS[2 + i % 50]}" for i in range(16)]
        (tmp_path / f"{split}.tsv").write_text("\n".join(["label\tsentence", *rows]) + "\n")
    options = ["--model", tmp_path / "model", "--dataset", tmp_path, "--output", tmp_path / "out.json", "--calibration_rows", 4]
    options += ["--rounds", 2, "--repeats", 2, "--columns", "ONNX fp32", "ONNX int8", "OpenVINO fp32"]
    command = [sys.executable, BENCHMARKS / "shipping.py", *options]
    pytest.importorskip("openvino", reason="pip install 'hf-elastic[openvino]'")
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "out.json").read_text())
    assert len(result["rows"]) == 4 * 6
    full = result["rows"][0]
    assert (full["size"], full["runtime"], full["times_faster"], full["points_lost"]) == ("full", "torch fp32", 1.0, 0.0)
    assert all(row["ms_batch_1"] > 0 and row["ms_batch_32"] > 0 for row in result["rows"])

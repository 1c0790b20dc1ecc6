"""The table of formats: what `export_subnet` makes of a format in it, and of its options."""

import json
import sys

import numpy as np
import pytest
import torch
from tiny import config_of, randomize, space_of
from transformers import AutoModelForSequenceClassification

from hf_elastic import ElasticForSequenceClassification
from hf_elastic.core.errors import UserError
from hf_elastic.export import FORMATS, ExportConfig, export_subnet
from hf_elastic.export.format import Format
from hf_elastic.export.outputs import predict
from hf_elastic.export.parity import INT8, ParityError, Tolerance


@pytest.fixture(scope="module")
def model():
    stock = randomize(AutoModelForSequenceClassification.from_config(config_of("bert")))
    return ElasticForSequenceClassification.from_base(stock, space=space_of("bert"))


class Echo(Format):
    """Writes the reference itself, shifted by the precision that is asked for."""

    name, description, options = "echo", "what came in", frozenset({"precision"})

    def write(self, export, folder):
        np.save(folder / "logits.npy", export.reference + float(export.options.get("precision", 0.0)))

    def load(self, export, folder):
        return lambda inputs: np.load(folder / "logits.npy")

    def evidence(self, export, folder):
        return {"files": sorted(path.name for path in folder.iterdir()), "before": list(export.written)}


class Loose(Echo):
    name = "loose"

    def tolerance(self, options):
        return Tolerance(max_relative_difference=10.0)

    def check(self, model, options):
        if options.get("precision") == "9":
            raise UserError(f"precision of {type(model).__name__} with {options}")


@pytest.fixture(autouse=True)
def _table(monkeypatch):
    """Formats of a test vanish with it."""
    for one in (Echo(), Loose()):
        monkeypatch.setitem(FORMATS, one.name, one)


def test_a_format_is_written_and_certified(model, tmp_path):
    records = export_subnet(model, {"num_hidden_layers": 2}, tmp_path / "out", ["echo"], precision="1e-6")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".hf-elastic.json", "echo"]
    assert records["echo"] == json.loads((tmp_path / "out" / "echo" / "parity.json").read_text())
    assert records["echo"]["files"] == ["config.json", "logits.npy"]
    assert 0 < records["echo"]["max_abs_difference"] < 1e-5


def test_a_format_sees_those_before_it(model, tmp_path):
    records = export_subnet(model, None, tmp_path / "out", ["loose", "echo", "safetensors"])
    assert list(records) == ["safetensors", "echo", "loose"]
    assert records["loose"]["before"] == ["safetensors", "echo"]


def test_tolerances_are_the_formats_own(model, tmp_path):
    record = export_subnet(model, None, tmp_path / "loose", ["loose"], precision="1")["loose"]
    assert record["tolerance"] == {"max_relative_difference": 10.0}
    with pytest.raises(ParityError, match="echo: the export differs"):
        export_subnet(model, None, tmp_path / "echo", ["echo"], precision="1")
    assert [path.name for path in tmp_path.iterdir()] == ["loose"]
    assert all((one.tolerance({}) == INT8) == ("int8" in name) for name, one in FORMATS.items() if name != "tensorrt")


def test_a_check_comes_before_any_work(model, tmp_path):
    with pytest.raises(ValueError, match=r"precision of ElasticForSequenceClassification with \{'precision': '9'\}"):
        export_subnet(model, None, tmp_path / "out", ["loose"], precision="9")
    assert list(tmp_path.iterdir()) == []


def test_a_config_and_fields_of_it_are_the_same(model, tmp_path):
    config = ExportConfig(["echo"], precision="1e-6")
    record = export_subnet(model, None, tmp_path / "one", config)["echo"]
    assert record == export_subnet(model, None, tmp_path / "two", ["echo"], precision="1e-6")["echo"]
    with pytest.raises(ParityError):
        export_subnet(model, None, tmp_path / "three", config, precision="1")


@pytest.mark.parametrize(
    ("names", "options", "error", "message"),
    [
        (["pdf", "echo"], {}, UserError, r"formats: 'pdf' is unknown; known: safetensors, onnx, onnx-int8"),
        ([], {}, UserError, "formats: none given; known: safetensors"),
        (["safetensors"], {"precision": "1"}, UserError, "precision: an option of tensorrt, echo, loose; formats: safetensors"),
        (["safetensors"], {"calibration": ["a"]}, UserError, "calibration: an option of onnx-int8, .*; formats: safetensors"),
        (["echo"], {"colour": "red"}, TypeError, "colour"),
    ],
)
def test_bad_input(model, tmp_path, names, options, error, message):
    with pytest.raises(error, match=message):
        export_subnet(model, None, tmp_path / "out", names, **options)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named_before_any_work(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnx needs onnxruntime, .* pip install 'hf-elastic\[(onnx|optimum)\]'"):
        export_subnet(model, None, tmp_path / "out", ["safetensors", "onnx"])
    assert list(tmp_path.iterdir()) == []


def test_every_option_is_one_of_the_config():
    fields = set(ExportConfig.__dataclass_fields__)
    assert all(one.options <= fields for one in FORMATS.values())


def test_predict_stacks_the_two_outputs_of_question_answering():
    class Spans:
        device = "cpu"

        def __call__(self, input_ids):
            return {"start_logits": input_ids.float(), "end_logits": -input_ids.float()}

    ids = torch.arange(6).reshape(2, 3)
    assert predict(Spans(), {"input_ids": ids}).shape == (2, 2, 3)

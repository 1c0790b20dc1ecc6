"""The table of formats: what `export_subnet` and the command line make of a format that is registered."""

import json
import sys

import numpy as np
import pytest
from tiny import config_of, randomize, space_of
from transformers import AutoModelForSequenceClassification

from hf_elastic import ElasticForSequenceClassification
from hf_elastic.cli.export import ExportArguments
from hf_elastic.export import FORMATS, export_subnet, formats
from hf_elastic.export.formats import Format, register
from hf_elastic.export.outputs import predict
from hf_elastic.export.parity import ParityError, Tolerance


@pytest.fixture(scope="module")
def model():
    stock = randomize(AutoModelForSequenceClassification.from_config(config_of("bert")))
    return ElasticForSequenceClassification.from_base(stock, space=space_of("bert"))


@pytest.fixture
def table(monkeypatch):
    """Formats of a test vanish with it."""
    monkeypatch.setattr(formats, "FORMATS", dict(FORMATS))
    return formats.FORMATS


def echo(**changes) -> Format:
    """A format that writes the reference itself, shifted by the option `shift`."""

    def write(export, folder):
        np.save(folder / "logits.npy", export.reference + export.options.get("shift", 0.0))

    settings = {
        "name": "echo", "description": "what came in", "write": write, "options": frozenset({"shift"}),
        "run": lambda export, folder: np.load(folder / "logits.npy"),
    }  # fmt: skip
    return Format(**{**settings, **changes})


def test_a_registered_format_is_written_and_certified(model, table, tmp_path):
    register(echo(evidence=lambda export, folder: {"files": sorted(path.name for path in folder.iterdir())}))
    records = export_subnet(model, {"num_hidden_layers": 2}, tmp_path / "out", ["echo"], shift=1e-6)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["echo"]
    assert records["echo"] == json.loads((tmp_path / "out" / "echo" / "parity.json").read_text())
    assert records["echo"]["files"] == ["config.json", "logits.npy"]
    assert 0 < records["echo"]["max_abs_difference"] < 1e-5


def test_a_format_sees_those_before_it(model, table, tmp_path):
    seen = {}
    register(echo())
    register(echo(name="second", run=lambda export, folder: seen.update(export.written) or export.reference))
    export_subnet(model, None, tmp_path / "out", ["second", "echo", "safetensors"])
    assert list(seen) == ["safetensors", "echo"]
    assert seen["echo"].name == "echo"


def test_tolerances_are_the_formats_own(model, table, tmp_path):
    register(echo())
    register(echo(name="loose", tolerance=Tolerance(max_relative_difference=10.0)))
    record = export_subnet(model, None, tmp_path / "loose", ["loose"], shift=1.0)["loose"]
    assert record["tolerance"] == {"max_relative_difference": 10.0}
    with pytest.raises(ParityError, match="echo: the export differs"):
        export_subnet(model, None, tmp_path / "echo", ["echo"], shift=1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["loose"]


def test_a_check_comes_before_any_work(model, table, tmp_path):
    def check(model, subnet, options):
        raise ValueError(f"subnet {subnet} with {options}")

    register(echo(check=check))
    with pytest.raises(ValueError, match=r"subnet None with \{'shift': 2\}"):
        export_subnet(model, None, tmp_path / "out", ["echo"], shift=2)
    assert list(tmp_path.iterdir()) == []


def test_names_are_unique(table):
    register(echo())
    with pytest.raises(ValueError, match="'echo' exists already"):
        register(echo())


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["pdf", "echo"], {}, r"formats: 'pdf' is unknown; known: safetensors, onnx, onnx-int8"),
        ([], {}, "formats: none given; known: safetensors"),
        (["safetensors"], {"shift": 1}, "shift: an option of echo; formats: safetensors"),
        (["echo"], {"colour": "red"}, "colour: no format has this option; formats: echo"),
    ],
)
def test_bad_input(model, table, tmp_path, names, options, message):
    register(echo())
    with pytest.raises(ValueError, match=message):
        export_subnet(model, None, tmp_path / "out", names, **options)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named_before_any_work(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnx needs onnxruntime, .* pip install 'hf-elastic\[(onnx|optimum)\]'"):
        export_subnet(model, None, tmp_path / "out", ["safetensors", "onnx"])
    assert list(tmp_path.iterdir()) == []


def test_every_option_is_one_of_the_command(model, tmp_path):
    fields = set(ExportArguments.__dataclass_fields__)
    assert all(one.options <= fields for one in FORMATS.values())


def test_predict_stacks_the_two_outputs_of_question_answering():
    class Spans:
        device = "cpu"

        def __call__(self, input_ids):
            return {"start_logits": input_ids.float(), "end_logits": -input_ids.float()}

    import torch

    ids = torch.arange(6).reshape(2, 3)
    assert predict(Spans(), {"input_ids": ids}).shape == (2, 2, 3)

"""A checkpoint that is broken, contradicts itself or is not there: one error that names the file or the value."""

import json

import pytest
import torch
from elastic_heads import says
from safetensors.torch import load_file, save_file
from tiny import config_of
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from hf_elastic import ElasticForMaskedLM, ElasticForSequenceClassification
from hf_elastic.core.errors import UserError

SPACE = {"num_hidden_layers": [2, 4], "intermediate_size": [16, 48]}
LOADERS = [ElasticForMaskedLM, AutoModelForMaskedLM]


@pytest.fixture(scope="module")
def bert():
    return ElasticForMaskedLM.from_base(AutoModelForMaskedLM.from_config(config_of("bert")), space=SPACE, subnets={"small": {}})


@pytest.fixture
def checkpoint(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("loader", LOADERS)
def test_truncated_weights(checkpoint, loader):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(OSError, match=says(checkpoint, "truncated")):
        loader.from_pretrained(checkpoint)
    weights.write_bytes(b"")
    with pytest.raises(OSError, match=says(checkpoint, "truncated")):
        loader.from_pretrained(checkpoint)


@pytest.mark.parametrize("loader", LOADERS)
def test_tensor_of_another_shape(checkpoint, loader):
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    tensors = load_file(checkpoint / "model.safetensors")
    save_file({**tensors, name: torch.zeros(40, 32)}, checkpoint / "model.safetensors", metadata={"format": "pt"})
    for dtype in (None, torch.float32):
        with pytest.raises(ValueError, match=says("do not fit")) as error:
            loader.from_pretrained(checkpoint, dtype=dtype)
        for part in (checkpoint, name, "40, 32", "48, 32"):
            assert str(part) in str(error.value)
    ignored = loader.from_pretrained(checkpoint, ignore_mismatched_sizes=True)
    assert ignored.bert.encoder.layer[1].intermediate.dense.weight.shape == (48, 32)


@pytest.mark.parametrize("loader", LOADERS)
def test_other_labels_than_the_checkpoint(loader, checkpoint):
    model = ElasticForSequenceClassification.from_pretrained(checkpoint, num_labels=4)
    model.save_pretrained(checkpoint / "four")
    auto = AutoModelForSequenceClassification if loader is AutoModelForMaskedLM else ElasticForSequenceClassification
    with pytest.raises(ValueError, match=says("do not fit", "classifier.")):
        auto.from_pretrained(checkpoint / "four", num_labels=5)
    resized = auto.from_pretrained(checkpoint / "four", num_labels=5, ignore_mismatched_sizes=True)
    assert resized.classifier.weight.shape == (5, 32)


def test_config_contradicts_its_weights(checkpoint):
    edit_config(checkpoint, lambda config: config["base_config"].update(intermediate_size=64))
    with pytest.raises(ValueError, match=says("bert.encoder.layer.0.intermediate.dense")):
        ElasticForMaskedLM.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("space", {"intermediate_size": [16, 96]}, says("intermediate_size", 96, 48)),
        ("space", [2], says("space", "map")),
        ("subnets", {"small": {"num_attention_heads": 8}}, says("subnets.small", "num_attention_heads", 8, 4)),
        ("subnet", "middle", says("'middle'", "largest, smallest")),
        ("layer_order", [0, 1, 2], says("layer_order", "[0, 1, 2]", "4 layers")),
        ("frozen", {"intermediate_size": 16}, says("do not fit", "intermediate.dense")),
    ],
)
def test_config_with_impossible_parts(checkpoint, key, value, message):
    edit_config(checkpoint, lambda config: config.update({"subnets": {}, key: value}))
    with pytest.raises(ValueError, match=message):
        ElasticForMaskedLM.from_pretrained(checkpoint)


def test_unknown_subnet_on_loading(checkpoint):
    for loader in LOADERS:
        with pytest.raises(ValueError, match=says("'middle'", "largest, smallest, small")):
            loader.from_pretrained(checkpoint, subnet="middle")


@pytest.mark.parametrize("missing", ["./nope", "~/nope", "a/b/nope", "{absolute}"])
def test_missing_folder(missing, tmp_path, monkeypatch):
    def no_network(*_args, **_kwargs):
        raise AssertionError("tried to reach the Hub")

    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    name = missing.format(absolute=tmp_path / "nope")
    for load in (ElasticForMaskedLM.from_base, ElasticForMaskedLM.from_pretrained):
        with pytest.raises(FileNotFoundError, match=says(name)):
            load(name)


def test_a_stock_checkpoint(tmp_path):
    AutoModelForMaskedLM.from_config(config_of("bert")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"not that of an elastic model: make one of a stock checkpoint with from_base"):
        ElasticForMaskedLM.from_pretrained(tmp_path)


def test_missing_path_object(tmp_path):
    for load in (ElasticForMaskedLM.from_base, ElasticForMaskedLM.from_pretrained):
        with pytest.raises(FileNotFoundError, match=says(tmp_path / "nope")):
            load(tmp_path / "nope")


def test_folder_without_a_checkpoint(tmp_path):
    for load in (ElasticForMaskedLM.from_base, ElasticForMaskedLM.from_pretrained):
        # transformers raises one or the other, by release and Auto class
        with pytest.raises((OSError, ValueError), match=says(tmp_path)):
            load(tmp_path)


def test_no_weights(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(OSError, match=says("model.safetensors", checkpoint)):
        ElasticForMaskedLM.from_pretrained(checkpoint)


def test_broken_json(checkpoint):
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(OSError, match=says("config.json")):
        ElasticForMaskedLM.from_pretrained(checkpoint)


def test_frozen_checkpoint_has_one_size(bert, tmp_path):
    bert.extract({"layers": [0, 2], "intermediate_size": [16, 33]}).save_pretrained(tmp_path)
    frozen = ElasticForMaskedLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=says("cut to", "[16, 33]", "no other size")):
        frozen.view({"num_hidden_layers": 1})

"""`full`, `largest` and `smallest` mean the same everywhere, and what an elastic model says of itself and of wrong objects."""

import json

import pytest
import torch
from tiny import batch, config_of
from transformers import AutoConfig, AutoModelForSequenceClassification

from hf_elastic import ElasticConfig, ElasticForSequenceClassification, Subnet
from hf_elastic.cli.data import load_elastic
from hf_elastic.cli.main import main
from hf_elastic.core.configuration_elastic import RESERVED_NAMES
from hf_elastic.core.errors import UserError

SPACE = {"num_hidden_layers": [1, 2, 3], "intermediate_size": [16, 32]}  # does not reach up to the full size
SUBNETS = {"small": {"num_hidden_layers": 1}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_config(config_of("bert", num_labels=2))
    folder = tmp_path_factory.mktemp("reserved")
    ElasticForSequenceClassification.from_base(base, SPACE, SUBNETS).save_pretrained(folder)
    return folder


def test_full_is_all_of_the_supernet_and_largest_the_end_of_the_space(folder):
    model = ElasticForSequenceClassification.from_pretrained(folder)
    assert model.resolve("full") == model.resolve(None) != model.resolve("largest") == model.resolve(model.space.largest)
    assert model.resolve("smallest") == model.resolve(model.space.smallest)
    assert model.view("full") is model.view(None)
    assert model.num_parameters_of(["full", "largest"]).tolist() == [
        model.num_parameters(),
        model.num_parameters_of(model.space.largest),
    ]
    with torch.no_grad():
        expected = model(**batch()).logits
        model.select("full")
        assert model(**batch()).logits.equal(expected)
    again = AutoModelForSequenceClassification.from_pretrained(folder, subnet="full")
    with torch.no_grad():
        torch.testing.assert_close(again(**batch()).logits, expected)
    frozen = model.extract({"intermediate_size": [16, 16, 32, 32]})
    assert frozen.resolve("full") == frozen.resolve("largest") == frozen.resolve("smallest") == frozen.frozen_cut


@pytest.mark.parametrize("name", RESERVED_NAMES)
def test_no_size_of_a_user_has_such_a_name(name, folder, tmp_path, capsys):
    """When it is made, set, converted, and in the config of an older checkpoint."""
    message = f"the name '{name}' is reserved: full is the whole supernet, largest and smallest"
    sizes = {name: SUBNETS["small"]}
    with pytest.raises(UserError, match=message):
        ElasticConfig(config_of("bert"), subnets=sizes)
    config = ElasticConfig.from_pretrained(folder)
    with pytest.raises(UserError, match=message):
        config.subnets = sizes
    options = ["--model", "x", "--subnets", json.dumps(sizes), "--dry_run", "--output_dir", str(tmp_path / "out")]
    assert main(["convert", *options]) == 2 and message in capsys.readouterr().err
    values = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "subnets": sizes}))
    with pytest.raises(UserError, match=message):
        AutoConfig.from_pretrained(tmp_path)


def test_a_model_says_its_sizes_and_which_one_is_selected(folder):
    model = ElasticForSequenceClassification.from_pretrained(folder)
    lines = repr(model).splitlines()
    assert lines[:2] == [
        "ElasticForSequenceClassification(",
        "  BertForSequenceClassification of 6 sizes, selected: the full one",
    ]
    assert "(classifier): Linear" in repr(model)
    model.select("small")
    assert "selected: small\n" in repr(model)
    model.select({"intermediate_size": 16})
    assert "selected: {'intermediate_size': 16}\n" in repr(model)
    assert "out_features=16" in repr(model.view("smallest"))


def test_wrong_objects_are_not_printed_whole(folder):
    model = ElasticForSequenceClassification.from_pretrained(folder)
    cases = {
        "is not a subnet: give a name, a mapping": lambda: model.resolve(model.base),
        "a subnet maps axes to values, got": lambda: Subnet(model.base),
        "the space must map axes to lists of values, got": lambda: type(model.space).from_dict(model.base),
        "a checkpoint is a Hub id or a folder, not a Linear": lambda: type(model).from_base(model.base.classifier),
    }
    for message, call in cases.items():
        with pytest.raises(UserError, match=message) as error:
            call()
        assert len(str(error.value)) < 200


def test_a_config_that_cannot_be_used_is_one_error(tmp_path):
    for text in ("{}", '{"model_type": "unheard_of"}'):
        (tmp_path / "config.json").write_text(text)
        for load in (ElasticForSequenceClassification.from_base, load_elastic):
            with pytest.raises(UserError, match=r"the config of .* cannot be used"):
                load(str(tmp_path))

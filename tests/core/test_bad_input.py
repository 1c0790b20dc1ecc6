"""Every kind of bad input gets one error that names the value and says what is allowed."""

import pytest
from elastic_heads import says
from tiny import config_of
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    T5Config,
)

from hf_elastic import (
    ElasticConfig,
    ElasticForCausalLM,
    ElasticForMaskedLM,
    ElasticForSequenceClassification,
    ElasticModel,
    Space,
    Subnet,
)
from hf_elastic.core.shapes import SpecError

SPACE = {"num_hidden_layers": [2, 4], "intermediate_size": [16, 48]}


@pytest.fixture(scope="module")
def bert():
    return ElasticForMaskedLM.from_base(AutoModelForMaskedLM.from_config(config_of("bert")), space=SPACE, subnets={"small": {}})


@pytest.fixture(scope="module")
def llama():
    return ElasticForCausalLM.from_base(AutoModelForCausalLM.from_config(config_of("llama")), space=SPACE)


AXES = "num_hidden_layers, layers, hidden_size, num_attention_heads, num_key_value_heads, intermediate_size"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 3}, says("width", AXES)),
        ({"intermediate_size": 0}, says("intermediate_size", "0", "smallest possible value is 1")),
        ({"intermediate_size": 16.0}, says("intermediate_size", "16.0", "not an integer")),
        ({"intermediate_size": True}, says("intermediate_size", "True", "not an integer")),
        ({"intermediate_size": []}, says("intermediate_size", "[]", "at least one integer")),
        ({"hidden_size": [16, 16]}, says("hidden_size", "[16, 16]", "one value for the whole model")),
        ({"num_hidden_layers": 2, "layers": [0, 1]}, says("num_hidden_layers or layers, not both")),
        ({"layers": 2}, says("layers", "2", "list of at least one integer")),
        ({"layers": [2, 1]}, says("layers", "[2, 1]", "increasing, each index once")),
        ({"layers": [-1, 1]}, says("layers", "-1", "smallest possible value is 0")),
    ],
)
def test_subnet_values(values, message):
    with pytest.raises(ValueError, match=message):
        Subnet(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, says("the space is empty", AXES)),
        ({"width": [3]}, says("width", AXES)),
        ({"intermediate_size": "16"}, says("intermediate_size", "'16'", "list of at least one allowed value")),
        ({"intermediate_size": [16, 1.5]}, says("intermediate_size", "1.5", "not an integer")),
        ({"intermediate_size": [[16, 16]]}, says("intermediate_size", "flat list", "per_layer")),
        ({"layers": [0, 1]}, says("layers", "0", "list of at least one integer")),
        ({"layers": [[0]], "num_hidden_layers": [1]}, says("not both")),
        ({"num_hidden_layers": [2], "per_layer": ["hidden_size"]}, says("per_layer", "hidden_size", "whole model")),
        ({"num_hidden_layers": [2], "per_layer": ["width"]}, says("per_layer", "'width'", "num_hidden_layers")),
        ({"num_hidden_layers": [2], "per_layer": "intermediate_size"}, says("per_layer", "'intermediate_size'", "list")),
        ({"intermediate_size": [16], "per_layer": ["intermediate_size"]}, says("per_layer", "num_hidden_layers or layers")),
        ({"num_attention_heads": [3], "num_key_value_heads": [2]}, says("[3]", "[2]", "divides")),
        (
            {"layers": [[0]], "per_layer": ["num_attention_heads"], "num_attention_heads": [4], "num_key_value_heads": [2]},
            says("per_layer", "both num_attention_heads and num_key_value_heads"),
        ),
    ],
)
def test_space_values(values, message):
    with pytest.raises(ValueError, match=message):
        Space.from_dict(values)


def test_space_is_not_a_mapping():
    with pytest.raises(ValueError, match=says("space", "map", "[1, 2]")):
        Space.from_dict([1, 2])


@pytest.mark.parametrize(
    ("subnet", "message"),
    [
        ({"intermediate_size": 49}, says("intermediate_size", 49, 48)),
        ({"layers": [0, 4]}, says("layers", 4, "layers 0 to 3")),
        ({"num_hidden_layers": 3, "intermediate_size": [16, 16]}, says("intermediate_size", "[16, 16]", "2 values", "3 kept")),
        ({"num_key_value_heads": 2}, says("num_key_value_heads", "bert", "hidden_size, num_attention_heads, intermediate_size")),
        ("tiny", says("'tiny'", "largest, smallest, small")),
        (7, says("7", "name", "None")),
    ],
)
def test_subnet_of_a_model(bert, subnet, message):
    for use in (bert.resolve, bert.view, bert.select, bert.extract, bert.portability_of, bert.num_parameters_of):
        with pytest.raises(ValueError, match=message):
            use(subnet)


@pytest.mark.parametrize(
    ("subnet", "message"),
    [
        ({"num_attention_heads": 3}, says("num_attention_heads", 3, "2 key-value heads", "multiple")),
        ({"num_attention_heads": 4, "num_key_value_heads": 1}, says("num_attention_heads", 4, "1 key-value heads", "at most 2")),
    ],
)
def test_grouped_heads(llama, subnet, message):
    with pytest.raises(ValueError, match=message):
        llama.view(subnet)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"space": {"intermediate_size": [16, 96]}}, says("space", "intermediate_size", 96, 48)),
        ({"space": {"num_key_value_heads": [2]}}, says("num_key_value_heads", "its axes")),
        ({"space": SPACE, "subnets": {"wide": {"intermediate_size": 96}}}, says("subnets.wide", "intermediate_size", 96, 48)),
        ({"space": SPACE, "subnets": {"odd": {"width": 96}}}, says("subnets.odd", "width", AXES)),
        ({"space": SPACE, "importance": "fisher"}, says("importance", "'fisher'", "activation, magnitude, taylor, none")),
        ({"space": SPACE, "num_labels": 3}, says("num_labels", "ready model")),
    ],
)
def test_from_base_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ElasticForMaskedLM.from_base(AutoModelForMaskedLM.from_config(config_of("bert")), **arguments)


def tiny_model(config_class):
    sizes = {"d_model": 16, "d_ff": 32, "num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "num_heads": 2}
    return AutoModel.from_config(config_class(vocab_size=20, embedding_size=8, intermediate_size=16, **sizes))


@pytest.mark.parametrize("config_class", [T5Config, AlbertConfig])
def test_architecture_without_a_spec(config_class, tmp_path):
    model = tiny_model(config_class)
    model.save_pretrained(tmp_path)
    message = says(repr(config_class.model_type), "distilbert, electra", "CONTRIBUTING.md")
    for base in (model, tmp_path, str(tmp_path)):
        for elastic_class in (ElasticModel, ElasticForCausalLM):
            with pytest.raises(SpecError, match=message):
                elastic_class.from_base(base, space=SPACE)
    with pytest.raises(SpecError, match=message):
        AutoModel.from_config(ElasticConfig(base_config=model.config))


def test_model_type_that_transformers_does_not_know():
    with pytest.raises(ValueError, match=says("base_config", "'alien'")):
        ElasticConfig(base_config={"model_type": "alien"})
    with pytest.raises(ValueError, match=says("base_config", "str")):
        ElasticConfig(base_config="bert")


def test_task_without_a_head(tmp_path):
    AutoModel.from_config(config_of("distilbert")).save_pretrained(tmp_path)
    heads = ("ElasticModel", "ElasticForMaskedLM", "ElasticForSequenceClassification")
    with pytest.raises(ValueError, match=says("distilbert", "ElasticForCausalLM", *heads)):
        ElasticForCausalLM.from_base(str(tmp_path), space=SPACE)
    ElasticModel.from_base(str(tmp_path), space=SPACE).save_pretrained(tmp_path / "elastic")
    with pytest.raises(ValueError, match=says("distilbert", "ElasticForCausalLM", *heads)):
        AutoModelForCausalLM.from_pretrained(tmp_path / "elastic")


def test_base_of_another_head_and_elastic_base(bert, tmp_path):
    with pytest.raises(ValueError, match=says("BertForSequenceClassification", "BertForMaskedLM")):
        ElasticForSequenceClassification.from_base(bert.base, space=SPACE)
    bert.save_pretrained(tmp_path)
    for base in (bert, tmp_path):
        with pytest.raises(ValueError, match=says("elastic already", "ElasticForMaskedLM.from_pretrained")):
            ElasticForMaskedLM.from_base(base, space=SPACE)

"""The matrix of `docs/features.md`: every feature on an elastic model, on a selected size and on a frozen checkpoint."""

import copy
import inspect
import itertools
import re
from pathlib import Path

import features
import pytest
import torch
from features import logits
from tiny import config_of, randomize
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_elastic import ElasticForCausalLM, ElasticForSequenceClassification

SMALL = {"num_hidden_layers": 2, "intermediate_size": 16}
MIXED = {"layers": [0, 2], "intermediate_size": [16, 33]}
STATES = ("elastic", "selected", "frozen")
HEADS = {
    "bert": (ElasticForSequenceClassification, AutoModelForSequenceClassification),
    "llama": (ElasticForCausalLM, AutoModelForCausalLM),
}
DECODERS_ONLY = ("generation", "static_cache", "assisted_generation", "cache_under_any_name", "prefixes_of_peft")
CHECKS = [
    name
    for name, check in vars(features).items()
    if inspect.isfunction(check) and [*inspect.signature(check).parameters][:2] == ["model", "twin"] and name != "assert_alike"
]


def make(model_type, state):
    """A model in a state, and a model of the same size and weights that is not ours, or is a view of another one."""
    torch.manual_seed(0)
    elastic_class, auto_class = HEADS[model_type]
    changes = {} if model_type == "llama" else {"num_labels": 3}
    base = randomize(auto_class.from_config(config_of(model_type, **changes)))
    stock = copy.deepcopy(base).eval()
    supernet = elastic_class.from_base(
        base, space={"num_hidden_layers": [2, 4], "intermediate_size": [16, 48]}, importance="none"
    )
    if state == "elastic":
        return supernet, stock
    if state == "selected":
        supernet.select(SMALL)
        return supernet, supernet.extract(SMALL)
    return supernet.extract(MIXED), copy.deepcopy(supernet).view(MIXED)


# Compiling takes half a minute: one case of it is quick.
CASES = [
    pytest.param(
        *case, marks=pytest.mark.slow if case[0].startswith("compiled") and case[2] != "elastic" else (), id="-".join(case)
    )
    for case in itertools.product(CHECKS, HEADS, STATES)
]


@pytest.mark.parametrize(("name", "model_type", "state"), CASES)
def test_feature(name, model_type, state, tmp_path):
    if name in DECODERS_ONLY and model_type != "llama":
        pytest.skip("for decoders")
    check = getattr(features, name)
    arguments = [tmp_path] if "folder" in inspect.signature(check).parameters else []
    model, twin = make(model_type, state)
    torch.testing.assert_close(logits(model), logits(twin), atol=1e-5, rtol=0)
    check(model, twin, *arguments)


@pytest.mark.parametrize("name", CHECKS)
def test_docs_have_a_row_for_it(name):
    page = Path(__file__).parents[2] / "docs" / "features.md"
    assert re.search(rf"`{name}`", page.read_text(encoding="utf-8")), f"docs/features.md has no row for {name}"

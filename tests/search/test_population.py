"""Populations as arrays, against sizes one by one."""

import numpy as np
import pytest
import torch
from tiny import config_of, space_of

from hf_elastic import ElasticConfig, ElasticForCausalLM, Space
from hf_elastic.core.partition import partition_heads
from hf_elastic.core.spec import SPECS
from hf_elastic.measure.cost_model import CostModel, features
from hf_elastic.search.encoding import Encoding
from hf_elastic.search.population import Known, population
from hf_elastic.search.proxies.table import CLOSED_FORMS, closed_form

pytestmark = pytest.mark.one_lane

PARTITIONED = {**space_of("gpt2"), "num_attention_heads": [1, 2, 4], "hidden_size": [16, 24, 32]}
CASES = {
    "heads dropped": ("gpt2", space_of("gpt2"), {}),
    "heads partitioned": ("gpt2", PARTITIONED, {"spec": partition_heads(SPECS["gpt2"]).to_dict()}),
    "Transformer-XL": ("transformer_xl", PARTITIONED, {"spec": partition_heads(SPECS["transformer_xl"]).to_dict()}),
    "pairs of head counts": ("llama", space_of("llama"), {}),
    "first and last layers": ("gpt2", space_of("gpt2"), {"layer_order": [0, 3, 1, 2]}),
    "sets of layers": ("gpt2", {"layers": [[0, 3], [1], [0, 1, 2, 3]], "intermediate_size": [7, 48]}, {}),
    "heads follow the width": ("gpt2", {"hidden_size": [16, 32], "head_size": 8, "num_hidden_layers": [2, 4]}, {}),
    "one axis": ("llama", {"num_attention_heads": [2, 4]}, {}),
}


def model_of(model_type, space, options):
    with torch.device("meta"):
        return ElasticForCausalLM(ElasticConfig(base_config=config_of(model_type), space=space, **options))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_population_is_its_sizes(case):
    model = model_of(*case)
    encoding = Encoding(model.space.genes())
    places = np.unique(encoding.sample(np.random.default_rng(0), 60), axis=0)
    subnets = [model.space.from_genes(encoding.chosen(row)) for row in places]
    weights = np.random.default_rng(1).random(features(model, subnets[:1]).shape[1])
    known = Known(model, {"latency_ms": CostModel(weights, 0.0, 1.0, 8)}, 2, 7)
    found = known(population(model, model.space, encoding, places), known.names)
    assert np.array_equal(found["parameters"], model.num_parameters_of(subnets))
    assert np.array_equal(found["flops"], model.flops_of(subnets, 2, 7))
    assert np.allclose(found["latency_ms"], features(model, subnets) @ weights)
    for name, values in closed_form(model, subnets).items():
        assert np.allclose(found[name], values), name
    assert set(known(population(model, model.space, encoding, places), ["flops", "accuracy"])) == {"flops"}
    assert set(CLOSED_FORMS) <= set(known.names)
    assert isinstance(model.space, Space) and len({tuple(v) for v in places.tolist()}) == len(places)

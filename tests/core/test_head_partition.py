"""Heads that partition the hidden size anew: more heads are narrower ones, and no parameter changes."""

import json
import random

import numpy as np
import pytest
import torch
from tiny import CONFIGS, DECODERS, ENCODERS, backbones, batch, config_of, randomize
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
from zeroing import keep_only

from hf_elastic import ElasticForCausalLM, ElasticForMaskedLM, Space
from hf_elastic.core.importance import apply_order, importance_order
from hf_elastic.core.partition import partition_heads
from hf_elastic.core.spec import SPECS
from hf_elastic.measure.cost_model import features
from hf_elastic.search.proxies.shapes import gpt2_shapes, shapes_of, transfo_xl_shapes
from hf_elastic.search.proxies.table import closed_form
from hf_elastic.training.relations import Projections

ABLE = tuple(name for name in CONFIGS if SPECS[name].head_attributes)
SPACE = {
    "num_hidden_layers": [1, 2, 3, 4],
    "hidden_size": [16, 24, 32],
    "num_attention_heads": [1, 2, 4],
    "intermediate_size": [7, 16, 48],
    "per_layer": ["num_attention_heads", "intermediate_size"],
}
UNEQUAL = {"num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": [4, 1, 2], "intermediate_size": [48, 7, 16]}
TOLERANCE = 1e-5
SAYS_LAYERS = "transformer_xl"  # its config takes lists with one entry per layer


def stock_of(model_type, **changes):
    auto = AutoModelForMaskedLM if model_type in ENCODERS else AutoModelForCausalLM
    return randomize(auto.from_config(config_of(model_type, **changes)))


def elastic_of(model_type, space=SPACE, **options):
    elastic = ElasticForMaskedLM if model_type in ENCODERS else ElasticForCausalLM
    changes = options.pop("changes", {})
    return elastic.from_base(stock_of(model_type, **changes), space=space, importance="none", head_partition=True, **options)


def subnets_of(model, count=12):
    generator = random.Random(0)
    return [model.space.largest, model.space.smallest, UNEQUAL, *(model.space.sample(generator) for _ in range(count))]


@pytest.mark.parametrize("model_type", backbones(ABLE))
@pytest.mark.parametrize("heads", [1, 2, 4])
@torch.no_grad()
def test_a_size_is_the_stock_model_with_so_many_heads(model_type, heads):
    model = elastic_of(model_type)
    field = next(field for field, value in SPECS[model_type].config.items() if value == "heads")
    stock = stock_of(model_type, **{field: heads})
    shapes = {name: tensor.shape for name, tensor in stock.state_dict().items()}
    stock.load_state_dict({name: tensor.reshape(shapes[name]) for name, tensor in model.base.state_dict().items()})
    subnet = {"num_attention_heads": heads}
    assert model.num_parameters_of(subnet) == model.num_parameters_of(None) == stock.num_parameters()
    torch.testing.assert_close(model.view(subnet)(**batch()).logits, stock(**batch()).logits, atol=TOLERANCE, rtol=0)
    if heads < 4:  # the number of heads is no detail
        assert (model.view(subnet)(**batch()).logits - model(**batch()).logits).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("model_type", backbones(ABLE))
@torch.no_grad()
def test_views_extracts_and_portability(model_type):
    model = elastic_of(model_type)
    for seed, subnet in enumerate(subnets_of(model)):
        extracted = model.extract(subnet)
        expected = "standard" if model.resolve(subnet).is_uniform or model_type == SAYS_LAYERS else "elastic"
        assert model.portability_of(subnet) == expected, model.why_elastic(subnet)
        assert isinstance(extracted, type(model.base)) == (expected == "standard")
        logits = model.view(subnet)(**batch(seed=seed)).logits
        torch.testing.assert_close(logits, extracted(**batch(seed=seed)).logits, atol=TOLERANCE, rtol=0)
        assert model.portability_of(model.nearest_standard(subnet)) == "standard"


@pytest.mark.parametrize("model_type", backbones(ABLE))
@torch.no_grad()
def test_counts_are_exact(model_type):
    model = elastic_of(model_type, changes={"attn_implementation": "eager"})
    subnets = [model.subnet(subnet) for subnet in subnets_of(model)]
    inputs = {"input_ids": batch(length=7, rows=2)["input_ids"]}
    parameters, flops = model.num_parameters_of(subnets), model.flops_of(subnets, batch_size=2, sequence_length=7)
    for index, subnet in enumerate(subnets):
        view = model.view(subnet)
        assert parameters[index] == sum(p.numel() for p in view.parameters()), subnet
        with FlopCounterMode(display=False) as counter:
            view(**inputs)
        assert flops[index] == counter.get_total_flops(), subnet


@pytest.mark.parametrize("model_type", backbones(ABLE))
@torch.no_grad()
def test_saved_and_loaded(model_type, tmp_path):
    model = elastic_of(model_type, subnets={"small": UNEQUAL})
    expected = model.view("small")(**batch()).logits
    model.save_pretrained(tmp_path / "supernet")
    again = type(model).from_pretrained(tmp_path / "supernet", subnet="small")
    torch.testing.assert_close(again(**batch()).logits, expected, atol=TOLERANCE, rtol=0)
    model.extract("small").save_pretrained(tmp_path / "frozen")
    auto = AutoModelForMaskedLM if model_type in ENCODERS else AutoModelForCausalLM
    frozen = auto.from_pretrained(tmp_path / "frozen")
    torch.testing.assert_close(frozen(**batch()).logits, expected, atol=TOLERANCE, rtol=0)
    assert frozen.num_parameters() == model.num_parameters_of("small")
    assert json.loads((tmp_path / "frozen" / "config.json").read_text())["model_type"] == (
        SAYS_LAYERS if model_type == SAYS_LAYERS else "elastic"
    )


@pytest.mark.parametrize("model_type", backbones([name for name in ABLE if name in DECODERS]))
@torch.no_grad()
def test_generation_with_a_cache_of_other_heads_in_each_layer(model_type):
    model = elastic_of(model_type)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    inputs = batch(left=True)
    cached = model.view(UNEQUAL).generate(**inputs, **options, use_cache=True)
    assert torch.equal(cached, model.view(UNEQUAL).generate(**inputs, **options, use_cache=False))
    assert torch.equal(cached, model.extract(UNEQUAL).generate(**inputs, **options))


@pytest.mark.parametrize("model_type", backbones(ABLE))
def test_gradients_reach_only_the_slice(model_type):
    model = elastic_of(model_type).train()
    model.select(UNEQUAL)
    model(**batch(), labels=batch()["input_ids"]).loss.backward()
    cut = model.resolve(UNEQUAL)
    reached = set()
    for entry in model.layout.entries:
        gradient = model.get_parameter(entry.name).grad
        if entry.tied_to is not None or gradient is None:
            continue
        assert entry.layer is None or entry.layer in cut.layers
        kept = cut.sizes(None if entry.layer is None else cut.layers.index(entry.layer))
        assert torch.equal(gradient, keep_only(gradient, entry.dims, model.layout.full, kept)), entry.name
        if gradient.abs().max() > 0:
            reached.add(entry.layer)
    assert reached >= set(cut.layers)


@pytest.mark.parametrize("model_type", backbones(ABLE))
@torch.no_grad()
def test_ranking_changes_no_head_count_of_the_full_width(model_type):
    """Channels within attention keep their places: which of them are one head depends on the size."""
    model = elastic_of(model_type)
    subnets = [{"num_attention_heads": heads} for heads in (1, 2, 4)]
    before = [model.view(subnet)(**batch()).logits for subnet in subnets]
    order = importance_order(model)
    assert {axis for axis, _ in order} == {"hidden", "ffn"}
    assert any((indices != np.sort(indices)).any() for (axis, _), indices in order.items() if axis == "hidden")
    apply_order(model, order)
    for subnet, logits in zip(subnets, before):
        torch.testing.assert_close(model.view(subnet)(**batch()).logits, logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("model_type", "shapes"), [("gpt2", gpt2_shapes), ("transformer_xl", transfo_xl_shapes)])
def test_proxies_see_attention_and_its_heads(model_type, shapes):
    model = elastic_of(model_type)
    subnets = [model.subnet(subnet) for subnet in subnets_of(model)]
    depths = [subnet["num_hidden_layers"] for subnet in subnets]

    def column(axis):
        rows = [subnet[axis] if isinstance(subnet[axis], tuple) else (subnet[axis],) * d for subnet, d in zip(subnets, depths)]
        return np.array([[*row, *[0] * (4 - len(row))] for row in rows])

    expected = shapes(
        np.array([subnet["hidden_size"] for subnet in subnets]), column("intermediate_size"), column("num_attention_heads")
    )
    found = shapes_of(model, subnets)
    for part in ("attention", "ffn", "other", "final"):
        assert np.array_equal(getattr(found, part), getattr(expected, part)), part
    assert np.array_equal(found.heads, expected.heads * (expected.ffn > 0))
    few, many = ({"num_attention_heads": heads} for heads in (1, 4))
    values = closed_form(model, [few, many], ["decoder_parameters", "layer_capacity"])
    assert values["decoder_parameters"][0] == values["decoder_parameters"][1]
    assert values["layer_capacity"][0] < values["layer_capacity"][1]
    # A cost may depend on heads, and on the square of the hidden size alone.
    rows = features(model, [few, many, {"hidden_size": 16}])
    assert not np.array_equal(rows[0], rows[1])
    assert np.isclose(rows[2], 1 / 4).any()


def test_relations_of_a_size():
    model = elastic_of("gpt2")
    projections = Projections(model.layout, model.base)
    cut = model.resolve(UNEQUAL)
    with projections.record(model.view(UNEQUAL), model.layout.sizes(cut, 2), 3) as found:
        model.view(UNEQUAL)(**batch())
    assert {role: tensor.shape[-1] for role, tensor in found.items()} == {"query": 24, "key": 24, "value": 24}


@pytest.mark.parametrize(
    ("model_type", "words"),
    [("llama", "share keys and values"), ("modernbert", "cannot be partitioned anew; possible with"), ("gpt_neox", "possible")],
)
def test_refused_architectures(model_type, words):
    with pytest.raises(ValueError, match=f"head_partition: .*{model_type}.*{words}"):
        partition_heads(SPECS[model_type])


def test_weights_by_head_are_refused():
    spec = SPECS["bert"]
    odd = type(spec).from_dict({**spec.to_dict(), "parameters": [["*gate.weight", "heads hidden"], *spec.parameters.items()]})
    with pytest.raises(ValueError, match=r"weights by head, \*gate.weight: 'heads hidden'"):
        partition_heads(odd)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale_attn_weights": False}, "scaling is 1.0 and not head"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scaling is .* and not head"),
    ],
)
def test_a_model_that_does_not_scale_by_the_head_is_refused(changes, words):
    base = stock_of("gpt2", **changes)
    if "scaling" not in vars(base.transformer.h[0].attn):
        pytest.skip("transformers 4.57 reads these from the config at every call, so any number of heads is right")
    with pytest.raises(ValueError, match=words):
        ElasticForCausalLM.from_base(base, importance="none", head_partition=True)


def test_heads_that_do_not_partition_the_width():
    with pytest.raises(ValueError, match="head_partition: 4 heads of together 64 channels do not partition the hidden size 32"):
        elastic_of("transformer_xl", changes={"d_head": 16})
    with pytest.raises(ValueError, match=r"space: num_attention_heads: 4 does not divide the hidden_size 18"):
        elastic_of("gpt2", {**SPACE, "num_attention_heads": [4, 2], "hidden_size": [18, 32]})
    model = elastic_of("gpt2")
    with pytest.raises(ValueError, match="num_attention_heads: 4 does not divide the hidden_size 18"):
        model.resolve({"hidden_size": 18})
    assert model.num_parameters_of({"hidden_size": 18, "num_attention_heads": 3}) > 0
    with pytest.raises(ValueError, match="num_attention_heads: 5 is larger than the model, which has 4"):
        model.resolve({"num_attention_heads": 5})


def test_a_space_is_checked_beyond_its_extremes():
    """30 and 6 go together, and so do 36 and all heads; 4 does not divide 30."""
    changes = {"n_embd": 36, "n_head": 6}
    with pytest.raises(ValueError, match="4 does not divide the hidden_size 30"):
        elastic_of("gpt2", {"hidden_size": [30, 36], "num_attention_heads": [4, 6]}, changes=changes)


def test_the_spec_is_data(tmp_path):
    spec = partition_heads(SPECS["gpt2"])
    assert spec.head_partition and not SPECS["gpt2"].head_partition
    assert partition_heads(spec) is spec
    assert type(spec).from_dict(json.loads(json.dumps(spec.to_dict(), sort_keys=True))) == spec
    old = {key: value for key, value in SPECS["gpt2"].to_dict().items() if key not in ("head_partition", "layered_config")}
    assert type(spec).from_dict(old) == SPECS["gpt2"], "a config.json from before these fields loads"
    assert Space.from_dict(SPACE).size > 0


@torch.no_grad()
def test_heads_that_follow_the_width():
    """All heads together need not divide each width, where their number goes with it."""
    model = elastic_of("gpt2", {"hidden_size": [18, 27, 36], "head_size": 9}, changes={"n_embd": 36})
    for subnet in model.space.enumerate():
        assert model.resolve(subnet).sizes(0)["heads"] == subnet["hidden_size"] // 9
        expected = model.extract(subnet)(**batch()).logits
        torch.testing.assert_close(model.view(subnet)(**batch()).logits, expected, atol=TOLERANCE, rtol=0)

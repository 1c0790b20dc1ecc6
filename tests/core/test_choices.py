"""Axes whose values are names, on a supernet whose layers hold two kinds of blocks: the tiniest ELM."""

import io
import itertools
import json
import random

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny import VOCAB, batch, randomize
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM
from zeroing import keep_only

from hf_elastic import ElasticForMaskedLM, Space, Subnet
from hf_elastic.core.errors import UserError
from hf_elastic.core.importance import apply_order, importance_order
from hf_elastic.measure.cost_model import CostModel, features
from hf_elastic.models.elm import ElmConfig, ElmForMaskedLM
from hf_elastic.search import Frontier, search_subnets
from hf_elastic.search.encoding import Encoding
from hf_elastic.search.picture import size_text
from hf_elastic.search.population import population

BLOCKS = ["bert", "mobilebert"]
SIZES = {
    "vocab_size": VOCAB, "embedding_size": 20, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip
SPACE = {
    "num_hidden_layers": [1, 2, 3],
    "hidden_size": [16, 32],
    "num_attention_heads": [1, 2, 4],
    "intermediate_size": [7, 48],
    "block_type": BLOCKS,
    "per_layer": ["num_attention_heads", "intermediate_size", "block_type"],
}
MIXED = {"block_type": ["mobilebert", "bert"], "num_hidden_layers": 2, "intermediate_size": [7, 48]}


def supernet(space=SPACE, importance="none", **changes):
    config = ElmConfig(**{**SIZES, "block_type": [BLOCKS], "attn_implementation": "eager", **changes})
    base = randomize(AutoModelForMaskedLM.from_config(config))
    return ElasticForMaskedLM.from_base(base, space=space, importance=importance)


def subnets_of(model, count=25):
    generator = random.Random(0)
    return [None, model.space.largest, model.space.smallest, MIXED, *(model.space.sample(generator) for _ in range(count))]


# --- by themselves ------------------------------------------------------------------------------------------------------


def test_a_subnet_has_names_as_values():
    subnet = Subnet(block_type=["bert", "mobilebert"], num_hidden_layers=2)
    assert dict(subnet) == {"num_hidden_layers": 2, "block_type": ("bert", "mobilebert")}
    assert subnet == Subnet(json.loads(json.dumps(subnet.to_dict()))) != Subnet(block_type="bert", num_hidden_layers=2)
    assert Subnet({"block_type": "bert"}).to_dict() == {"block_type": "bert"}


def test_a_space_counts_enumerates_draws_and_round_trips():
    space = Space({"num_hidden_layers": [1, 2], "block_type": BLOCKS, "intermediate_size": [8, 16], "per_layer": ["block_type"]})
    subnets = list(space.enumerate())
    assert len(space) == len(subnets) == len(set(subnets)) == 2 * (2 + 4)
    assert space == Space.from_dict(json.loads(json.dumps(space.to_dict())))
    generator = random.Random(0)
    assert {space.sample(generator) for _ in range(500)} == set(subnets)
    genes = space.genes()
    assert genes["block_type.0"] == genes["block_type.1"] == ("bert", "mobilebert")
    assert {space.from_genes(dict(zip(genes, values))) for values in itertools.product(*genes.values())} == set(subnets)
    assert {subnet["block_type"] for subnet in space.extremes()} >= {("mobilebert", "bert"), ("bert", "mobilebert")}


def test_both_ends_of_a_space_have_the_first_name():
    for order in (BLOCKS, BLOCKS[::-1]):
        space = Space({"block_type": order, "intermediate_size": [8, 16]})
        assert space["block_type"] == tuple(order), "in the order given"
        assert (space.largest["block_type"], space.smallest["block_type"]) == (order[0], order[0])
        assert (space.largest["intermediate_size"], space.smallest["intermediate_size"]) == (16, 8)


def test_features_are_one_column_for_each_name():
    space = Space({"num_hidden_layers": [1, 2], "block_type": BLOCKS, "per_layer": ["block_type"]})
    encoding = Encoding(space.genes())
    rows = np.array([[1, 0, 1], [1, 1, 1], [0, 1, 0]])
    assert [space.from_genes(encoding.chosen(row))["block_type"] for row in rows] == [
        ("bert", "mobilebert"), ("mobilebert", "mobilebert"), ("mobilebert",)
    ]  # fmt: skip
    assert encoding.fine(rows).tolist() == [[1, 0, 0, 1], [0, 1, 0, 1], [0, 1, 0, 0]]
    assert encoding.coarse(rows)[:, 1:].tolist() == [[0.5, 0.5], [0, 1], [0, 0.5]]
    for row in encoding.canonical(rows):
        subnet = space.from_genes(encoding.chosen(row))
        assert np.array_equal(encoding.row_of(subnet, range(subnet["num_hidden_layers"])), row)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"block_type": 3}, "unknown axis 'block_type'; known: .*names as values, not 3"),
        ({"block_type": ["bert", 3]}, "names as values, not \\['bert', 3\\]"),
        ({"block_type": []}, "names as values, not \\[\\]"),
        ({"block_type": ""}, "names as values, not ''"),
        ({"block.type": "bert"}, "unknown axis 'block.type'"),
        ({"per_layer": ["bert"]}, "unknown axis 'per_layer'"),
        ({"intermediate_size": "bert"}, "intermediate_size: 'bert' is not an integer"),
        ({"num_hidden_layers": "bert"}, "num_hidden_layers: 'bert' is not an integer"),
    ],
)
def test_values_that_are_none(values, message):
    with pytest.raises(UserError, match=message):
        Subnet(values)


# --- of a model -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_view_equals_extract_equals_what_is_loaded(tmp_path):
    model = supernet()
    for seed, subnet in enumerate(subnets_of(model)):
        view, extracted = model.view(subnet), model.extract(subnet)
        assert model.why_elastic(subnet) is None and type(extracted) is ElmForMaskedLM
        extracted.save_pretrained(tmp_path / str(seed))
        again = AutoModelForMaskedLM.from_pretrained(tmp_path / str(seed), attn_implementation="eager")
        expected = view(**batch(seed=seed)).logits
        torch.testing.assert_close(extracted(**batch(seed=seed)).logits, expected, atol=1e-5, rtol=0)
        assert torch.equal(again(**batch(seed=seed)).logits, extracted(**batch(seed=seed)).logits)


@torch.no_grad()
def test_a_size_has_the_modules_of_its_choice_alone():
    model = supernet()
    for module in (model.view(MIXED), model.extract(MIXED)):
        assert [list(layer.blocks) for layer in module.elm.layers] == [["mobilebert"], ["bert"]]
        assert module.config.block_type == ["mobilebert", "bert"]
    assert model.extract({"block_type": "mobilebert"}).config.block_type == "mobilebert"
    shared = model.view(MIXED).elm.layers[1].blocks["bert"].attention.query.weight
    assert shared.data_ptr() == model.elm.layers[1].blocks["bert"].attention.query.weight.data_ptr()


@torch.no_grad()
def test_the_full_model_runs_the_first_block():
    model = supernet()
    assert model.subnet(None)["block_type"] == "bert"
    expected = model(**batch()).logits
    torch.testing.assert_close(model.view({"block_type": "bert"})(**batch()).logits, expected, atol=1e-5, rtol=0)
    assert (model.view({"block_type": "mobilebert"})(**batch()).logits - expected).abs().max() > 1e-2
    other = supernet(block_type=[["mobilebert", "bert"], ["bert", "mobilebert"], ["bert"]], space=None)
    assert other.subnet(None)["block_type"] == ("mobilebert", "bert", "bert")


@torch.no_grad()
def test_counts_are_exact():
    model = supernet()
    subnets = subnets_of(model)
    inputs = {"input_ids": batch(length=7, rows=2)["input_ids"]}
    parameters, flops = model.num_parameters_of(subnets), model.flops_of(subnets, 2, 7)
    for subnet, count, operations in zip(subnets, parameters, flops):
        view = model.view(subnet)
        assert count == sum(parameter.numel() for parameter in view.parameters()), subnet
        with FlopCounterMode(display=False) as counter:
            view(**inputs)
        assert operations == counter.get_total_flops(), subnet


def test_populations_are_counted_alike():
    model = supernet()
    encoding = Encoding(model.space.genes())
    rows = encoding.sample(np.random.default_rng(0), 40)
    subnets = [model.space.from_genes(encoding.chosen(row)) for row in rows]
    sizes = population(model, model.space, encoding, rows)
    assert model.counts.parameters(*sizes).tolist() == model.num_parameters_of(subnets).tolist()
    assert model.counts.flops(*sizes, 2, 7).tolist() == model.flops_of(subnets, 2, 7).tolist()
    fixed = Space({axis: SPACE[axis] for axis in ("num_hidden_layers", "intermediate_size")})
    encoding = Encoding(fixed.genes())
    rows = encoding.sample(np.random.default_rng(0), 6)
    sizes = population(model, fixed, encoding, rows)
    subnets = [fixed.from_genes(encoding.chosen(row)) for row in rows]
    assert model.counts.parameters(*sizes).tolist() == model.num_parameters_of(subnets).tolist()


def test_costs_are_fitted_to_both_blocks():
    model = supernet()
    subnets = list(dict.fromkeys(model.space.sample(random.Random(seed)) for seed in range(80)))
    fitted = CostModel.fit(model, subnets[:60], model.flops_of(subnets[:60], 1, 7))
    assert np.isfinite(features(model, subnets)).all()
    expected = model.flops_of(subnets[60:], 1, 7)
    assert np.abs(fitted.predict(model, subnets[60:]) / expected - 1).max() < 0.05


@pytest.mark.parametrize("algorithm", ["surrogate", "nsga2", "tpe"])
def test_a_search_over_blocks(algorithm, tmp_path):
    model = supernet()
    options = {"n_trials": 30, "population_size": 6, "algorithm": algorithm, "progress": False}
    frontier = search_subnets(
        model,
        ["accuracy", "parameters"],
        compute_quality=lambda view: {"accuracy": sum("bert" in layer.blocks for layer in view.elm.layers) / 3},
        **options,
    )
    assert any("mobilebert" in point.subnet["block_type"] for point in frontier.points)
    assert {point.values["accuracy"] for point in frontier.points} >= {0, 1}
    for point in frontier.evaluated:
        assert point.values["parameters"] == model.num_parameters_of(point.subnet)
    frontier.save(tmp_path / "frontier.json")
    frontier.report(tmp_path / "frontier.html")
    again = Frontier.load(tmp_path / "frontier.json")
    assert again.points == frontier.points
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(again.table())
    assert "block_type=mobilebert" in console.export_text()
    assert size_text("block_type", ["bert", "mobilebert", "bert"]) == "block_type=2 bert + 1 mobilebert"


@torch.no_grad()
def test_importance_permutes_each_block_by_itself():
    model = supernet()
    sizes = [{"block_type": name} for name in BLOCKS] + [{"block_type": ["bert", "mobilebert", "bert"]}]
    before = [model.view(size)(**batch()).logits for size in sizes]
    order = importance_order(model, "magnitude")
    assert {axis for axis, _ in order} == {"ffn", "hidden"}
    assert {place for axis, place in order if axis == "ffn"} == {
        (layer, f"block_type={name}") for layer in range(3) for name in BLOCKS
    }
    apply_order(model, order)
    for size, expected in zip(sizes, before):
        torch.testing.assert_close(model.view(size)(**batch()).logits, expected, atol=1e-5, rtol=0)
    for layer, name in itertools.product(range(3), BLOCKS):
        block = model.elm.layers[layer].blocks[name].feed_forward
        norms = block.up.weight.square().sum(1) + block.up.bias.square() + block.down.weight.square().sum(0)
        assert (norms.diff() <= 1e-6).all(), "the best first"


def test_what_looks_at_data_is_refused_where_only_one_of_several_runs():
    for importance in ("activation", "taylor"):
        with pytest.raises(
            UserError, match=f"importance: '{importance}' sees only what runs, which is one of several block_type"
        ):
            importance_order(supernet(), importance, [batch()])


def test_gradients_reach_only_what_ran():
    model = supernet().train()
    model.select(MIXED)
    model(**batch(), labels=batch()["input_ids"]).loss.backward()
    cut = model.resolve(MIXED)
    for entry in model.layout.entries:
        gradient = model.get_parameter(entry.name).grad
        if entry.layer is None:
            continue
        runs = entry.layer in cut.layers and cut.sizes(cut.layers.index(entry.layer))[entry.choice]
        assert (gradient is not None) == bool(runs)
        if runs:
            kept = cut.sizes(cut.layers.index(entry.layer))
            assert torch.equal(gradient, keep_only(gradient, entry.dims, model.layout.full, kept))


@torch.no_grad()
def test_a_supernet_is_saved_whole(tmp_path):
    model = supernet()
    model.config.subnets = {"mixed": MIXED}
    model.save_pretrained(tmp_path / "a")
    again = ElasticForMaskedLM.from_pretrained(tmp_path / "a", subnet="mixed", attn_implementation="eager")
    again.save_pretrained(tmp_path / "b")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert again.space == model.space
    assert torch.equal(again(**batch()).logits, model.view(MIXED)(**batch()).logits)


@torch.no_grad()
def test_a_size_may_become_a_supernet_of_its_widths():
    extracted = supernet().extract({"block_type": ["mobilebert", "bert", "bert"]})
    model = ElasticForMaskedLM.from_base(extracted, {"num_hidden_layers": [1, 2, 3], "intermediate_size": [7, 48]})
    assert model.subnet("smallest").to_dict() == {
        "num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 7, "block_type": "mobilebert"
    }  # fmt: skip
    for subnet in (None, "smallest", {"layers": [0, 2]}):
        assert model.num_parameters_of(subnet) == model.extract(subnet).num_parameters()
    with pytest.raises(UserError, match="block_type: layer 0 has no 'bert', only mobilebert"):
        model.resolve({"block_type": "bert"})


def test_nesting():
    model = supernet()
    sizes = {name: {"block_type": name} for name in BLOCKS}
    model.config.subnets = {
        "narrow": {"block_type": "mobilebert", "intermediate_size": 7},
        "wide": {"block_type": "mobilebert"},
        "bert": {"block_type": "bert", "intermediate_size": 7},
    }
    assert model.resolve("largest").contains(model.resolve("smallest"))
    assert model.chain(["narrow", "wide"]) == ["wide", "narrow"]
    assert not model.resolve(sizes["bert"]).contains(model.resolve(sizes["mobilebert"]))
    with pytest.raises(UserError, match="wide is not nested in bert"):
        model.chain(["wide", "bert"])


@pytest.mark.parametrize(
    ("subnet", "message"),
    [
        ({"block_type": "conv"}, "block_type: 'conv' is no choice of this model; it has: bert, mobilebert"),
        ({"block_type": ["bert", "conv", "bert"]}, "'conv' is no choice of this model; it has: bert, mobilebert"),
        ({"block_type": ["bert", "bert"]}, r"block_type: \['bert', 'bert'\] has 2 values for 3 kept layers"),
        ({"block_kind": "bert"}, "block_kind is not an axis of elm; its axes: hidden_size, .*, block_type"),
        ({"num_attention_heads": 16}, "num_attention_heads: 16 is larger than the model, which has 4"),
        ({"num_attention_heads": 3}, "num_attention_heads: 3 does not divide the width of attention in block_type=bert 32"),
        (
            {"hidden_size": 24, "num_attention_heads": 4, "block_type": "mobilebert"},
            "num_attention_heads: 4 does not divide the width of attention in block_type=mobilebert 6",
        ),
    ],
)
def test_bad_subnets(subnet, message):
    with pytest.raises(UserError, match=message):
        supernet(space=None).resolve(subnet)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"block_type": ["bert", "conv"]}, "space: block_type: 'conv' is no choice of this model; it has: bert, mobilebert"),
        ({"block_type": "bert"}, "block_type: 'bert' is not a list of at least one allowed value"),
        (
            {"hidden_size": [24, 32], "block_type": BLOCKS},
            "space: num_attention_heads: 4 does not divide the width .*mobilebert 6",
        ),
        (
            {"block_type": BLOCKS, "per_layer": ["block_type"]},
            "per_layer: block_type: the space needs num_hidden_layers or layers",
        ),
    ],
)
def test_bad_spaces(space, message):
    with pytest.raises(UserError, match=message):
        supernet(space=space)


def test_a_width_of_the_other_block_changes_nothing():
    """What a choice does not have is ignored: here the width of the other one's bottleneck, which follows the hidden size."""
    model = supernet(space=None)
    heads = {"num_attention_heads": 4, "hidden_size": 24}
    model.resolve({**heads, "block_type": "bert"})
    with pytest.raises(UserError, match="does not divide"):
        model.resolve({**heads, "block_type": "mobilebert"})

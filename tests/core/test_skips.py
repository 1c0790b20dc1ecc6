"""Layers that skip attention or the feed-forward, on every backbone whose Spec says where these are."""

import copy
import itertools
import json
import pickle
import random

import numpy as np
import pytest
import torch
from skipping import (
    AXES,
    BACKBONES,
    DECODERS,
    SIZES,
    SPACE,
    adding_zeros,
    backbones,
    skipping,
    space_with_widths,
    stock,
    subnets_of,
)
from test_cross_version import check, describe, found_elsewhere
from tiny import ENCODERS, batch, config_of, randomize
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PretrainedConfig

from hf_elastic import ElasticConfig, ElasticForCausalLM, ElasticForMaskedLM, Space
from hf_elastic.core.errors import UserError
from hf_elastic.core.importance import apply_order, importance_order
from hf_elastic.core.skips import Skipped
from hf_elastic.search.encoding import Encoding
from hf_elastic.search.population import population

TOLERANCE = 1e-5
GENERATE = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}


def logits(model, **inputs):
    with torch.no_grad():
        return model(**(inputs or batch())).logits


# --- what a size is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", backbones())
def test_what_is_skipped_adds_nothing(name):
    model = skipping(name)
    for size in SIZES:
        expected = logits(adding_zeros(model.base, size))
        torch.testing.assert_close(logits(model.view(size)), expected, atol=TOLERANCE, rtol=0)
        assert (expected - logits(model)).abs().max() > 1e-3
    torch.testing.assert_close(logits(model.view({"attention": "full"})), logits(model), atol=0, rtol=0)


@pytest.mark.parametrize("name", backbones())
def test_view_equals_extract_equals_what_is_loaded(name, tmp_path):
    model = skipping(name, space_with_widths(name))
    for turn, size in enumerate([size for size in subnets_of(model, 3) if model.layout.skipped(model.resolve(size))]):
        view, extracted = model.view(size), model.extract(size)
        assert model.portability_of(size) == "elastic"
        torch.testing.assert_close(logits(extracted), logits(view), atol=TOLERANCE, rtol=0)
        extracted.save_pretrained(tmp_path / str(turn))
        again = type(model).from_pretrained(tmp_path / str(turn), attn_implementation="eager")
        assert torch.equal(logits(again), logits(extracted))
        assert again.subnet(None) == model.subnet(size)
        again.save_pretrained(tmp_path / "again")
        for file in ("config.json", "model.safetensors"):
            assert (tmp_path / "again" / file).read_bytes() == (tmp_path / str(turn) / file).read_bytes()


@pytest.mark.parametrize("name", backbones())
def test_counts_are_exact(name):
    model = skipping(name, space_with_widths(name))
    subnets = subnets_of(model, 8)
    inputs = {"input_ids": batch(length=7, rows=2)["input_ids"]}
    parameters, flops = model.num_parameters_of(subnets), model.flops_of(subnets, 2, 7)
    for subnet, count, operations in zip(subnets, parameters, flops):
        view = model.view(subnet)
        assert count == sum(parameter.numel() for parameter in view.parameters()), subnet
        with FlopCounterMode(display=False) as counter:
            view(**inputs)
        counts = counter.get_flop_counts()
        angles = sum(sum(found.values()) for where, found in counts.items() if "rotary_emb" in where)
        assert operations == counter.get_total_flops() - angles, subnet
    encoding = Encoding(model.space.genes())
    rows = encoding.sample(np.random.default_rng(0), 40)
    sizes = population(model, model.space, encoding, rows)
    subnets = [model.space.from_genes(encoding.chosen(row)) for row in rows]
    assert model.counts.parameters(*sizes).tolist() == model.num_parameters_of(subnets).tolist()
    assert model.counts.flops(*sizes, 2, 7).tolist() == model.flops_of(subnets, 2, 7).tolist()


def test_a_skipped_module_is_not_there():
    for name, norm in {"llama": "input_layernorm", "gpt2": "ln_1", "gpt_neox": "input_layernorm"}.items():
        model = skipping(name)
        view = model.view({"attention": ["skip", "full", "full", "full"]})
        names = [parameter for parameter, _ in view.named_parameters()]
        gone = {path for path, module in view.named_modules() if isinstance(module, Skipped)}
        assert len(names) < len(list(model.base.named_parameters()))
        assert any(path.endswith(norm) for path in gone), "nobody reads it"
        assert not [parameter for parameter in names if parameter.rpartition(".")[0] in gone]
    view = skipping("bert").view({"mlp": ["skip"] * 3 + ["full"], "attention": ["full", "skip", "full", "full"]})
    kept = {name.partition("layer.")[2] for name, _ in view.named_parameters() if "encoder" in name}
    assert "1.attention.output.LayerNorm.weight" in kept and "1.output.LayerNorm.weight" in kept, "the stream's own"
    assert not [name for name in kept if name.startswith(("1.attention.self", "1.intermediate", "1.output.dense"))]


def test_a_layer_that_skips_all_is_a_layer_less():
    for name in ("llama", "gpt2", "gpt_neox"):
        model = skipping(name)
        both = ["full", "skip", "full", "full"]
        found, expected = model.view({"attention": both, "mlp": both}), model.view({"layers": [0, 2, 3]})
        assert torch.equal(logits(found), logits(expected))
        assert sum(p.numel() for p in found.parameters()) == sum(p.numel() for p in expected.parameters())


def test_nesting():
    model = skipping("llama")
    model.config.subnets = {
        "small": {"attention": SIZES[2]["attention"], "mlp": SIZES[0]["mlp"]},
        "middle": {"attention": SIZES[2]["attention"]},
    }
    assert model.chain() == ["largest", "middle", "small"]
    assert model.resolve("largest") == model.resolve(None)


# --- caches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", backbones(DECODERS))
@torch.no_grad()
def test_cached_generation(name):
    model = skipping(name)
    for size in SIZES:
        inputs, view = batch(left=True, length=12), model.view(size)
        kept = size["attention"].count("full")
        for options in ({}, {"num_beams": 3}, {"cache_implementation": "static"}):
            beams = {key: value for key, value in options.items() if key == "num_beams"}
            expected = view.generate(**inputs, **GENERATE, **beams, use_cache=False)
            assert torch.equal(view.generate(**inputs, **GENERATE, **options), expected)
        assert torch.equal(model.extract(size).generate(**inputs, **GENERATE, num_beams=3), expected) or options
        model.select(size)
        cache = model(**inputs, use_cache=True).past_key_values
        lengths = [layer.get_seq_length() for layer in cache.layers]
        assert lengths == [12] * kept + [0] * (len(lengths) - kept), "one for each layer that attends, no hole"
        token = inputs["input_ids"][:, :1]
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(token)], 1)
        step = model(input_ids=token, attention_mask=mask, past_key_values=cache).logits[:, -1]
        whole = model(input_ids=torch.cat([inputs["input_ids"], token], 1), attention_mask=mask).logits[:, -1]
        assert step.shape == whole.shape
        model.select(None)


def test_a_cache_of_another_size_is_refused():
    model = skipping("llama", {**SPACE, "num_attention_heads": [2, 4], "num_key_value_heads": [1, 2]})
    narrow = {"num_attention_heads": 2, "num_key_value_heads": 1}
    model.select({**SIZES[0], **narrow})
    cache = model(**batch(), use_cache=True).past_key_values
    model(input_ids=batch()["input_ids"][:, :1], past_key_values=cache)
    model.select(SIZES[0])
    with pytest.raises(UserError, match=r"has the heads \[1, 1, 1\] in its layers, the selected size \[2, 2, 2\]"):
        model(input_ids=batch()["input_ids"][:, :1], past_key_values=cache)


# --- the supernet --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("importance", ["magnitude", "activation"])
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_importance_permutation_changes_nothing(name, importance):
    model = skipping(name, space_with_widths(name))
    before = [logits(model.view(size)) for size in (None, *SIZES)]
    order = importance_order(model, importance, [batch()] if importance == "activation" else None)
    assert {axis for axis, _ in order} >= {"ffn", "hidden"}
    apply_order(model, order)
    for size, expected in zip((None, *SIZES), before):
        torch.testing.assert_close(logits(model.view(size)), expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_gradients_reach_only_what_runs(name):
    model = skipping(name).train()
    model.gradient_checkpointing_enable()
    model.select(SIZES[0])
    model(**batch(), labels=batch()["input_ids"]).loss.backward()
    cut = model.resolve(SIZES[0])
    for entry in model.layout.entries:
        if entry.layer is not None:
            runs = entry.choice is None or bool(cut.sizes(entry.layer)[entry.choice])
            assert (model.get_parameter(entry.name).grad is not None) == runs, entry.name


def test_a_view_is_copied_and_looked_into():
    for name in ("bert", "llama"):
        model = skipping(name)
        view = model.view(SIZES[0])
        expected = logits(view)
        for copied in (copy.deepcopy(view), pickle.loads(pickle.dumps(model.extract(SIZES[0])))):
            assert torch.equal(logits(copied), expected)
        output = view(**batch(), output_hidden_states=True, output_attentions=True)
        assert (len(output.hidden_states), sum(one is not None for one in output.attentions)) == (5, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_size_is_compiled_as_one_graph(name):
    extracted = skipping(name).extract(SIZES[0])
    torch._dynamo.reset()
    compiled = torch.compile(extracted.base, backend="eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled), logits(extracted), atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_a_supernet_is_saved_whole(tmp_path):
    model = skipping("llama", subnets={"thin": SIZES[0]})
    model.save_pretrained(tmp_path)
    again = ElasticForCausalLM.from_pretrained(tmp_path, subnet="thin", attn_implementation="eager")
    assert again.space == model.space
    assert torch.equal(logits(again), logits(model.view(SIZES[0])))


def test_config_of_a_size(tmp_path):
    """As transformers says it since 5.14, where config classes know it."""
    model = skipping("llama")
    size = {"layers": [0, 1, 3], "attention": ["skip", "full", "full"], "mlp": ["skip", "full", "skip"]}
    model.extract(size).save_pretrained(tmp_path)
    skipped = {"0": {"skip": ["attention", "mlp"]}, "2": {"skip": ["mlp"]}}
    assert json.loads((tmp_path / "config.json").read_text())["own"] == {"num_hidden_layers": 3, "per_layer_config": skipped}
    config = ElasticConfig.from_pretrained(tmp_path)
    assert config.to_dict()["per_layer_config"] == skipped
    if "per_layer_config" in dir(PretrainedConfig):
        assert [layer.skip for layer in config.per_layer_config] == [["attention", "mlp"], [], ["mlp"]]
        assert config.is_heterogeneous and not config.full_config().is_heterogeneous
    assert "per_layer_config" not in config.full_config().to_dict()


@pytest.mark.parametrize("name", backbones())
def test_the_stock_class_is_asked_whether_it_skips(name):
    model = skipping(name)
    kind = type(model.base).__name__
    message = f"its layer 0 skips attention, and {kind} of this transformers builds all of it, whatever per_layer_config says"
    assert model.why_elastic(SIZES[0]) == message
    assert model.nearest_standard(SIZES[0]) == model.subnet({"num_hidden_layers": 4})


@pytest.mark.other_lane
def test_the_other_version_loads_what_skips(tmp_path):
    """With the code that travels with the checkpoint."""
    for name in ("bert", "llama", "gpt2", "gemma2"):
        auto, model = AutoModelForMaskedLM if name in ENCODERS else AutoModelForCausalLM, skipping(name)
        model.extract(SIZES[0]).save_pretrained(tmp_path / "root" / name)
        describe(tmp_path / "root" / name, auto, model.view(SIZES[0]), {"trust_remote_code": True})
    (tmp_path / "elsewhere").mkdir()
    results = found_elsewhere(tmp_path / "root", tmp_path / "elsewhere")
    assert len(results) == 4
    for result in results.values():
        assert result["class"].startswith("Elastic")
        check(result)


# --- whoever does not ask for it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_without_the_axes_nothing_is_new(name, tmp_path):
    model = skipping(name, {"num_hidden_layers": [2, 4]})
    assert not model.layout.choices and not set(AXES) & {*model.subnet(None), *model.layout.layer_axes}
    assert model.config.spec["choices"] == {}
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["spec"]["choices"], config["spec"]["scores"], config["spec"]["cached"]  # as it was before there were any
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = type(model).from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(logits(again), logits(model))
    with pytest.raises(UserError, match=f"attention: 'skip' is not possible: the Spec of this {name} .*it says so of: nothing"):
        again.resolve({"attention": ["full", "full", "skip", "full"]})


def test_one_axis_alone():
    model = skipping("llama", {"num_hidden_layers": [4], "mlp": ["full", "skip"], "per_layer": ["mlp"]})
    assert "attention" not in model.subnet(None)
    assert model.view({"mlp": SIZES[0]["mlp"]}).num_parameters() < model.base.num_parameters()
    named = skipping("llama", None, subnets={"thin": SIZES[0]})
    assert named.num_parameters_of("thin") == named.view("thin").num_parameters()


# --- spaces --------------------------------------------------------------------------------------------------------------


def test_a_space_has_no_size_that_skips_an_axis_in_all_layers():
    space = Space({**SPACE, "num_hidden_layers": [1, 2, 3], "intermediate_size": [7, 48]})
    subnets = list(space.enumerate())
    assert len(space) == len(subnets) == len(set(subnets)) == 2 * sum((2**depth - 1) ** 2 for depth in (1, 2, 3))
    assert space == Space.from_dict(json.loads(json.dumps(space.to_dict())))
    assert {space.sample(random.Random(seed)) for seed in range(3000)} == set(subnets)
    genes = space.genes()
    assert {space.from_genes(dict(zip(genes, values))) for values in itertools.product(*genes.values())} == set(subnets)
    assert space.from_genes({gene: choices[-1] for gene, choices in genes.items()})["attention"] == ("full", "skip", "skip")
    encoding = Encoding(genes)
    for row in encoding.sample(np.random.default_rng(0), 300):
        subnet = space.from_genes(encoding.chosen(row))
        assert np.array_equal(encoding.row_of(subnet, range(subnet["num_hidden_layers"])), row), "a row for each size"


def test_to_skip_comes_last():
    space = Space({**SPACE, "attention": ["skip", "full"], "num_hidden_layers": [4]})
    assert space["attention"] == ("full", "skip")
    assert space.largest["attention"] == space.smallest["attention"] == ("full",) * 4


ONE_IN_PLACE = "in all 4 layers; at least one of them must keep it"


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({**SPACE, "per_layer": ["mlp"]}, "attention: 'skip' in all layers is not possible; name attention in per_layer"),
        ({**SPACE, "attention": ["skip"]}, "attention: 'skip' in all layers is not possible; the other value is 'full'"),
        ({**SPACE, "attention": ["full", "half"]}, "space: attention: 'half' is no choice of this model; it has: full, skip"),
        ({**SPACE, "norm": ["full", "skip"], "per_layer": ["norm"], "attention": ["full"], "mlp": ["full"]},
         "norm: 'skip' is not possible: .* does not say where norm is in a layer; it says so of: attention, mlp"),
    ],
)  # fmt: skip
def test_bad_spaces(space, message):
    with pytest.raises(UserError, match=message):
        skipping("llama", space)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"attention": "skip"}, f"attention: 'skip' {ONE_IN_PLACE}"),
        ({"attention": ["skip"] * 4}, f"attention: 'skip' {ONE_IN_PLACE}"),
        ({"mlp": "skip"}, f"mlp: 'skip' {ONE_IN_PLACE}"),
        ({"layers": [1], "attention": ["skip"]}, "attention: 'skip' in all 1 layers"),
        ({"attention": ["skip", "full"]}, r"attention: \['skip', 'full'\] has 2 values for 4 kept layers"),
        ({"attention": "half"}, "attention: 'half' is no choice of this model; it has: full, skip"),
        ({"attention": 3}, "unknown axis 'attention'; known: .*names as values, not 3"),
    ],
)
def test_bad_sizes(size, message):
    with pytest.raises(UserError, match=message) as error:
        skipping("llama").resolve(size)
    assert "\n" not in str(error.value)


def test_backbones_whose_spec_does_not_say_it():
    base = randomize(AutoModelForMaskedLM.from_config(config_of("distilbert")))
    assert "distilbert" not in BACKBONES
    message = "attention: 'skip' is not possible: the Spec of this distilbert does not say where attention is in a layer"
    with pytest.raises(UserError, match=message) as error:
        ElasticForMaskedLM.from_base(base, space=SPACE)
    assert "\n" not in str(error.value)


def test_a_headless_partition_of_heads_goes_along():
    model = skipping("bert", {**SPACE, "num_attention_heads": [2, 4]}, head_partition=True)
    size = {**SIZES[0], "num_attention_heads": 2}
    torch.testing.assert_close(logits(model.extract(size)), logits(model.view(size)), atol=TOLERANCE, rtol=0)
    assert stock("bert").num_parameters() > model.num_parameters_of(size)

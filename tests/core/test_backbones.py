"""What must hold for every backbone, over random subnets of a space with every axis."""

import itertools
import random

import pytest
import torch
from tiny import CLASSIFIERS, CONFIGS, DECODERS, ENCODERS, backbones, batch, config_of, randomize, space_of
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
from zeroing import keep_only

from hf_elastic import ElasticForCausalLM, ElasticForMaskedLM, ElasticForSequenceClassification, ElasticModel
from hf_elastic.core.importance import apply_order, importance_order

# Twelve sizes tell whether a version of transformers is cut right; many more are for the arithmetic, which is our own.
SIZES = [
    pytest.param(slice(12), id="12"),
    pytest.param(slice(12, 50), id="50", marks=[pytest.mark.slow, pytest.mark.one_lane]),
]
# Our own architectures: their configs say sizes layer by layer, so all of them are standard.
OWN = ("transformer_xl", "elm")
STOCK = tuple(name for name in CONFIGS if name not in OWN)
TOLERANCE = 1e-5


def elastic_lm(model_type, *, importance="none", hidden=True, **changes):
    encoder = model_type in ENCODERS
    auto, elastic = (AutoModelForMaskedLM, ElasticForMaskedLM) if encoder else (AutoModelForCausalLM, ElasticForCausalLM)
    base = randomize(auto.from_config(config_of(model_type, **changes)))
    return elastic.from_base(base, space=space_of(model_type, hidden=hidden), importance=importance)


def subnets_of(model, count=50):
    generator = random.Random(0)
    return [model.space.largest, model.space.smallest, *(model.space.sample(generator) for _ in range(count - 2))]


def matmul_flops(counter):
    """What the counter saw, less the tiny product with which transformers 4.57 makes its rotary angles."""
    counts = counter.get_flop_counts()
    return counter.get_total_flops() - sum(sum(ops.values()) for name, ops in counts.items() if "rotary_emb" in name)


def hidden_or_logits(output):
    return output.logits if "logits" in output else output.last_hidden_state


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("model_type", backbones())
@torch.no_grad()
def test_view_equals_extract(model_type, sizes):
    model = elastic_lm(model_type)
    kinds = set()
    for seed, subnet in enumerate(subnets_of(model)[sizes]):
        inputs = batch(seed=seed)
        extracted = model.extract(subnet)
        kinds.add(model.portability_of(subnet))
        assert isinstance(extracted, type(model.base)) == (model.portability_of(subnet) == "standard")
        torch.testing.assert_close(
            model.view(subnet)(**inputs).logits, extracted(**inputs).logits, atol=TOLERANCE, rtol=0, msg=str(subnet)
        )
    assert ("elastic" in kinds) == (model_type not in OWN)


@pytest.mark.parametrize("model_type", backbones())
@torch.no_grad()
def test_a_size_made_after_hidden_states_were_recorded(model_type):
    """Recording leaves methods bound to the full model's layers behind (transformers 4.57); a size must not run those."""
    model = elastic_lm(model_type)
    subnet = {"num_hidden_layers": 2, "intermediate_size": 16}
    expected = model.extract(subnet)(**batch()).logits
    model.forget_views()
    model(**batch(), output_hidden_states=True)
    torch.testing.assert_close(model.view(subnet)(**batch()).logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("first", ["view", "select", "full"])
@pytest.mark.parametrize("model_type", backbones())
@torch.no_grad()
def test_hidden_states_are_recorded_once_whoever_recorded_first(model_type, first):
    model = elastic_lm(model_type)
    subnet = {"num_hidden_layers": 2, "intermediate_size": 16}
    expected = model.extract(subnet)(**batch(), output_hidden_states=True).hidden_states
    full = model(**batch(), output_hidden_states=True).hidden_states if first == "full" else None
    for _ in range(3):
        model.select(subnet if first == "select" else None)
        running = model if first == "select" else model.view(subnet)
        found = running(**batch(), output_hidden_states=True).hidden_states
        assert len(found) == len(expected) == 3
        for one, other in zip(found, expected):
            torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=0)
        model.select(None)
        again = model(**batch(), output_hidden_states=True).hidden_states
        assert len(again) == 5 and (full is None or all(map(torch.equal, again, full)))


@pytest.mark.parametrize("model_type", backbones())
@torch.no_grad()
def test_uniform_subnets_are_standard(model_type):
    model = elastic_lm(model_type)
    for subnet in [{"num_hidden_layers": 2}, {"intermediate_size": 16}, {"num_hidden_layers": 3, "intermediate_size": 33}]:
        assert model.portability_of(subnet) == "standard", model.why_elastic(subnet)
        extracted = model.extract(subnet)
        assert type(extracted) is type(model.base)
        torch.testing.assert_close(model.view(subnet)(**batch()).logits, extracted(**batch()).logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("importance", ["magnitude", "activation"])
@pytest.mark.parametrize("model_type", backbones())
@torch.no_grad()
def test_importance_permutation_changes_nothing(model_type, importance):
    model = elastic_lm(model_type)
    before = model(**batch()).logits
    order = importance_order(model, importance, [batch(seed=1)])
    attention = {"kv", "kv group"} if "kv" in model.layout.full else {"heads"} if model_type != "elm" else set()
    assert {axis for axis, _ in order} == {"ffn", "hidden", *attention}
    assert any((indices != sorted(indices)).any() for indices in order.values())
    apply_order(model, order)
    torch.testing.assert_close(model(**batch()).logits, before, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("model_type", CONFIGS)
@torch.no_grad()
def test_hidden_channels_keep_their_order_where_no_size_cuts_them(model_type):
    model = elastic_lm(model_type, hidden=False)
    expected = model(**batch(), output_hidden_states=True)
    order = importance_order(model, "activation", [batch(seed=1)])
    assert any((indices != sorted(indices)).any() for indices in order.values())
    apply_order(model, order)
    found = model(**batch(), output_hidden_states=True)
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("model_type", backbones())
@torch.no_grad()
def test_zeroing_the_rest_equals_the_cut(model_type, sizes):
    model = elastic_lm(model_type, hidden=False)
    parameters = dict(model.base.named_parameters())
    original = {name: tensor.clone() for name, tensor in parameters.items()}
    generator = random.Random(1)
    samples = (model.space.sample(generator) for _ in itertools.count())
    of_every_layer = (sample for sample in samples if len(model.resolve(sample).layers) == model.layout.num_layers)
    for seed, sample in enumerate(itertools.islice(of_every_layer, sizes.start, sizes.stop)):
        cut = model.resolve(sample)
        expected = model.view(sample)(**batch(seed=seed)).logits
        for entry in model.layout.entries:
            if entry.tied_to is None and entry.layer is not None:
                zeroed = keep_only(original[entry.name], entry.dims, model.layout.full, cut.sizes(entry.layer))
                parameters[entry.name].copy_(zeroed)
        torch.testing.assert_close(model(**batch(seed=seed)).logits, expected, atol=TOLERANCE, rtol=0)
        for name, tensor in original.items():
            parameters[name].copy_(tensor)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("model_type", backbones())
@torch.no_grad()
def test_counts_are_exact(model_type, sizes):
    model = elastic_lm(model_type, attn_implementation="eager")
    subnets = subnets_of(model)[sizes]
    inputs = {"input_ids": batch(length=7, rows=2)["input_ids"]}
    parameters = model.num_parameters_of(subnets)
    flops = model.flops_of(subnets, batch_size=2, sequence_length=7)
    for index, subnet in enumerate(subnets):
        view = model.view(subnet)
        assert parameters[index] == sum(p.numel() for p in view.parameters()), subnet
        with FlopCounterMode(display=False) as counter:
            view(**inputs)
        assert flops[index] == matmul_flops(counter), subnet


@pytest.mark.parametrize("model_type", backbones(CLASSIFIERS))
def test_flops_of_a_classifier(model_type):
    config = config_of(model_type, num_labels=3, attn_implementation="eager")
    model = ElasticForSequenceClassification.from_base(
        ElasticForSequenceClassification.stock_class(config)(config), space=space_of(model_type), importance="none"
    )
    inputs = {"input_ids": batch(length=7, rows=2)["input_ids"]}
    for subnet in subnets_of(model, 10):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.view(subnet)(**inputs)
        assert model.flops_of(subnet, 2, 7) == matmul_flops(counter), subnet


@pytest.mark.parametrize("model_type", backbones())
@torch.no_grad()
def test_save_load_save_is_byte_stable(model_type, tmp_path):
    model = elastic_lm(model_type)
    model.save_pretrained(tmp_path / "a")
    again = type(model).from_pretrained(tmp_path / "a")
    again.save_pretrained(tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    subnet = model.space.sample(random.Random(3))
    torch.testing.assert_close(again.view(subnet)(**batch()).logits, model.view(subnet)(**batch()).logits, atol=0, rtol=0)


@pytest.mark.parametrize("model_type", backbones(STOCK))
@torch.no_grad()
def test_elastic_extract_reloads(model_type, tmp_path):
    model = elastic_lm(model_type)
    subnet = next(s for s in subnets_of(model) if model.portability_of(s) == "elastic")
    model.extract(subnet).save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.num_parameters() == model.num_parameters_of(subnet) == again.num_parameters_of(None)
    torch.testing.assert_close(again(**batch()).logits, model.view(subnet)(**batch()).logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("model_type", backbones(STOCK))
@torch.no_grad()
def test_tied_embeddings_stay_tied(model_type, tmp_path):
    model = elastic_lm(model_type, tie_word_embeddings=True)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for subnet in [None, model.space.smallest, {"num_hidden_layers": 2}]:
        for module in (model.view(subnet), model.extract(subnet)):
            output, inputs = module.get_output_embeddings().weight, module.get_input_embeddings().weight
            assert output.data_ptr() == inputs.data_ptr()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight


@pytest.mark.parametrize("model_type", backbones(DECODERS))
@torch.no_grad()
def test_cached_generation(model_type):
    model = elastic_lm(model_type)
    narrow = {"intermediate_size": 16, "num_attention_heads": 2}
    for subnet in [{"layers": [1, 3]}, narrow, {**narrow, "layers": [0, 2, 3], "hidden_size": 24}, model.space.smallest]:
        inputs = batch(left=True)
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        cached = model.view(subnet).generate(**inputs, **options, use_cache=True)
        assert torch.equal(cached, model.view(subnet).generate(**inputs, **options, use_cache=False))
        assert torch.equal(cached, model.extract(subnet).generate(**inputs, **options))
        model.select(subnet)
        assert torch.equal(cached, model.generate(**inputs, **options))
        model.select(None)


@pytest.mark.parametrize("model_type", backbones())
def test_gradients_reach_only_the_slice(model_type):
    model = elastic_lm(model_type).train()
    subnet = {"num_hidden_layers": 2, "intermediate_size": 16, "num_attention_heads": 2, "hidden_size": 16}
    model.select(subnet)
    model(**batch(), labels=batch()["input_ids"]).loss.backward()
    cut = model.resolve(subnet)
    for entry in model.layout.entries:
        if entry.tied_to is not None:
            continue
        gradient = model.get_parameter(entry.name).grad
        if entry.layer is not None and entry.layer not in cut.layers:
            assert gradient is None
            continue
        kept = cut.sizes(cut.layers.index(entry.layer) if entry.layer is not None else None)
        assert gradient is None or torch.equal(gradient, keep_only(gradient, entry.dims, model.layout.full, kept))


@pytest.mark.parametrize("model_type", backbones())
@torch.no_grad()
def test_headless_model(model_type):
    config = config_of(model_type)
    model = ElasticModel.from_base(ElasticModel.stock_class(config)(config), space=space_of(model_type))
    for subnet in subnets_of(model, 5):
        difference = hidden_or_logits(model.view(subnet)(**batch())) - hidden_or_logits(model.extract(subnet)(**batch()))
        assert difference.abs().max() <= TOLERANCE

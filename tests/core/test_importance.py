"""Which neurons matter."""

import copy
import itertools

import numpy as np
import pytest
import torch
from adapted import classifier, lora
from peft import get_peft_model
from tiny import batch, config_of, randomize, space_of
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_elastic import ElasticForCausalLM, ElasticForSequenceClassification, ElasticModel
from hf_elastic.core.activations import activation_energies, influence_order
from hf_elastic.core.importance import QUERIES, apply_order, gradients_of, importance_order
from hf_elastic.core.layout import Layout


def test_taylor_ranks_by_effect_and_not_by_size():
    """A neuron with huge weights that never fires is kept longest by magnitude and cut first by Taylor."""
    config = config_of("bert", num_labels=2)
    stock = ElasticForSequenceClassification.stock_class(config)
    space = {"intermediate_size": [12, 47, 48]}
    batches = [{**batch(seed=seed), "labels": torch.tensor([0, 1, 0])} for seed in range(3)]
    places = []
    for options in ({"importance": "magnitude"}, {"importance": "taylor", "calibration": iter(batches)}):
        torch.manual_seed(0)
        base = randomize(stock(config))
        with torch.no_grad():
            inner = base.bert.encoder.layer[1].intermediate.dense
            inner.weight[5], inner.bias[5] = 10.0 * torch.sign(inner.weight[5]), -1e6
            expected = base(**batch(seed=7)).logits
        model = ElasticForSequenceClassification.from_base(base, space=space, **options)
        with torch.no_grad():
            torch.testing.assert_close(model(**batch(seed=7)).logits, expected, atol=1e-4, rtol=1e-4)
        places.append(model.base.bert.encoder.layer[1].intermediate.dense.bias.argmin().item())
        assert all(parameter.grad is None for parameter in model.parameters())
    assert places == [0, 47]


def test_gradients_are_the_root_of_summed_squares():
    config = config_of("bert", num_labels=2)
    model = ElasticForSequenceClassification.from_base(randomize(ElasticForSequenceClassification.stock_class(config)(config)))
    batches = [{**batch(seed=seed), "labels": torch.tensor([0, 1, 0])} for seed in range(2)]
    found = gradients_of(model, batches)["classifier.weight"]
    squares = torch.zeros_like(found)
    for one in batches:
        (gradient,) = torch.autograd.grad(model.base(**one).loss, model.base.classifier.weight)
        squares += gradient**2
    torch.testing.assert_close(found, squares.sqrt())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"importance": "taylor"}, "importance: 'taylor' needs calibration batches"),
        ({"importance": "activation"}, "importance: 'activation' needs calibration batches"),
        ({"layer_order": "influence"}, "layer_order: 'influence' needs calibration batches"),
        ({"importance": "magnitude", "calibration": [batch()]}, "importance: 'magnitude' takes no calibration batches"),
        ({"importance": "taylor", "calibration": []}, "calibration: needs at least one batch"),
        ({"calibration": iter(())}, "calibration: needs at least one batch"),
    ],
)
def test_calibration_goes_with_what_looks_at_it(options, message):
    config = config_of("bert", num_labels=2)
    base = ElasticForSequenceClassification.stock_class(config)(config)
    with pytest.raises(ValueError, match=message):
        ElasticForSequenceClassification.from_base(base, **options)


# --- activation ----------------------------------------------------------------------------------------------------


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.base.named_parameters()}


@torch.no_grad()
def energies_by_hand(base, layer, inputs):
    """What each neuron of a BERT layer gives to the output, from the hidden states before it, token by token."""
    states = base.bert(**inputs, output_hidden_states=True).hidden_states[layer]
    block = base.bert.encoder.layer[layer]
    mask = (1 - inputs["attention_mask"][:, None, None].float()) * torch.finfo(torch.float32).min
    attended = block.attention(states, mask)[0]
    active = block.intermediate(attended)[inputs["attention_mask"].bool()]
    contributions = active[:, :, None] * block.output.dense.weight.t()  # [tokens, ffn, hidden]
    return contributions.square().sum((0, 2))


def test_activation_is_the_norm_of_what_a_neuron_adds_without_padding():
    config = config_of("bert", num_labels=2, attn_implementation="eager")
    base = randomize(ElasticForSequenceClassification.stock_class(config)(config))
    inputs = batch(seed=3)
    assert not inputs["attention_mask"].all()
    found = activation_energies(base, Layout(spec_of(base), base), [inputs], {"ffn"})
    assert [layer for *_, layer in found] == [0, 1, 2, 3]
    for energies, dims, layer in found:
        assert dims == ((("ffn",),),)
        torch.testing.assert_close(energies, energies_by_hand(base, layer, inputs), rtol=1e-4, atol=1e-5)


def spec_of(base):
    return ElasticModel.from_base(base.base_model).layout.spec


@pytest.mark.parametrize("model_type", ["bert", "llama", "opt", "transformer_xl"])
def test_padding_and_the_division_into_batches_do_not_matter(model_type):
    config = config_of(model_type)
    elastic = ElasticForCausalLM if model_type != "bert" else ElasticModel
    base = randomize(elastic.stock_class(config)(config))
    rows = batch(rows=3)
    lengths = rows["attention_mask"].sum(1)
    single = [{key: value[row : row + 1, :length] for key, value in rows.items()} for row, length in enumerate(lengths.tolist())]
    layout = elastic.from_base(base).layout
    axes = {"ffn", "heads", "kv", "hidden"}
    together, apart = (activation_energies(base, layout, batches, axes) for batches in ([rows], single))
    assert len(together) == len(apart) >= 8
    for (one, *_), (other, *_) in zip(together, apart):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert influence_order(base, layout, [rows]) == influence_order(base, layout, single)


@torch.no_grad()
def test_query_heads_are_ranked_within_their_group():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=12, num_key_value_heads=3, head_dim=4, intermediate_size=48,
        vocab_size=99,
    )  # fmt: skip
    stock = LlamaForCausalLM(config).eval()
    loud = [3, 4, 10]  # of each group of four query heads
    for attention in (layer.self_attn for layer in stock.model.layers):
        attention.o_proj.weight.view(48, 12, 4)[:, loud] *= 20
    query = stock.model.layers[0].self_attn.q_proj.weight.clone().view(12, 4, 48)
    expected = stock(**batch()).logits
    space = {"num_attention_heads": [3, 6, 12], "num_key_value_heads": [3]}
    model = ElasticForCausalLM.from_base(copy.deepcopy(stock), space, importance="activation", calibration=[batch(seed=1)])
    torch.testing.assert_close(model(**batch()).logits, expected, atol=1e-5, rtol=0)
    kept = model.view({"num_attention_heads": 3}).model.layers[0].self_attn.q_proj.weight.view(3, 4, 48)
    assert torch.equal(kept, query[loud])
    assert torch.equal(model.base.model.layers[0].self_attn.k_proj.weight, stock.model.layers[0].self_attn.k_proj.weight)


@torch.no_grad()
def test_key_value_heads_move_with_their_queries():
    torch.manual_seed(0)
    config = config_of("llama", num_attention_heads=8, num_key_value_heads=2, head_dim=4)
    model = ElasticForCausalLM.from_base(
        randomize(AutoModelForCausalLM.from_config(config)),
        {"num_attention_heads": [1, 8], "num_key_value_heads": [1, 2]},
        importance="none",
    )
    expected = model(**batch()).logits
    score = torch.tensor([1.0, 2, 3, 4, 9, 5, 6, 7])
    for layer in model.base.model.layers:
        weight = layer.self_attn.o_proj.weight.view(32, 8, 4)
        weight *= (score / weight.square().sum((0, 2)).sqrt())[None, :, None]
    expected = model(**batch()).logits
    order = importance_order(model, "activation", [batch(seed=1)])
    for layer in range(4):
        queries = order[QUERIES, layer]
        pairs = queries.reshape(2, 4) // 4
        assert (pairs == order["kv", layer][:, None]).all() and sorted(queries) == list(range(8))
    apply_order(model, order)
    torch.testing.assert_close(model(**batch()).logits, expected, atol=1e-5, rtol=0)


def test_only_axes_that_a_size_cuts_are_reordered():
    config = config_of("bert", num_labels=2)
    base = randomize(ElasticForSequenceClassification.stock_class(config)(config))
    before = {name: parameter.clone() for name, parameter in base.named_parameters()}
    full = {"intermediate_size": [48], "num_hidden_layers": [2, 4], "hidden_size": [32]}
    for space in (None, full):
        model = ElasticForSequenceClassification.from_base(
            copy.deepcopy(base), space, importance="activation", calibration=[batch()]
        )
        assert all(torch.equal(weight, before[name]) for name, weight in weights_of(model).items())
    # A named size outside the space is cut as well.
    named = ElasticForSequenceClassification.from_base(base, full, {"narrow": {"intermediate_size": 7}}, importance="magnitude")
    changed = {name for name, weight in weights_of(named).items() if not torch.equal(weight, before[name])}
    assert changed and all("intermediate" in name or "output.dense.weight" in name for name in changed)
    assert not any("attention" in name for name in changed)


def test_heads_that_follow_the_hidden_size_are_ranked():
    config = config_of("bert", num_labels=2)
    base = randomize(ElasticForSequenceClassification.stock_class(config)(config))
    model = ElasticForSequenceClassification.from_base(base, {"hidden_size": [16, 32], "head_size": 8}, importance="none")
    assert {axis for axis, _ in importance_order(model)} == {"hidden", "heads"}


@pytest.mark.parametrize("importance", ["activation", "magnitude"])
def test_half_precision_and_repetition(importance):
    """Sums are in float32, so that a bfloat16 model is ranked like the same weights in float32 are, but for near ties."""
    config = config_of("llama")
    base = randomize(AutoModelForCausalLM.from_config(config)).bfloat16()
    options = {"space": space_of("llama"), "importance": "none"}
    half = ElasticForCausalLM.from_base(copy.deepcopy(base), **options)
    single = ElasticForCausalLM.from_base(base.float(), **options)
    batches = [batch(seed=seed, rows=64, length=33) for seed in range(2)]
    found, again, expected = (importance_order(model, importance, batches) for model in (half, half, single))
    for key, indices in found.items():
        assert np.array_equal(indices, again[key])
        if key[0] == "ffn":
            assert len(set(indices[:16]) & set(expected[key][:16])) >= 14


def test_the_model_is_left_as_it_was():
    config = config_of("bert", num_labels=2, hidden_dropout_prob=0.5)
    base = randomize(ElasticForSequenceClassification.stock_class(config)(config)).train()
    layout = ElasticForSequenceClassification.from_base(copy.deepcopy(base)).layout
    seen = []

    def look(module, args):
        seen.append((module.training, torch.is_inference_mode_enabled()))

    handle = base.bert.register_forward_pre_hook(look)
    one, other = (activation_energies(base, layout, [batch()], {"ffn"}) for _ in range(2))
    handle.remove()
    assert seen == [(False, True)] * 2
    assert base.training and all(torch.equal(a, b) for (a, *_), (b, *_) in zip(one, other))
    with pytest.raises(ValueError, match="attention_mask of shape"):
        activation_energies(base, layout, [{**batch(), "attention_mask": torch.ones(3, 1, 9, 9)}], {"ffn"})
    assert base.training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in base.modules())


@torch.no_grad()
def test_a_model_with_an_adapter():
    """The factors follow the weights that they adapt, and what they do to activations counts."""
    model = classifier("bert")
    peft_model = randomize(get_peft_model(model, lora("bert")))
    expected = peft_model(**batch()).logits
    order = importance_order(model, "activation", [batch(seed=1)])
    peft_model.disable_adapter_layers()
    without = importance_order(model, "activation", [batch(seed=1)])
    peft_model.enable_adapter_layers()
    assert any((order[key] != without[key]).any() for key in order)
    apply_order(model, order)
    torch.testing.assert_close(peft_model(**batch()).logits, expected, atol=1e-5, rtol=0)


def test_what_does_not_run_cannot_be_ranked():
    config = config_of("bert", num_labels=2)
    base = randomize(ElasticForSequenceClassification.stock_class(config)(config))

    class Own(nn.Module):  # reads the weights of what it replaces, and is no linear layer
        def __init__(self, inner):
            super().__init__()
            self.weight, self.bias = inner.weight, inner.bias

        def forward(self, states):
            return nn.functional.linear(states, self.weight, self.bias)

    output = base.bert.encoder.layer[2].output
    output.dense = Own(output.dense)
    options = {"space": {"intermediate_size": [16, 48]}, "calibration": [batch()]}
    with pytest.raises(ValueError, match="no linear layer that reads ffn in layer 2"):
        ElasticForSequenceClassification.from_base(base, importance="activation", **options)


# --- layers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
@torch.no_grad()
def test_influence_is_what_a_layer_changes_before_the_final_norm(model_type):
    config = config_of(model_type)
    base = randomize(ElasticModel.stock_class(config)(config))
    inputs = batch(length=12)
    model = ElasticModel.from_base(
        base, {"num_hidden_layers": [1, 2, 3, 4]}, importance="none", layer_order="influence", calibration=[inputs]
    )
    mask = inputs["attention_mask"].bool()
    states = list(base(**inputs, output_hidden_states=True).hidden_states)
    if model_type != "bert":  # the last one is after the final norm: take what the last layer writes
        layers = base.h if model_type == "gpt2" else base.layers
        handle = layers[-1].register_forward_hook(
            lambda _, __, output: states.__setitem__(-1, output[0] if isinstance(output, tuple) else output)
        )
        base(**inputs)
        handle.remove()
    cosines = [torch.cosine_similarity(a[mask], b[mask], dim=-1).mean().item() for a, b in itertools.pairwise(states)]
    assert model.config.layer_order == list(np.argsort(cosines))
    assert model.resolve({"num_hidden_layers": 1}).layers == (int(np.argmin(cosines)),)

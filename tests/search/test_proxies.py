import copy
import random
import re

import numpy as np
import pytest
import tiny
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, GPT2Config, GPT2LMHeadModel

from hf_elastic import ElasticConfig, ElasticForCausalLM, ElasticForMaskedLM
from hf_elastic.search.proxies.pca import principal_components
from hf_elastic.search.proxies.shapes import Shapes, gpt2_shapes, shapes_of, transfo_xl_shapes
from hf_elastic.search.proxies.table import CLOSED_FORMS, PROXIES, closed_form, find_proxy, score

# Names of the matrices of one layer, of those of the feed-forward, and of what is hooked, in three families.
FAMILIES = {
    "bert": {
        "attention": ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
        "ffn": ("intermediate.dense", ".{i}.output.dense"),
        "layer": "bert.encoder.layer.{i}",
        "context": "attention.output.dense",
        "first": "intermediate.dense",
    },
    "gpt2": {
        "attention": ("attn.c_attn", "attn.c_proj"),
        "ffn": ("mlp.c_fc", "mlp.c_proj"),
        "layer": "transformer.h.{i}",
        "context": "attn.c_proj",
        "first": "mlp.c_fc",
    },
    "llama": {
        "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
        "ffn": ("gate_proj", "up_proj", "down_proj"),
        "layer": "model.layers.{i}",
        "context": "self_attn.o_proj",
        "first": "mlp.gate_proj",
    },
}
LAYERS, HEADS, HEAD = 4, 4, 8
BACKBONES = [name if name in FAMILIES else pytest.param(name, marks=pytest.mark.slow) for name in tiny.CONFIGS]


def stock(name: str, **changes):
    torch.manual_seed(0)  # the same model at every call
    auto = AutoModelForMaskedLM if name in tiny.ENCODERS else AutoModelForCausalLM
    return tiny.randomize(auto.from_config(tiny.config_of(name, **changes)))


def elastic(name: str):
    kind = ElasticForMaskedLM if name in tiny.ENCODERS else ElasticForCausalLM
    return tiny.randomize(kind(ElasticConfig(base_config=tiny.config_of(name), space=tiny.space_of(name))))


def labelled(rows: int = 3) -> dict[str, torch.Tensor]:
    batch = tiny.batch(rows=rows)
    return {**batch, "labels": batch["input_ids"].clone()}


def matrices(model, name: str, part: str):
    """The matrices of attention or of the feed-forward, found by their names alone."""
    found = []
    for i in range(LAYERS):
        layer = FAMILIES[name]["layer"].format(i=i)
        ends = [f"{end.format(i=i)}.weight" for end in FAMILIES[name][part]]
        found += [p for n, p in model.named_parameters() if n.startswith(f"{layer}.") and any(n.endswith(end) for end in ends)]
    assert len(found) == LAYERS * len(FAMILIES[name][part])
    return found


# Closed forms


def test_closed_forms_by_hand():
    shapes = Shapes(
        attention=np.array([[10, 20], [30, 0]]),
        ffn=np.array([[100, 200], [400, 0]]),
        other=np.array([[1, 2], [3, 0]]),
        heads=np.array([[1, 32], [1, 0]]),
        final=np.array([5, 0]),
        width=np.array([109, 218]),
    )
    assert PROXIES["decoder_parameters"].compute(shapes).tolist() == [338, 433]
    assert PROXIES["attention_times_ffn"].compute(shapes).tolist() == [9000, 12000]
    # 32^(1/5) = 2, so the attention of the first is 10 + 2 * 20
    expected = [50**0.4 * 300**0.6, 30**0.4 * 400**0.6]
    np.testing.assert_allclose(PROXIES["layer_capacity"].compute(shapes), expected)
    np.testing.assert_allclose(PROXIES["capacity"].compute(shapes), [expected[0] / np.e, expected[1] / np.e**0.5])


def test_gpt2_shapes_are_those_of_the_stock_model():
    for d, f, layers, heads in ((32, 48, 3, 4), (64, 200, 1, 2)):
        model = GPT2LMHeadModel(GPT2Config(n_embd=d, n_inner=f, n_layer=layers, n_head=heads, vocab_size=50, n_positions=16))
        shapes = gpt2_shapes(np.array([d]), np.full((1, layers), f), np.full((1, layers), heads))
        outside = model.transformer.wte.weight.numel() + model.transformer.wpe.weight.numel()
        assert PROXIES["decoder_parameters"].compute(shapes)[0] == model.num_parameters() - outside
        for name, values in closed_form(model).items():
            np.testing.assert_allclose(values, PROXIES[name].compute(shapes), err_msg=name)


def test_transfo_xl_shapes_by_hand():
    # d = 4, f = 6: q, k, v, position and output matrices, two biases of d; two matrices and their biases; two LayerNorms
    shapes = transfo_xl_shapes(np.array([4]), np.array([[6, 6, 0]]), np.array([[2, 2, 0]]), np.array([3]))
    assert shapes.attention.tolist() == [[5 * 16 + 2 * 4] * 2 + [0]]
    assert shapes.ffn.tolist() == [[4 * 6 + 6 + 6 * 4 + 4] * 2 + [0]]
    assert shapes.other.tolist() == [[16, 16, 0]]
    assert shapes.width.tolist() == [3]
    assert PROXIES["decoder_parameters"].compute(shapes).tolist() == [2 * (88 + 58 + 16)]


@pytest.mark.parametrize("name", BACKBONES)
def test_shapes_of_subnets_are_those_of_the_views(name):
    model = elastic(name)
    generator = random.Random(1)
    subnets = [None, *(model.space.sample(generator) for _ in range(5))]
    shapes = shapes_of(model, subnets)
    container = model.layout.container
    for row, subnet in enumerate(subnets):
        view = model.view(subnet)
        inside = {n: p.numel() for n, p in view.named_parameters() if n.startswith(f"{container}.")}
        ffn = sum(size for n, size in inside.items() if any(key in n for key in FFN_NAMES[name]))
        norms = sum(size for n, size in inside.items() if re.search(r"norm|\.ln_|\.squeeze\.|\.expand\.", n.lower()))
        head_norms = sum(size for n, size in inside.items() if "q_norm" in n or "k_norm" in n)
        assert shapes.ffn[row].sum() == ffn
        assert shapes.other[row].sum() == norms - head_norms
        assert shapes.attention[row].sum() == sum(inside.values()) - ffn - norms + head_norms
        final = LAST_NORMS.get(name, "model.norm")
        outside = [p.numel() for n, p in view.named_parameters() if n not in inside and f"{final}." in n]
        assert shapes.final[row] == sum(outside)
        sizes = model.subnet(subnet)
        depth = len(model.resolve(subnet).layers)
        heads = sizes["num_attention_heads"]
        assert sorted(shapes.heads[row][shapes.heads[row] > 0]) == sorted(heads if isinstance(heads, tuple) else [heads] * depth)
        assert shapes.width[row] == min(sizes["hidden_size"], EMBEDDINGS.get(name, sizes["hidden_size"]))


_BERT_FFN = (".intermediate.", *(f"layer.{i}.output.dense" for i in range(4)))
FFN_NAMES = {
    **dict.fromkeys(tiny.CONFIGS, (".mlp.",)),
    "transformer_xl": ("CoreNet",),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "ernie", "mpnet", "deberta-v2", "electra"), _BERT_FFN),
    "distilbert": (".ffn.",),
    "opt": (".fc1.", ".fc2."),
    "elm": (".feed_forward.",),
}
EMBEDDINGS = {"electra": 20, "opt": 20, "elm": 20}
LAST_NORMS = {
    "gpt2": "ln_f",
    "opt": "decoder.final_layer_norm",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "modernbert": "final_norm",
    "phi": "final_layernorm",
    "deberta-v2": "encoder.LayerNorm",  # of its table of positions
}


def test_a_population_at_once_is_one_by_one():
    model = elastic("gpt2")
    generator = random.Random(2)
    subnets = [model.space.sample(generator) for _ in range(20)]
    together = closed_form(model, subnets)
    assert tuple(together) == CLOSED_FORMS
    for name, values in together.items():
        assert values.shape == (20,)
        np.testing.assert_allclose(values, [score(name, model, subnet=subnet) for subnet in subnets], rtol=1e-12)


# Proxies that need weights


@pytest.mark.parametrize("name", FAMILIES)
def test_proxies_of_gradients_are_their_equations(name):
    model, batch = stock(name), labelled()
    attention, ffn = matrices(model, name, "attention"), matrices(model, name, "ffn")
    slopes = torch.autograd.grad(model(**batch).loss, attention + ffn)
    saliency = [float((w * g).abs().sum().detach()) for w, g in zip(attention + ffn, slopes)]
    assert score("snip", model, batch) == pytest.approx(sum(saliency), rel=1e-5)
    assert score("synaptic_saliency", model, batch) == pytest.approx(sum(saliency[len(attention) :]), rel=1e-5)
    assert score("grad_norm", model, batch) == pytest.approx(sum(float((g**2).sum() ** 0.5) for g in slopes), rel=1e-5)
    spectra = [torch.linalg.svdvals(w).sum() * torch.linalg.svdvals(g).sum() for w, g in zip(attention, slopes)]
    assert score("synaptic_diversity", model, batch) == pytest.approx(float(sum(spectra).detach()), rel=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_synflow_is_the_flow_through_a_network_of_magnitudes(name):
    model = stock(name)
    twin = copy.deepcopy(model).double()
    for module_name, module in list(twin.named_modules()):
        if "norm" in type(module).__name__.lower():
            parent, _, child = module_name.rpartition(".")
            setattr(twin.get_submodule(parent), child, torch.nn.Identity())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.abs_()
    weights = matrices(twin, name, "attention") + matrices(twin, name, "ffn")
    with sdpa_kernel(SDPBackend.MATH):  # fused kernels leave a rounding error where the gradient is 0
        flow = twin.base_model(inputs_embeds=torch.ones(1, 1, 32, dtype=torch.float64)).last_hidden_state.sum()
        slopes = torch.autograd.grad(flow, weights)
    expected = sum(float((w * g).sum().detach()) for w, g in zip(weights, slopes))
    assert expected > 0
    assert score("synflow", model) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_head_importance_is_the_slope_of_a_gate_on_each_head(name):
    model, batch = stock(name), labelled()
    rows = len(batch["input_ids"])
    gates = [torch.ones(rows, HEADS, requires_grad=True) for _ in range(LAYERS)]
    for i, gate in enumerate(gates):
        path = f"{FAMILIES[name]['layer'].format(i=i)}.{FAMILIES[name]['context']}"

        def hook(_module, args, gate=gate):
            return (args[0] * gate.repeat_interleave(HEAD, dim=1)[:, None],)

        model.get_submodule(path).register_forward_pre_hook(hook)
    slopes = torch.autograd.grad(model(**batch).loss, gates)
    expected = sum(float(slope.abs().sum()) for slope in slopes)
    assert score("head_importance", stock(name), batch) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_head_confidence_is_the_mean_of_the_largest_weights(name):
    model, batch = stock(name), labelled()
    eager = stock(name, attn_implementation="eager")
    attentions = eager(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_attentions=True).attentions
    expected = 0.0
    for layer in attentions:
        largest = [
            float(layer[row, head, token].max().detach())
            for row in range(3)
            for token in range(9)
            for head in range(HEADS)
            if batch["attention_mask"][row, token]
        ]
        expected += sum(largest) / len(largest)
    assert score("head_confidence", model, batch) == pytest.approx(expected, rel=1e-5)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", FAMILIES)
def test_pca_of_the_feed_forward(name):
    model, batch = stock(name), tiny.batch(length=60, rows=3)
    seen = {}
    for i in range(LAYERS):
        module = model.get_submodule(f"{FAMILIES[name]['layer'].format(i=i)}.{FAMILIES[name]['first']}")
        module.register_forward_hook(lambda _module, _args, output, i=i: seen.update({i: output.detach()}))
    model(**batch)
    expected = 0
    for values in seen.values():
        tokens = values[batch["attention_mask"].bool()].double().numpy()
        variances = np.linalg.svd(tokens - tokens.mean(0), compute_uv=False) ** 2
        expected += int(np.searchsorted(variances.cumsum() / variances.sum(), 0.99)) + 1
    assert LAYERS < expected < LAYERS * 48
    assert score("v_pca", stock(name), batch) == expected
    assert score("w_pca", stock(name), batch) == expected * model.num_parameters()


def test_principal_components_of_known_variance():
    directions = torch.eye(5)[:3] * torch.tensor([[10.0], [3.0], [0.5]])
    values = torch.cat([directions, -directions]) + 7
    # variances 100, 9 and 0.25: the first holds 91.5%, two 99.8%
    assert [principal_components(values, share) for share in (0.9, 0.99, 0.999)] == [1, 2, 3]
    assert principal_components(torch.ones(4, 3)) == 0


@pytest.mark.parametrize("name", BACKBONES)
def test_a_subnet_scores_as_what_is_extracted_and_nothing_is_changed(name):
    model, batch = elastic(name), labelled()
    model.train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    implementation = model.base.config._attn_implementation
    subnet = {"num_hidden_layers": 3, "intermediate_size": 33}
    extracted = model.extract(subnet)
    for proxy in PROXIES:
        assert score(proxy, model, batch, subnet) == pytest.approx(score(proxy, extracted, batch), rel=1e-3), proxy
    assert model.training
    assert model.base.config._attn_implementation == implementation
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_of_different_sizes(name):
    model, batch = elastic(name), labelled()
    axes = {"num_hidden_layers": 2, "num_attention_heads": (2, 4), "intermediate_size": (7, 48)}
    axes |= {"num_key_value_heads": (1, 2)} if name == "llama" else {}
    for proxy in PROXIES:
        smaller, larger = score(proxy, model, batch, axes), score(proxy, model, batch)
        assert 0 < smaller < np.inf
        assert proxy in ("head_confidence", "head_importance", "grad_norm", "snip") or smaller < larger


def test_a_flow_that_floats_do_not_hold_is_an_error():
    model = stock("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e12)
    with pytest.raises(ValueError, match=r"synflow: what flows through LlamaForCausalLM is beyond what floats hold"):
        score("synflow", model)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: find_proxy("magic"), r"unknown proxy 'magic'; known: decoder_parameters, .*w_pca"),
        (lambda model: closed_form(model, names=["snip"]), r"snip is not a closed form: it needs labels; closed forms: "),
        (lambda model: score("snip", model, tiny.batch()), r"snip needs a batch with labels"),
        (lambda model: score("v_pca", model, tiny.batch(), {"num_hidden_layers": 2}), r"GPT2LMHeadModel is not elastic"),
        (lambda model: closed_form(model, [{"num_hidden_layers": 2}]), r"GPT2LMHeadModel is not elastic"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(stock("gpt2"))

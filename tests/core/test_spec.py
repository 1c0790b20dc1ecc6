"""The notation: parsing, solving, cutting, permuting, zeroing, and Specs as data."""

import json
import pickle

import numpy as np
import pytest
import torch
from tiny import CONFIGS, config_of
from transformers import AutoModel
from zeroing import keep_only

from hf_elastic import ElasticModel
from hf_elastic.core.layout import Layout
from hf_elastic.core.shapes import (
    Equation,
    SpecError,
    axes_in,
    axis_index,
    chosen_indices,
    cut,
    evaluate,
    parse,
    permute,
    plan_cut,
    size,
    solve,
    substitute,
)
from hf_elastic.core.spec import SPECS, Spec, register_spec, spec_for

FULL = {"heads": 3, "head": 2, "hidden": 4, "ffn": 5, "kv": 2, "group": 2}
SHAPES = [
    "hidden",
    "hidden ffn",
    "(heads head) hidden",
    "hidden (heads head)",
    "hidden (3 heads head)",
    "(heads 3 head) hidden",
    "(2 ffn) hidden",
    "((kv group head)+(kv head)+(kv head)) hidden",
    "(kv head + 2) ffn",
]
ALL = {"kv": 1, "group": 1, "hidden": 2, "ffn": 4, "heads": 1}
KEPT = [{"heads": 2}, {"hidden": 3}, {"ffn": 1}, {"kv": 1}, {"group": 1}, ALL]


@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ("hidden", ((("hidden",),),)),
        ("vocab hidden", ((("vocab",),), (("hidden",),))),
        ("(heads head) hidden", ((("heads", "head"),), (("hidden",),))),
        ("(2 ffn)", (((2, "ffn"),),)),
        ("((kv group head)+(kv head))", ((("kv", "group", "head"), ("kv", "head")),)),
        ("(kv group head + kv head)", ((("kv", "group", "head"), ("kv", "head")),)),
        ("((heads head))", ((("heads", "head"),),)),
        ("((heads) head 3)", ((("heads", "head", 3),),)),
        ("7", (((7,),),)),
    ],
)
def test_parse(shape, dims):
    assert parse(shape) == dims


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("(heads head", r"missing '\)'.*\(heads head"),
        ("heads) hidden", r"unexpected '\)'"),
        ("()", "empty group"),
        ("(heads +)", "empty group"),
        ("(+ heads)", "empty group"),
        ("heads*head", r"unexpected '\*'"),
        ("heads-1", "unexpected '-'"),
        ("0", "unexpected '0'"),
        ("(0 ffn)", "unexpected '0'"),
        ("((a + b) c)", "sum cannot be a factor"),
        ("a + b", r"unexpected '\+'"),
    ],
)
def test_parse_errors(shape, message):
    with pytest.raises(SpecError, match=message):
        parse(shape)


def equations(**values):
    texts = {name: name.replace("_", " ").replace("plus", "+") for name in values}
    return [Equation(parse(f"({texts[name]})")[0], value, f"config.{name}") for name, value in values.items()]


def test_solve():
    assert solve(equations(heads_head=6, heads=3)) == {"heads": 3, "head": 2}
    fused = [Equation(parse("((kv group head)+(kv head)+(kv head))")[0], 16, "qkv"), *equations(kv=2, head=2)]
    assert solve(fused) == {"kv": 2, "head": 2, "group": 2}
    assert solve([]) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"heads_head": 7, "heads": 3}, r"config.heads_head is 7, which does not fit \(heads head\) with heads=3"),
        ({"heads_head": 6, "heads": 3, "head": 4}, r"config.heads_head is 6.*head=4.*heads=3"),
        ({"heads_plus_2": 2}, r"config.heads_plus_2 is 2"),
        ({"heads_head": 6}, "axes head, heads do not follow"),
    ],
)
def test_solve_errors(given, message):
    with pytest.raises(SpecError, match=message):
        solve(equations(**given))


def tensor_of(dims):
    shape = [size(dim, FULL) for dim in dims]
    return torch.arange(1.0, 1 + np.prod(shape)).reshape(shape)


def expected_cut(tensor, dims, kept):
    """The same by looping over every index."""
    for position, dim in enumerate(dims):
        flags = []
        for segment in dim:
            lengths = [FULL[f] if isinstance(f, str) else f for f in segment]
            flags += [all(i < kept.get(f, n) for i, f, n in zip(index, segment, lengths)) for index in np.ndindex(*lengths)]
        tensor = tensor.movedim(position, 0)[torch.tensor(flags)].movedim(0, position)
    return tensor


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kept", KEPT, ids=str)
def test_cut(shape, kept):
    dims = parse(shape)
    tensor = tensor_of(dims).requires_grad_()
    sizes = {**FULL, **kept}
    result = cut(tensor, plan_cut(dims, FULL, kept))
    assert torch.equal(result, expected_cut(tensor, dims, kept))
    assert tuple(result.shape) == tuple(size(dim, sizes) for dim in dims)
    result.sum().backward()
    zeroed = keep_only(tensor.detach(), dims, FULL, kept)
    assert torch.equal(tensor.grad, (zeroed != 0).float())
    assert torch.equal(zeroed[zeroed != 0], result.detach().flatten())


def test_prefixes_are_views():
    dims = parse("(heads head) hidden")
    tensor = tensor_of(dims)
    result = cut(tensor, plan_cut(dims, FULL, {"heads": 2, "hidden": 3}))
    assert result.data_ptr() == tensor.data_ptr()
    assert plan_cut(dims, FULL, {"heads": 3, "hidden": 4}) == ()


@pytest.mark.parametrize("shape", SHAPES)
def test_permute_commutes_with_cut_and_back(shape):
    dims = parse(shape)
    tensor = tensor_of(dims)
    generator = np.random.default_rng(0)
    order = {axis: generator.permutation(FULL[axis]) for axis in axes_in(dims) if axis != "head"}
    moved = permute(tensor, dims, FULL, order)
    assert torch.equal(permute(moved, dims, FULL, {axis: np.argsort(o) for axis, o in order.items()}), tensor)
    assert torch.equal(permute(tensor, dims, FULL, {}), tensor)
    for position, dim in enumerate(dims):
        assert torch.equal(moved.sort(position).values.sum(), tensor.sum())
        for axis in axes_in([dim]) & order.keys():
            index = axis_index(dim, FULL, axis)
            assert (np.bincount(index[index >= 0], minlength=FULL[axis]) > 0).all()


def test_chosen_indices_and_axis_index():
    dim = parse("((kv group head)+(kv head))")[0]
    assert chosen_indices(dim, FULL, {"kv": np.array([1]), "group": np.array([0])}).tolist() == [4, 5, 10, 11]
    assert axis_index(dim, FULL, "group").tolist() == [0, 0, 1, 1, 0, 0, 1, 1, -1, -1, -1, -1]


def test_evaluate_and_substitute():
    assert evaluate("heads head", FULL) == 6
    assert evaluate("3 heads", FULL) == 9
    assert evaluate("hidden^0.5", FULL) == 2.0
    assert substitute(parse("(a b) a"), {"a": "c"}) == parse("(c b) c")


# --- Specs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", CONFIGS)
def test_spec_survives_json_with_sorted_keys(model_type):
    spec = spec_for(model_type)
    again = Spec.from_dict(json.loads(json.dumps(spec.to_dict(), sort_keys=True)))
    assert again == spec
    assert list(again.parameters) == list(spec.parameters)
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_unknown_model_type_names_the_known():
    with pytest.raises(SpecError, match=r"'t5'; known: bert, camembert.*CONTRIBUTING\.md"):
        spec_for("t5")


def test_register(monkeypatch):
    monkeypatch.setattr("hf_elastic.core.spec.SPECS", dict(SPECS))
    spec = register_spec(Spec(("mine", "yours"), "*h.#", {"n": "hidden"}, {"*": "hidden"}))
    assert spec_for("mine") is spec_for("yours") is spec
    assert "mine" not in SPECS


def test_shape_of_takes_the_first_match():
    spec = Spec(("x",), "*h.#", {}, {"*q.weight": "heads", "*.weight": "hidden"})
    assert spec.shape_of("h.0.q.weight") == "heads"
    assert spec.shape_of("h.0.k.weight") == "hidden"
    with pytest.raises(SpecError, match=r"x Spec matches the parameter 'h\.0\.k\.bias'"):
        spec.shape_of("h.0.k.bias")


@pytest.mark.parametrize(
    ("layers", "name", "expected"),
    [
        ("*encoder.layer.#", "bert.encoder.layer.3.output.bias", ("bert.encoder.layer", 3, "output.bias")),
        ("*encoder.layer.#", "encoder.layer.11", ("encoder.layer", 11, None)),
        ("*h.#", "transformer.h.0.attn.weight", ("transformer.h", 0, "attn.weight")),
        ("*h.#", "transformer.wh.0.attn", None),
        ("*layers.#", "model.norm.weight", None),
    ],
)
def test_layer_of(layers, name, expected):
    assert Spec(("x",), layers, {}, {}).layer_of(name) == expected


def broken(model_type="bert", **changes):
    spec = spec_for(model_type)
    data = {**{key: getattr(spec, key) for key in spec.__dataclass_fields__}, **changes}
    return Spec(**data)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (broken(parameters={"*": "hidden"}), "dimensions are declared"),
        (broken(parameters={"embeddings*": "vocab hidden"}), "no shape string"),
        (broken(config={"hidden_size": "hidden", "num_attention_heads": "ffn"}), "which does not fit"),
        (broken(config={"hidden_size": "hidden"}), "do not follow from the config and the tensors"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused(spec, message):
    with pytest.raises(SpecError, match=message):
        Layout(spec, AutoModel.from_config(config_of("bert")))


def test_layer_order_has_to_name_every_layer():
    model = AutoModel.from_config(config_of("bert"))
    assert Layout(spec_for("bert"), model, [3, 0, 1, 2]).resolve({"num_hidden_layers": 2}).layers == (0, 3)
    for order in ([0, 1, 2], [0, 1, 2, 2], [1, 2, 3, 4]):
        with pytest.raises(SpecError, match="is not an order of the 4 layers"):
            Layout(spec_for("bert"), model, order)


def test_named_layer_orders(tmp_path):
    """`ends` keeps the first and the last layer longest, in the checkpoint too; the default keeps the first ones."""
    config = config_of("bert")
    kept = {}
    for order in ("first", "ends", [2, 0, 1, 3]):
        model = ElasticModel.from_base(AutoModel.from_config(config), {"num_hidden_layers": [1, 2, 3, 4]}, layer_order=order)
        model.save_pretrained(tmp_path)
        again = ElasticModel.from_pretrained(tmp_path)
        assert again.config.layer_order == model.config.layer_order
        kept[str(order)] = [again.resolve({"num_hidden_layers": depth}).layers for depth in (1, 2, 3)]
    assert kept == {
        "first": [(0,), (0, 1), (0, 1, 2)],
        "ends": [(0,), (0, 3), (0, 1, 3)],
        "[2, 0, 1, 3]": [(2,), (0, 2), (0, 1, 2)],
    }
    with pytest.raises(ValueError, match="layer_order: 'last' is unknown; known: first, ends, influence, or a list"):
        ElasticModel.from_base(AutoModel.from_config(config), layer_order="last")

"""Subnets and spaces by themselves: equality, counting, sampling, genes."""

import json
import pickle
import random

import pytest

from hf_elastic import Space, Subnet

SPACES = {
    "one": Space({"intermediate_size": [16]}),
    "depth": Space({"num_hidden_layers": [3, 1, 2]}),
    "layers": Space({"layers": [[0, 1], [0], [0, 2]], "hidden_size": [8, 4]}),
    "uniform": Space({"num_hidden_layers": [1, 3], "num_attention_heads": [1, 2, 4], "intermediate_size": [8, 16]}),
    "per_layer": Space({"num_hidden_layers": [1, 3], "intermediate_size": [8, 16], "hidden_size": [4, 8]}, ["intermediate_size"]),
    "two_per_layer": Space(
        {"num_hidden_layers": [1, 2], "intermediate_size": [8, 16], "num_attention_heads": [1, 2]},
        ["intermediate_size", "num_attention_heads"],
    ),
    "per_layer_of_layers": Space({"layers": [[0], [0, 2], [1, 2, 3]], "intermediate_size": [8, 16]}, ["intermediate_size"]),
    "grouped": Space({"num_hidden_layers": [1, 2], "num_attention_heads": [1, 2, 3, 4], "num_key_value_heads": [1, 2]}),
    "grouped_per_layer": Space(
        {"num_hidden_layers": [1, 3], "num_attention_heads": [2, 4], "num_key_value_heads": [1, 2]},
        ["num_attention_heads", "num_key_value_heads"],
    ),
    "one_per_layer": Space({"num_hidden_layers": [1, 3], "intermediate_size": [8]}, ["intermediate_size"]),
}
each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


@each_space
def test_length_is_the_number_enumerated(space):
    subnets = list(space.enumerate())
    assert len(space) == len(subnets) == len(set(subnets))


@each_space
def test_largest_and_smallest_are_members(space):
    subnets = set(space.enumerate())
    assert {space.largest, space.smallest} <= subnets

    def total(subnet):
        values = [value for axis, value in subnet.items() if axis != "layers"]
        return sum(max(value) if isinstance(value, tuple) else value for value in values)

    assert total(space.largest) == max(map(total, subnets))
    assert total(space.smallest) == min(map(total, subnets))


@each_space
def test_samples_are_members_and_reach_all(space):
    subnets = set(space.enumerate())
    generator = random.Random(0)
    seen = {space.sample(generator) for _ in range(60 * len(subnets))}
    assert seen == subnets
    assert space.sample(random.Random(7)) == space.sample(random.Random(7))


@each_space
def test_genes(space):
    subnets = set(space.enumerate())
    generator = random.Random(0)
    genes = {gene: choices[0] for gene, choices in space.genes().items()}
    assert space.from_genes(genes) == space.smallest
    for _ in range(50):
        genes = {gene: generator.choice(choices) for gene, choices in space.genes().items()}
        assert space.from_genes(genes) in subnets


@each_space
def test_dict_and_json(space):
    again = Space.from_dict(json.loads(json.dumps(space.to_dict())))
    assert again == space and hash(again) == hash(space)
    assert again.to_dict() == space.to_dict()
    assert list(again.enumerate()) == list(space.enumerate())
    assert pickle.loads(pickle.dumps(space)) == space
    assert repr(space).startswith("Space({")


def test_equality_is_about_values_not_order():
    assert SPACES["depth"] == Space({"num_hidden_layers": [1, 2, 3, 3]})
    assert Space({"hidden_size": [4, 8], "num_hidden_layers": [1]}) == Space({"num_hidden_layers": [1], "hidden_size": [8, 4]})
    assert SPACES["depth"] != Space({"num_hidden_layers": [1, 2]})
    assert SPACES["two_per_layer"] != Space({**SPACES["two_per_layer"]})
    assert SPACES["depth"] != {"num_hidden_layers": [1, 2, 3]}


def test_space_is_a_mapping_of_sorted_values():
    space = SPACES["uniform"]
    assert list(space) == ["num_hidden_layers", "num_attention_heads", "intermediate_size"]
    assert space["num_attention_heads"] == (1, 2, 4)
    assert "hidden_size" not in space
    assert SPACES["layers"]["layers"] == ((0,), (0, 1), (0, 2))


def test_max_group():
    values = {"num_attention_heads": [1, 2, 4, 8], "num_key_value_heads": [1, 2]}
    pairs = {(s["num_attention_heads"], s["num_key_value_heads"]) for s in Space(values).enumerate()}
    assert pairs == {(1, 1), (2, 1), (4, 1), (2, 2), (4, 2), (8, 2)}
    pairs = {(s["num_attention_heads"], s["num_key_value_heads"]) for s in Space(values, max_group=2).enumerate()}
    assert pairs == {(1, 1), (2, 1), (2, 2), (4, 2)}


def test_enumeration_is_lazy_and_length_is_exact_where_nothing_could_enumerate():
    space = Space({"num_hidden_layers": [6, 12], "intermediate_size": [1, 2, 3, 4, 5]}, ["intermediate_size"])
    assert len(space) == 5**6 + 5**12
    assert next(iter(space.enumerate())) == space.smallest
    deep = Space({"num_hidden_layers": [16], "intermediate_size": list(range(1, 21))}, ["intermediate_size"])
    assert deep.size == 20**16 and bool(deep)
    with pytest.raises(OverflowError):
        len(deep)


def test_subnet():
    subnet = Subnet({"intermediate_size": [8, 16], "num_hidden_layers": 2})
    assert dict(subnet) == {"num_hidden_layers": 2, "intermediate_size": (8, 16)}
    assert subnet == Subnet(num_hidden_layers=2, intermediate_size=(8, 16)) == Subnet(subnet)
    assert hash(subnet) == hash(Subnet(subnet.to_dict()))
    assert subnet != Subnet(num_hidden_layers=2)
    assert subnet.to_dict() == json.loads(json.dumps(subnet.to_dict()))
    assert Subnet(json.loads(json.dumps(subnet.to_dict()))) == subnet
    assert len(Subnet()) == 0 and Subnet() == Subnet({}) == Subnet(None)
    assert pickle.loads(pickle.dumps(subnet)) == subnet
    assert repr(subnet) == "Subnet({'num_hidden_layers': 2, 'intermediate_size': [8, 16]})"
    with pytest.raises(TypeError):
        subnet["hidden_size"] = 3


def test_numpy_integers_become_ints():
    numpy = pytest.importorskip("numpy")
    subnet = Subnet({"num_hidden_layers": numpy.int64(2), "intermediate_size": [numpy.int32(8), 16]})
    assert json.dumps(subnet.to_dict()) == '{"num_hidden_layers": 2, "intermediate_size": [8, 16]}'


def test_heads_that_follow_the_hidden_size():
    values = {"num_hidden_layers": [1, 2], "hidden_size": [16, 32, 48], "intermediate_size": [7, 9]}
    space = Space(values, per_layer=["intermediate_size"], head_size=8)
    assert {subnet["num_attention_heads"] * 8 for subnet in space.enumerate()} == {16, 32, 48}
    assert all(subnet["num_attention_heads"] * 8 == subnet["hidden_size"] for subnet in space.enumerate())
    assert len(space) == len(list(space.enumerate())) == 3 * (2 + 4)
    assert Space.from_dict(space.to_dict()) == space != Space(values, per_layer=["intermediate_size"])
    assert "num_attention_heads" not in space.genes()


@pytest.mark.parametrize(
    ("values", "head_size", "message"),
    [
        ({"hidden_size": [16, 20]}, 8, "head_size: 8 does not divide the hidden_size 20"),
        ({"num_hidden_layers": [1]}, 8, "follows hidden_size, which the space must have"),
        ({"hidden_size": [16], "num_attention_heads": [2]}, 8, "and no counts of heads"),
        ({"hidden_size": [16]}, 0, "head_size: 0 is not allowed"),
    ],
)
def test_bad_head_sizes(values, head_size, message):
    with pytest.raises(ValueError, match=message):
        Space(values, head_size=head_size)

"""Shapes and cuts against index arithmetic written out, and spaces that nobody thought of."""

import copy
import itertools
import json
import pickle
import random
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from hf_elastic import Space, Subnet
from hf_elastic.core.errors import UserError
from hf_elastic.core.shapes import Equation, cut, parse, parse_stored, permute, plan_cut, size, solve
from hf_elastic.core.space import ELASTIC_AXES

pytestmark = pytest.mark.one_lane
AXES = ("a", "b", "c", "d")
SIZES = st.fixed_dictionaries({axis: st.integers(1, 4) for axis in AXES})


@st.composite
def segments(draw):
    """A product of different axes, with numbers in between."""
    axes = draw(st.lists(st.sampled_from(AXES), unique=True, max_size=3))
    numbers = draw(st.lists(st.integers(1, 3), min_size=0 if axes else 1, max_size=2))
    return tuple(draw(st.permutations([*axes, *numbers])))


DIMS = st.lists(st.lists(segments(), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3).map(tuple)


def written(dims) -> str:
    return " ".join("(" + "+".join(" ".join(map(str, segment)) for segment in dim) + ")" for dim in dims)


def indices(dim, full, chosen) -> list[int]:
    """Positions along a dimension whose index along every axis is chosen, in the order of the choices: one by one."""
    found, offset = [], 0
    for segment in dim:
        lengths = [full.get(factor, factor) for factor in segment]
        for places in itertools.product(*(chosen.get(factor, range(n)) for factor, n in zip(segment, lengths))):
            position = 0
            for place, length in zip(places, lengths):
                position = position * length + place
            found.append(offset + position)
        offset += prod(lengths)
    return found


def tensor_of(dims, full) -> torch.Tensor:
    shape = [size(dim, full) for dim in dims]
    return torch.arange(prod(shape), dtype=torch.float64).reshape(shape)


def taken(tensor, dims, full, chosen) -> torch.Tensor:
    return tensor[np.ix_(*(indices(dim, full, chosen) for dim in dims))]


@given(DIMS)
def test_what_is_written_is_read(dims):
    assert parse(written(dims)) == dims


@given(DIMS, SIZES, st.data())
def test_a_cut_takes_the_first_of_every_axis(dims, full, data):
    kept = {axis: data.draw(st.integers(1, full[axis])) for axis in AXES}
    tensor = tensor_of(dims, full).requires_grad_()
    expected = taken(tensor, dims, full, {axis: range(count) for axis, count in kept.items()})
    found = cut(tensor, plan_cut(dims, full, kept))
    assert torch.equal(found, expected) and list(found.shape) == [size(dim, kept) for dim in dims]
    gradients = [torch.autograd.grad(result.sum(), tensor)[0] for result in (found, expected)]
    assert torch.equal(*gradients)


@given(segments(), SIZES, st.data())
def test_the_outermost_axis_is_cut_without_a_copy(segment, full, data):
    outer = segment[0]
    assume(outer in full)
    kept = {**full, outer: data.draw(st.integers(1, full[outer]))}
    tensor = tensor_of(((segment,),), full)
    assert cut(tensor, plan_cut(((segment,),), full, kept)).data_ptr() == tensor.data_ptr()


@given(st.lists(st.sampled_from(AXES), unique=True, min_size=1, max_size=3), SIZES, st.data())
def test_a_vector_stored_as_rows_is_cut_as_one(axes, full, data):
    dims, rows = parse_stored(f"({' '.join(axes)}) -> {axes[0]}")
    kept = {axis: data.draw(st.integers(1, full[axis])) for axis in AXES}
    flat = tensor_of(dims, full)
    expected = taken(flat, dims, full, {axis: range(count) for axis, count in kept.items()})
    found = cut(flat.reshape(full[rows], -1), plan_cut(dims, full, kept, rows))
    assert torch.equal(found, expected.reshape(kept[rows], -1))


@given(DIMS, SIZES, st.data())
def test_axes_are_reordered_and_put_back(dims, full, data):
    order = {axis: np.array(data.draw(st.permutations(range(full[axis])))) for axis in data.draw(st.sets(st.sampled_from(AXES)))}
    tensor = tensor_of(dims, full)
    found = permute(tensor, dims, full, order)
    assert torch.equal(found, taken(tensor, dims, full, {axis: places.tolist() for axis, places in order.items()}))
    assert torch.equal(permute(found, dims, full, {axis: np.argsort(places) for axis, places in order.items()}), tensor)


@given(DIMS, SIZES)
def test_sizes_are_found_from_lengths(dims, full):
    names = {factor for dim in dims for segment in dim for factor in segment if isinstance(factor, str)}
    known = [Equation(((axis,),), full[axis], axis) for axis in sorted(names)[1:]]
    found = solve([*(Equation((*dim,), size(dim, full), "a length") for dim in dims), *known])
    assert found == {axis: full[axis] for axis in names}


@st.composite
def spaces(draw):
    """Spaces of a few hundred sizes at most, and the largest group; what cannot be is left to the tests of bad input."""
    counts = st.lists(st.integers(1, 12), min_size=1, max_size=3)
    values = {axis: draw(counts) for axis in draw(st.sets(st.sampled_from(ELASTIC_AXES), max_size=4))}
    depth = draw(st.sampled_from([None, "num_hidden_layers", "layers"]))
    if depth == "layers":
        layers = st.sets(st.integers(0, 4), min_size=1, max_size=2).map(sorted)
        values["layers"] = draw(st.lists(layers, min_size=1, max_size=3))
    elif depth:
        values[depth] = draw(st.lists(st.integers(1, 2), min_size=1, max_size=2))
    per_layer = draw(st.sets(st.sampled_from(sorted({*values} & {*ELASTIC_AXES} - {"hidden_size"}) or ["none"])))
    try:
        space = Space(values, sorted(per_layer) if depth else (), group := draw(st.none() | st.integers(1, 4)))
    except UserError:
        space = None
    assume(space is not None and space.size <= 300)
    return space, group


@given(spaces(), st.randoms(use_true_random=False))
def test_a_space_counts_samples_and_comes_back(drawn, generator):
    space, group = drawn
    subnets = list(space.enumerate())
    known = set(subnets)
    assert len(subnets) == len(known) == space.size == len(space)
    assert {space.largest, space.smallest, *space.extremes()} <= known
    assert all(space.sample(generator) in known for _ in range(5))
    for again in (pickle.loads(pickle.dumps(space)), copy.deepcopy(space)):
        assert again == space and hash(again) == hash(space) and set(again.enumerate()) == known
    # How large a group may be is the model's to say, so it is not part of the dict.
    again = Space.from_dict(json.loads(json.dumps(space.to_dict())), group)
    assert again == space and set(again.enumerate()) == known


@given(spaces(), st.integers())
def test_a_subnet_comes_back_and_a_seed_draws_the_same(drawn, seed):
    space, _ = drawn
    subnet, again = space.sample(random.Random(seed)), space.sample(random.Random(seed))
    assert subnet == again and hash(subnet) == hash(again)
    for one in (Subnet(json.loads(json.dumps(subnet.to_dict()))), Subnet(**subnet), pickle.loads(pickle.dumps(subnet))):
        assert one == subnet and hash(one) == hash(subnet) and list(one) == list(subnet)


@given(spaces(), st.data())
def test_genes_stand_for_sizes(drawn, data):
    space, _ = drawn
    genes = space.genes()
    values = {gene: data.draw(st.sampled_from(choices)) for gene, choices in genes.items()}
    assert space.from_genes(values) in set(space.enumerate())

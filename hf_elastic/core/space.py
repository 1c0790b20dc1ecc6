"""Which sizes a supernet has: `Subnet`, one choice, and `Space`, all of them.

An axis has integers as values, and a name that is the same for every architecture; or it has names as values, such as
`block_type: [bert, mobilebert]`, and the Spec of an architecture says which there are.
"""

from __future__ import annotations

import itertools
import operator
import random
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import prod

from .errors import UserError
from .spec import ELASTIC_AXES, FULL, SKIP

DEPTH_AXES = ("num_hidden_layers", "layers")
AXES = (*DEPTH_AXES, *ELASTIC_AXES)
# Grouped queries: the two head counts are only legal together, so they are drawn as one gene.
HEADS, KEY_VALUE_HEADS = "num_attention_heads", "num_key_value_heads"
# What a space says beside the values of its axes.
OPTIONS = ("per_layer", "head_size")


def _index(axis: str, value: object, minimum: int) -> int:
    """`value` as an int, or one clear error."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise UserError(f"{axis}: {value!r} is not an integer")
    if number < minimum:
        raise UserError(f"{axis}: {number} is not allowed, the smallest possible value is {minimum}")
    return number


def _check_axis(axis: str, value: object) -> None:
    """Raise UserError unless an axis is one of all architectures, or has names as values."""
    names = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    are_names = names and all(isinstance(name, str) and name for name in names)
    if axis not in AXES and not (are_names and isinstance(axis, str) and axis.isidentifier() and axis not in OPTIONS):
        raise UserError(
            f"unknown axis {axis!r}; known: {', '.join(AXES)}; axes of one architecture have names as values, not "
            f"{reprlib.repr(value)}"
        )


def _in_order(values: Mapping) -> dict:
    """The axes in the order in which all subnets have them."""
    return {axis: values[axis] for axis in (*AXES, *sorted(values.keys() - {*AXES})) if axis in values}


def is_choice(axis: str) -> bool:
    """Whether an axis has names as values, which are in no order."""
    return axis not in AXES


def names_text(value: str | Sequence[str]) -> str:
    """A name, or for names per layer how many layers have each: "8 bert + 4 mobilebert"."""
    return value if isinstance(value, str) else " + ".join(f"{count} {name}" for name, count in Counter(value).items())


def end_of(choices: Sequence, place: int):
    """The smallest (0) or the largest (-1) of the choices of a gene; of names always the first, which have no size."""
    return choices[0 if isinstance(choices[0], str) else place]


class Subnet(Mapping):
    """One size: axis name -> an int for every layer, or a tuple with one int per kept layer; names for some axes.

    Args:
        values: `{"num_hidden_layers": 4, "intermediate_size": 768}`. Depth is `num_hidden_layers` (which layers, the model's
            `layer_order` says) or `layers`, the kept indices in increasing order. An axis that is left out is full size; of
            names, what each layer of the full model runs.

    Raises:
        ValueError: an unknown axis; a value that is not a positive integer; both kinds of depth; layers repeated or unordered.
    """

    __slots__ = ("_key", "_values")

    def __init__(self, values: Mapping | None = None, **axes):
        if not isinstance(values, (Mapping, type(None))):
            raise UserError(f"a subnet maps axes to values, got {reprlib.repr(values)}; known axes: {', '.join(AXES)}")
        merged = {**(values or {}), **axes}
        for axis, value in merged.items():
            _check_axis(axis, value)
        if all(axis in merged for axis in DEPTH_AXES):
            raise UserError("give num_hidden_layers or layers, not both")
        self._values = {axis: self._normalize(axis, value) for axis, value in _in_order(merged).items()}
        self._key = tuple(self._values.items())

    @staticmethod
    def _normalize(axis: str, value: object) -> int | str | tuple[int, ...] | tuple[str, ...]:
        if is_choice(axis):
            return value if isinstance(value, str) else tuple(value)
        minimum = 0 if axis == "layers" else 1
        if axis == "layers" or (isinstance(value, Sequence) and not isinstance(value, str)):
            if not isinstance(value, Sequence) or isinstance(value, str) or not value:
                raise UserError(f"{axis}: {value!r} is not a list of at least one integer")
            numbers = tuple(_index(axis, item, minimum) for item in value)
            if axis == "layers" and any(a >= b for a, b in itertools.pairwise(numbers)):
                raise UserError(f"layers: {list(numbers)} must be increasing, each index once")
            if axis in ("num_hidden_layers", "hidden_size"):
                raise UserError(f"{axis}: {list(numbers)} is a list, but there is one value for the whole model")
            return numbers
        return _index(axis, value, minimum)

    def __getitem__(self, axis: str) -> int | str | tuple[int, ...] | tuple[str, ...]:
        return self._values[axis]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Subnet) and self._key == other._key

    def __repr__(self) -> str:
        return f"Subnet({self.to_dict()})"

    def to_dict(self) -> dict:
        """JSON-able: tuples become lists."""
        return {axis: list(value) if isinstance(value, tuple) else value for axis, value in self._values.items()}


class Space(Mapping):
    """Which values each axis may take.

    Args:
        values: axis -> allowed values, such as `{"num_hidden_layers": [3, 6], "intermediate_size": [384, 1536]}`. For `layers`
            a list of lists of indices. It may hold `per_layer` and `head_size` as well.
        per_layer: axes whose value is chosen for every kept layer on its own.
        max_group: with both head counts in the space, the most query heads that may share a key-value head. Pairs that do
            not divide or exceed it are not part of the space.
        head_size: channels per head where the number of heads follows `hidden_size`, as stock configs have it; both are one
            choice then.

    Raises:
        ValueError: no axis, an axis without values, an unknown axis, a value that is no positive integer, no legal pair of
            head counts, per-layer axes without a depth, or a hidden size that `head_size` does not divide.
    """

    def __init__(
        self, values: Mapping, per_layer: Sequence[str] = (), max_group: int | None = None, head_size: int | None = None
    ):
        per_layer = per_layer or (values or {}).get("per_layer") or ()
        head_size = (values or {}).get("head_size") if head_size is None else head_size
        values = {axis: choices for axis, choices in (values or {}).items() if axis not in OPTIONS}
        if not values:
            raise UserError(f"the space is empty; give values for at least one of: {', '.join(AXES)}")
        if all(axis in values for axis in DEPTH_AXES):
            raise UserError("give num_hidden_layers or layers, not both")
        if isinstance(per_layer, str):
            raise UserError(f"per_layer: {per_layer!r} is not a list of axes")
        self.per_layer = tuple(per_layer)
        for axis in self.per_layer:
            if axis in (*DEPTH_AXES, "hidden_size"):
                raise UserError(f"per_layer: {axis} has one value for the whole model")
            if axis not in values:
                raise UserError(f"per_layer: {axis!r} is not an axis of the space; its axes: {', '.join(values)}")
        for axis, choices in values.items():
            _check_axis(axis, choices)
            if axis not in self.per_layer and SKIP in choices:
                raise UserError(f"{axis}: {SKIP!r} in all layers is not possible; name {axis} in per_layer to choose for each")
        self._values = {axis: self._check_values(axis, choices) for axis, choices in _in_order(values).items()}
        self.head_size = self._check_head_size(head_size)
        self._genes = self._make_genes(max_group)
        if self.per_layer and not any(axis in values for axis in DEPTH_AXES):
            raise UserError(f"per_layer: {', '.join(self.per_layer)}: the space needs num_hidden_layers or layers as well")

    @staticmethod
    def _check_values(axis: str, values: object) -> tuple:
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise UserError(f"{axis}: {values!r} is not a list of at least one allowed value")
        checked = dict.fromkeys(Subnet({axis: value})[axis] for value in values)
        if is_choice(axis):
            if set(checked) == {SKIP}:
                raise UserError(f"{axis}: {SKIP!r} in all layers is not possible; the other value is {FULL!r}")
            return tuple(sorted(checked, key=lambda name: name == SKIP))  # the first is that of the largest subnet
        if any(isinstance(value, tuple) for value in checked) and axis != "layers":
            raise UserError(f"{axis}: {values!r} must be a flat list; name the axis in per_layer to choose for every layer")
        return tuple(sorted(checked, key=lambda value: (len(value), value) if isinstance(value, tuple) else value))

    def _check_head_size(self, head_size: int | None) -> int | None:
        if head_size is None:
            return None
        _index("head_size", head_size, 1)
        if HEADS in self._values or KEY_VALUE_HEADS in self._values or "hidden_size" not in self._values:
            raise UserError(f"head_size: {HEADS} follows hidden_size, which the space must have, and no counts of heads")
        for hidden in self._values["hidden_size"]:
            if hidden % head_size:
                raise UserError(f"head_size: {head_size} does not divide the hidden_size {hidden}")
        return head_size

    def _make_genes(self, max_group: int | None) -> dict[str, tuple]:
        """Axis -> choices, with the two head counts joined into one gene of legal pairs."""
        genes = dict(self._values)
        if KEY_VALUE_HEADS in genes and HEADS in genes:
            if (KEY_VALUE_HEADS in self.per_layer) != (HEADS in self.per_layer):
                raise UserError(f"per_layer: name both {HEADS} and {KEY_VALUE_HEADS}, or neither")
            limit = max_group or max(1, genes[HEADS][-1] // genes[KEY_VALUE_HEADS][-1])
            pairs = [
                (heads, shared)
                for heads in genes[HEADS]
                for shared in genes[KEY_VALUE_HEADS]
                if heads % shared == 0 and heads // shared <= limit
            ]
            if not pairs:
                raise UserError(
                    f"no pair of {HEADS} {list(genes[HEADS])} and {KEY_VALUE_HEADS} {list(genes[KEY_VALUE_HEADS])} divides "
                    f"with at most {limit} query heads per key-value head"
                )
            del genes[KEY_VALUE_HEADS]
            genes[HEADS] = tuple(pairs)
        return genes

    def __getitem__(self, axis: str) -> tuple:
        return self._values[axis]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        """Number of subnets; Python's `len` cannot count beyond 2^63, `size` can."""
        return self.size

    def __bool__(self) -> bool:
        return True

    @property
    def size(self) -> int:
        """Number of subnets."""
        shared = prod(len(choices) for axis, choices in self._genes.items() if axis not in (*self.per_layer, *DEPTH_AXES))
        layered = [choices for axis, choices in self._genes.items() if axis in self.per_layer]
        if all(len(choices) == 1 for choices in layered):
            return shared * len(self._depths())
        # To skip in all layers is no size.
        depths = map(self._num_layers, self._depths())
        return shared * sum(prod(len(choices) ** depth - (SKIP in choices) for choices in layered) for depth in depths)

    def __repr__(self) -> str:
        return f"Space({self.to_dict()})"

    def __hash__(self) -> int:
        return hash((tuple(self._values.items()), self.per_layer, self.head_size))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self.to_dict() == other.to_dict()

    def to_dict(self) -> dict:
        """JSON-able; `Space.from_dict` reads it back."""
        values = {axis: [list(v) if isinstance(v, tuple) else v for v in choices] for axis, choices in self._values.items()}
        return {**values, "per_layer": list(self.per_layer), **({"head_size": self.head_size} if self.head_size else {})}

    @classmethod
    def from_dict(cls, data: Mapping, max_group: int | None = None) -> Space:
        """Read a space from a recipe or a config: axis -> values, `per_layer` and `head_size`."""
        if not isinstance(data, Mapping):
            raise UserError(f"the space must map axes to lists of values, got {reprlib.repr(data)}")
        return cls(data, max_group=max_group)

    def _depths(self) -> tuple:
        for axis in DEPTH_AXES:
            if axis in self._genes:
                return self._genes[axis]
        return (None,)

    @staticmethod
    def _num_layers(depth: int | tuple) -> int:
        return len(depth) if isinstance(depth, tuple) else depth

    def genes(self) -> dict[str, tuple]:
        """Independent decisions: gene -> choices. A per-layer axis has a gene for each layer of the deepest subnet."""
        genes = {}
        for axis, choices in self._genes.items():
            if axis in self.per_layer:
                deepest = max(self._num_layers(depth) for depth in self._depths())
                genes.update({f"{axis}.{layer}": choices for layer in range(deepest)})
            else:
                genes[axis] = choices
        return genes

    def from_genes(self, values: Mapping) -> Subnet:
        """The subnet that a choice for every gene stands for; genes of layers beyond its depth are ignored. Where all layers
        would skip what an axis is about, the first one keeps it."""
        chosen = {axis: values[axis] for axis in self._genes if axis not in self.per_layer}
        for axis in self.per_layer:
            if axis in self._genes:
                depth = next(chosen[d] for d in DEPTH_AXES if d in chosen)
                chosen[axis] = tuple(values[f"{axis}.{layer}"] for layer in range(self._num_layers(depth)))
                if set(chosen[axis]) == {SKIP}:
                    chosen[axis] = (self._genes[axis][0], *chosen[axis][1:])
        if HEADS in chosen and KEY_VALUE_HEADS in self._values:
            pairs = chosen[HEADS]
            if HEADS in self.per_layer:
                chosen[HEADS], chosen[KEY_VALUE_HEADS] = (tuple(column) for column in zip(*pairs))
            else:
                chosen[HEADS], chosen[KEY_VALUE_HEADS] = pairs
        if self.head_size:
            chosen[HEADS] = chosen["hidden_size"] // self.head_size
        return Subnet(chosen)

    @property
    def largest(self) -> Subnet:
        """Every axis at its largest value, and the first of names, so that the smallest subnet is nested in it."""
        return self.from_genes({gene: end_of(choices, -1) for gene, choices in self.genes().items()})

    @property
    def smallest(self) -> Subnet:
        """Every axis at its smallest value, and the first of names."""
        return self.from_genes({gene: end_of(choices, 0) for gene, choices in self.genes().items()})

    def extremes(self) -> Iterator[Subnet]:
        """Each choice of each gene once, with every other gene at its largest."""
        genes = self.genes()
        largest = {gene: end_of(choices, -1) for gene, choices in genes.items()}
        for gene, choices in genes.items():
            for choice in choices:
                yield self.from_genes({**largest, gene: choice})

    def sample(self, generator: random.Random) -> Subnet:
        """One subnet, every gene uniform; `generator` is a `random.Random`."""
        return self.from_genes({gene: generator.choice(choices) for gene, choices in self.genes().items()})

    def enumerate(self) -> Iterator[Subnet]:
        """Every subnet once; per-layer choices make this long."""
        shared = {gene: choices for gene, choices in self._genes.items() if gene not in self.per_layer}
        layered = [axis for axis in self._genes if axis in self.per_layer]
        skipping = [axis for axis in layered if SKIP in self._genes[axis]]
        for chosen_values in itertools.product(*shared.values()):
            chosen = dict(zip(shared, chosen_values))
            depth = next((chosen[axis] for axis in DEPTH_AXES if axis in chosen), None)
            layers = range(self._num_layers(depth)) if layered else ()
            names = [f"{axis}.{layer}" for axis in layered for layer in layers]
            for picks in itertools.product(*(self._genes[name.partition(".")[0]] for name in names)):
                values = dict(zip(names, picks))
                if all(any(values[f"{axis}.{layer}"] != SKIP for layer in layers) for axis in skipping):
                    yield self.from_genes({**chosen, **values})

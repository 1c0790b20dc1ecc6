"""A Spec bound to one model: axis sizes solved, every parameter's shape known, subnets resolved and counted."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from torch import nn

from .adapters import describe_parameter, find_wrappers, is_table, plain_name
from .choices import Choices
from .errors import UserError
from .partition import check_divides, check_partition
from .shapes import CutStep, Dim, Equation, SpecError, axes_in, evaluate, parse, parse_stored, plan_cut, size, solve, substitute
from .space import DEPTH_AXES, Space, Subnet
from .spec import CONTEXT, SKIP, Spec
from .twins import named_weights

# Sequence-level heads apply their classifier once per sequence; headless models only their pooler.
SEQUENCE_LEVEL = ("ForSequenceClassification", "ForMultipleChoice", "Model")

LAYER_ORDERS = ("first", "ends", "influence")

# None for the whole model, a layer, or what only one choice has in it.
Place = int | tuple[int, str] | None


@dataclass(frozen=True)
class Entry:
    """One parameter: its shape, and what it is used for. The factors of an adapter are parameters like any other.

    Attributes:
        name: as in `named_parameters`.
        dims: parsed shape.
        layer: index of its layer, None outside the layers.
        rest: its name within the layer, or its whole name.
        tied_to: an earlier name of the same tensor, or None.
        use: "token", "sequence" or "position" for a matrix multiplied that often, the last once for all sequences of a batch;
            "" for anything else.
        rows: the axis in whose rows a vector is stored, or None.
        table: the axis that counts the rows of a table to which a matrix is applied besides, or None.
        choice: the axis of the choice that alone has it, as `Choices` names it, or None: all layers have it.
    """

    name: str
    dims: tuple[Dim, ...]
    layer: int | None
    rest: str
    tied_to: str | None
    use: str
    rows: str | None = None
    table: str | None = None
    choice: str | None = None

    @property
    def place(self) -> Place:
        """Where axes have an order of their own."""
        return self.layer if self.choice is None else (self.layer, self.choice)


@dataclass(frozen=True)
class Cut:
    """A resolved subnet: which layers stay and how large each axis is in each.

    Attributes:
        layers: kept indices into the full model.
        shared: sizes of the axes of the whole model, as sorted items.
        per_layer: for each kept layer, sizes of the axes within layers, as sorted items; of choices 1 for the one that it has.
    """

    layers: tuple[int, ...]
    shared: tuple[tuple[str, int], ...]
    per_layer: tuple[tuple[tuple[str, int], ...], ...]

    @property
    def is_uniform(self) -> bool:
        """Whether every kept layer has the same sizes."""
        return len(set(self.per_layer)) == 1

    def contains(self, other: Cut) -> bool:
        """Whether `other` is nested in this size: its layers are among these, made of the same choices, and no axis is larger in
        any of them."""
        positions = {layer: position for position, layer in enumerate(self.layers)}
        if not set(other.layers) <= positions.keys():
            return False
        pairs = [(other.sizes(i), self.sizes(positions[layer])) for i, layer in enumerate(other.layers)]
        return all(size <= larger[axis] for smaller, larger in pairs for axis, size in smaller.items())

    def sizes(self, position: int | None) -> dict[str, int]:
        """Axis sizes in the kept layer at `position`; outside the layers (None) only the shared axes."""
        return dict(self.shared) if position is None else {**dict(self.shared), **dict(self.per_layer[position])}


class Layout:
    """Everything that follows from a Spec and one full-size model.

    Args:
        spec: the architecture's Spec.
        model: a stock model, adapters included; only names, shapes and module types are read, so it may be on the meta device.
        layer_order: all layer indices, the one to keep longest first. Default: the first layers are kept longest.
        grown: as for `grow`.

    Raises:
        SpecError: the config, the tensors and the Spec do not fit, naming the field or the tensor; or an adapter cannot be cut.
        UserError: as `grow`.
    """

    def __init__(
        self, spec: Spec, model: nn.Module, layer_order: Sequence[int] | None = None, grown: Mapping[str, Sequence] | None = None
    ):
        self.spec = spec
        self._attributes: dict[str, list[tuple[str, str]]] = {}
        parameters = named_weights(model)
        names = {
            axis: other
            for axis, (other, unless) in spec.aliases.items()
            if not any(fnmatch.fnmatchcase(plain_name(name), unless) for name in parameters)
        }
        self.names = names
        self.choices = Choices(spec, model)
        self.entries = self._make_entries(model, parameters)
        self.num_layers = len({entry.layer for entry in self.entries if entry.layer is not None})
        self.container = next(spec.layer_of(entry.name)[0] for entry in self.entries if entry.layer is not None)
        sizes = {field: value for field, value in spec.config.items() if value not in spec.choices}
        self.config = {field: substitute(parse(f"({value})"), names)[0] for field, value in sizes.items()}
        self.axes = spec.axes()
        self.attention = self._find_attention()
        self.full = self._solve(model.config, parameters)
        outside = [entry for entry in self.entries if entry.layer is None]
        self.shared_axes = axes_in(dim for entry in outside for dim in entry.dims) | {e.rows for e in outside if e.rows}
        self.layer_order = self._check_order(layer_order)
        elastic = {axis for value in self.axes.values() for axis in value.split()} | self.choices.axes.keys()
        self.layer_axes = tuple(sorted(elastic - self.shared_axes))
        self.model_axes = tuple(sorted(elastic & self.shared_axes))
        self.followers = self._find_followers()
        self.grow(grown)
        if spec.head_partition:
            check_partition(spec, self.full, model)

    def _make_entries(self, model: nn.Module, parameters: Mapping) -> tuple[Entry, ...]:
        lookups = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
        head = type(model).__name__
        sequence_level = head.endswith(SEQUENCE_LEVEL) and not head.endswith("LMHeadModel")
        tied = _tied_names(parameters)
        wrappers = find_wrappers(model)
        entries = []
        for name, tensor in parameters.items():
            owner, dims = describe_parameter(name, tensor, wrappers, self._dims_of)
            inside = self.spec.layer_of(name)
            use = "token"
            if any(fnmatch.fnmatchcase(owner, pattern) for pattern in self.spec.positional):
                use = "position"
            elif sequence_level and any(fnmatch.fnmatchcase(owner, pattern) for pattern in self.spec.pooled):
                use = "sequence"
            table = (axis for pattern, axis in self.spec.tables.items() if fnmatch.fnmatchcase(owner, pattern))
            is_matrix = len(dims) == 2 and name not in lookups and not is_table(name)
            if inside and name in tied and self.spec.layer_of(tied[name]):
                raise SpecError(f"{name} is the same tensor as {tied[name]}: layers that share weights cannot be cut one by one")
            entries.append(
                Entry(
                    name=name,
                    dims=dims,
                    layer=inside[1] if inside else None,
                    rest=inside[2] if inside else name,
                    tied_to=tied.get(name),
                    use=use if is_matrix else "",
                    rows=None if tensor.dim() == len(dims) else parse_stored(self.spec.shape_of(owner))[1],
                    table=next(table, None) if is_matrix else None,
                    choice=self.choices.axis_of(owner),
                )
            )
        return tuple(entries)

    def _dims_of(self, name: str) -> tuple[Dim, ...]:
        return substitute(parse_stored(self.spec.shape_of(name))[0], self.names)

    def _find_attention(self) -> dict[int, set[tuple[str | None, str]]]:
        """For each layer the widths in which it attends: the choice that does, or None for all of them, and the width."""
        found: dict[int, set] = {layer: set() for layer in range(self.num_layers)}
        if not self.spec.scores:
            attending = [entry for entry in self.entries if entry.layer is not None]
            choices = {e.layer: e.choice for e in attending if axes_in(e.dims) & self.spec.attention_axes}
            return {layer: {(choices.get(layer), self.spec.attention)} for layer in found}
        for entry in self.entries:
            for pattern, width in self.spec.scores.items() if entry.layer is not None else ():
                if fnmatch.fnmatchcase(plain_name(entry.name), pattern):
                    found[entry.layer].add((entry.choice, width))
        return found

    def retie(self, model: nn.Module) -> None:
        """Look again which parameters are one: `from_pretrained` ties weights only after it has built and loaded a model."""
        tied = _tied_names(named_weights(model))
        self.entries = tuple(replace(e, tied_to=tied.get(e.name)) if e.layer is None else e for e in self.entries)

    def _solve(self, config, parameters: Mapping) -> dict[str, int]:
        equations = [
            Equation(dim, getattr(config, field), f"config.{field}")
            for field, dim in self.config.items()
            if isinstance(getattr(config, field, None), int)
        ]
        for entry in self.entries:
            shape = tuple(parameters[entry.name].shape)
            if entry.rows is not None:
                equations.append(Equation(((entry.rows,),), shape[0], f"dimension 0 of {entry.name} {shape}"))
                shape = (prod(shape),)
            if len(shape) != len(entry.dims):
                raise SpecError(f"{entry.name} has the shape {shape}, but {len(entry.dims)} dimensions are declared")
            for position, dim in enumerate(entry.dims):
                equations.append(Equation(dim, shape[position], f"dimension {position} of {entry.name} {shape}"))
        if config.num_hidden_layers != self.num_layers:
            raise SpecError(f"config.num_hidden_layers is {config.num_hidden_layers}, but there are {self.num_layers} layers")
        full = {**solve(equations), **dict.fromkeys(self.choices.axes, 1)}
        for field, dim in self.config.items():
            if isinstance(getattr(config, field, None), list) and not axes_in([dim]) <= full.keys():
                raise SpecError(f"config.{field} is {getattr(config, field)}: a supernet needs one value for all its layers")
        if self.spec.head_partition:
            full["head"] = full[CONTEXT] // full["heads"]
        return full

    def _find_followers(self) -> dict[str, str]:
        """Axes that follow another one in this model -> their expression."""
        present = {axis: expression for axis, expression in self.spec.follows.items() if axis in self.full}
        if missing := [axis for axis in present if axis in self.axes.values()]:
            raise SpecError(f"the axis {missing[0]} is elastic by itself and cannot follow another")
        return {axis: text for axis, text in present.items() if evaluate(text, self.full) == self.full[axis]}

    def _check_order(self, order: Sequence[int] | None) -> tuple[int, ...]:
        order = tuple(range(self.num_layers)) if order is None else tuple(order)
        if sorted(order) != list(range(self.num_layers)):
            raise SpecError(f"layer_order {list(order)} is not an order of the {self.num_layers} layers")
        return order

    def grow(self, sizes: Mapping[str, Sequence] | None) -> None:
        """Say what layers have of an axis where a subnet does not name it; without, it is all of it, as in the full model ever.

        Args:
            sizes: axis -> for each layer of the full model a size, or one for each choice: `{"block_type=bert": 64}`.

        Raises:
            UserError: an axis that layers do not have, not one entry per layer, or a size that this model does not have.
        """
        self.grown = dict(sizes or {})
        for axis, layers in self.grown.items():
            if self.axes.get(axis) not in self.layer_axes:
                raise UserError(f"grown: {axis} is no axis of the layers of {self.spec.model_types[0]}")
            if len(layers) != self.num_layers:
                raise UserError(f"grown: {axis} has {len(layers)} entries for {self.num_layers} layers")
            for entry in layers:
                if isinstance(entry, Mapping) and (unknown := entry.keys() - self.choices.axes.keys()):
                    raise UserError(f"grown: {axis}: {min(unknown)} is no choice of this model")
                for value in entry.values() if isinstance(entry, Mapping) else (entry,):
                    self._check_value(axis, Subnet({axis: value})[axis])

    def grown_size(self, axis: str, layer: int, sizes: Mapping):
        """What a layer has of an axis that has grown, by the sizes of its choices: a number, or `[N]` for as many layers."""
        entry, full = self.grown[axis][layer], self.value(axis)
        if not isinstance(entry, Mapping):
            return entry
        return full - sum((full - size) * sizes[choice] for choice, size in entry.items())

    def value(self, axis: str) -> int:
        """Full size of an axis, by its Hugging Face name."""
        if axis == "num_hidden_layers":
            return self.num_layers
        return evaluate(self.axes[axis], self.full)

    def check_space(self, space: Space) -> None:
        """Raise ValueError unless every value of every axis is legal for this model."""
        for axis in space:
            if SKIP in space[axis] and axis not in self.choices:
                raise UserError(self._unknown(axis, SKIP))
        for subnet in space.extremes():
            self.resolve(subnet)
        # Heads that divide one width may not divide another; with a head size they follow it.
        if (self.spec.head_partition or self.spec.scores) and not space.head_size:
            axes = [axis for axis in space if axis in ("hidden_size", "num_attention_heads", *self.choices)]
            for values in itertools.product(*([value for value in space[axis] if value != SKIP] for axis in axes)):
                self.resolve(dict(zip(axes, values)))

    def resolve(self, subnet: Mapping | None) -> Cut:
        """Sizes of every axis in every kept layer.

        Args:
            subnet: axis -> value; None is the full model. What it does not name is full as well, or as `grow` has it.

        Raises:
            ValueError: an axis that this architecture lacks, a value above the full size, head counts that do not divide,
                a layer out of range, or a list whose length is not the number of kept layers.
        """
        grown = () if subnet is None else self.grown
        subnet = subnet if isinstance(subnet, Subnet) else Subnet(subnet)
        layers = self._layers(subnet)
        values = {axis: value for axis, value in subnet.items() if axis not in DEPTH_AXES}
        for axis, value in values.items():
            if axis not in (*self.axes, *self.choices):
                raise UserError(self._unknown(axis, value))
            for number in value if isinstance(value, tuple) else (value,):
                self._check_value(axis, number)
            if isinstance(value, tuple) and len(value) != len(layers):
                raise UserError(f"{axis}: {list(value)} has {len(value)} values for {len(layers)} kept layers")
        rows = []
        for position, layer in enumerate(layers):
            row = {axis: value[position] if isinstance(value, tuple) else value for axis, value in values.items()}
            rows.append(self._axis_sizes(row, layer, grown))
        for axis in self.choices:
            self.choices.check_kept(axis, [self.choices.chosen(axis, row) for row in rows])
        for axis in self.model_axes:
            if len(differing := {row[axis] for row in rows}) > 1:
                name = next(name for name, product in self.axes.items() if axis in product.split())
                raise UserError(f"{name}: {sorted(differing)} differ, but this model has one value for all its layers")
        per_layer = tuple(tuple((axis, row[axis]) for axis in self.layer_axes) for row in rows)
        return Cut(layers, tuple((axis, rows[0][axis]) for axis in (*self.model_axes, *self.followers)), per_layer)

    def _unknown(self, axis: str, value: object) -> str:
        name = self.spec.model_types[0]
        if SKIP in (value if isinstance(value, tuple) else (value,)):
            known = f"it says so of: {', '.join(a for a in self.choices if self.spec.can_skip(a)) or 'nothing'}"
            return f"{axis}: {SKIP!r} is not possible: the Spec of this {name} does not say where {axis} is in a layer; {known}"
        return f"{axis} is not an axis of {name}; its axes: {', '.join((*self.axes, *self.choices))}"

    def _layers(self, subnet: Subnet) -> tuple[int, ...]:
        if "layers" in subnet:
            if subnet["layers"][-1] >= self.num_layers:
                raise UserError(
                    f"layers: {subnet['layers'][-1]} is out of range, the model has layers 0 to {self.num_layers - 1}"
                )
            return subnet["layers"]
        depth = subnet.get("num_hidden_layers", self.num_layers)
        self._check_value("num_hidden_layers", depth)
        return tuple(sorted(self.layer_order[:depth]))

    def _check_value(self, axis: str, value: int | str) -> None:
        if axis in self.choices:
            self.choices.check(axis, value)
        elif axis in (*self.axes, "num_hidden_layers") and value > self.value(axis):
            raise UserError(f"{axis}: {value} is larger than the model, which has {self.value(axis)}")

    def _axis_sizes(self, row: Mapping[str, int | str], layer: int, grown: Collection[str]) -> dict[str, int]:
        """Turn Hugging Face's names into axes: `num_attention_heads` is `kv group` with grouped queries."""
        sizes = {axis: self.full[axis] for axis in (*self.layer_axes, *self.model_axes)}
        sizes |= self.choices.sizes(layer, row)
        for axis in grown:
            sizes[self.axes[axis]] = self.grown_size(axis, layer, sizes)
        for name, value in row.items():
            if name in self.axes and " " not in self.axes[name]:
                sizes[self.axes[name]] = value
        if "num_attention_heads" in row and "kv" in sizes:
            heads = row["num_attention_heads"]
            if "num_key_value_heads" not in row and self.full["group"] == 1:
                sizes["kv"] = heads
            group, rest = divmod(heads, sizes["kv"])
            if rest or not 1 <= group <= self.full["group"]:
                raise UserError(
                    f"num_attention_heads: {heads} does not go with {sizes['kv']} key-value heads: it must be a multiple, "
                    f"at most {self.full['group']} times"
                )
            sizes["group"] = group
        for axis, expression in self.followers.items():
            sizes[axis] = evaluate(expression, {**self.full, **sizes})
            if sizes[axis] < 1:
                raise UserError(f"hidden_size: {sizes['hidden']} is too small, {axis} ({expression}) would be {sizes[axis]}")
        if self.spec.head_partition:
            check_divides(sizes["heads"], sizes["hidden"])
        for choice, width in self.attention[layer] if self.spec.scores else ():
            if choice is None or sizes[choice]:
                where = f"width of attention{f' in {choice}' if choice else ''}"
                check_divides(sizes["heads"], evaluate(width, {**self.full, **sizes}), where)
        return sizes

    def subnet_of(self, cut: Cut) -> Subnet:
        """The shortest Subnet that resolves to `cut`; axes at full size are named as well."""
        by_depth = tuple(sorted(self.layer_order[: len(cut.layers)])) == cut.layers
        values: dict = {"num_hidden_layers": len(cut.layers)} if by_depth else {"layers": cut.layers}
        for name, product in self.axes.items():
            column = tuple(evaluate(product, cut.sizes(i)) for i in range(len(cut.layers)))
            values[name] = column[0] if len(set(column)) == 1 else column
        for axis in self.choices:
            column = tuple(self.choices.chosen(axis, cut.sizes(i)) for i in range(len(cut.layers)))
            values[axis] = column[0] if len(set(column)) == 1 else column
        return Subnet(values)

    def keeps(self, path: str, cut: Cut, position: int | None) -> bool:
        """Whether a kept layer of a cut has a module, by its path: it may be another choice's."""
        choice = None if position is None else self.choices.axis_of(path)
        return choice is None or bool(cut.sizes(position)[choice])

    def skipped(self, cut: Cut) -> dict[int, list[str]]:
        """What each kept layer that skips something skips: position -> axes."""
        axes = [axis for axis in self.choices if self.spec.can_skip(axis)]
        found = {i: [a for a in axes if self.choices.chosen(a, cut.sizes(i)) == SKIP] for i in range(len(cut.layers))}
        return {position: names for position, names in found.items() if names}

    def attends(self, cut: Cut) -> list[bool]:
        """Whether each kept layer attends: those that do have a layer of the key-value cache."""
        pairs = [(self.attention[layer], cut.sizes(position)) for position, layer in enumerate(cut.layers)]
        return [any(choice is None or sizes[choice] for choice, _ in widths) for widths, sizes in pairs]

    def sizes(self, cut: Cut, position: int | None) -> dict[str, int]:
        """Size of every axis, elastic or not, in a kept layer of a cut; `layers` is the number of kept layers."""
        sizes = {**self.full, **cut.sizes(position), "layers": len(cut.layers)}
        if self.spec.head_partition:
            sizes["head"] = sizes[CONTEXT] // sizes["heads"]
        return sizes

    def attributes_of(self, name: str) -> list[tuple[str, str]]:
        """What a module of this path remembers of its sizes: attribute -> expression, of every pattern that fits."""
        name = plain_name(name)
        if name not in self._attributes:
            fitting = [pairs for pattern, pairs in self.spec.attributes.items() if fnmatch.fnmatchcase(name, pattern)]
            self._attributes[name] = [pair for pairs in fitting for pair in pairs.items()]
        return self._attributes[name]

    def plan(self, cut: Cut) -> dict[str, tuple[Entry, tuple[CutStep, ...]]]:
        """For each parameter of the cut model: which full parameter it comes from, and how it is cut."""
        positions = {layer: position for position, layer in enumerate(cut.layers)}
        kept = {position: cut.sizes(position) for position in (None, *positions.values())}
        steps_of: dict[tuple, tuple[CutStep, ...]] = {}
        plan: dict[str, tuple] = {}
        for entry in self.entries:
            if entry.layer is not None and entry.layer not in positions:
                continue
            position = None if entry.layer is None else positions[entry.layer]
            if entry.choice is not None and not kept[position][entry.choice]:
                continue
            sizes = None if position is None else cut.per_layer[position]
            key = (entry.dims, entry.rows, sizes)
            if key not in steps_of:
                steps_of[key] = plan_cut(entry.dims, self.full, kept[position], entry.rows)
            name = entry.name if position is None else f"{self.container}.{position}.{entry.rest}"
            plan[name] = (entry, steps_of[key])
        return plan

    def unsayable(self, cut: Cut) -> list[str]:
        """Config fields whose value differs from layer to layer while the stock config has one for all."""
        if cut.is_uniform:
            return []
        values = [self.config_values(cut, position) for position in range(len(cut.layers))]
        differing = [field for field in values[0] if len({row[field] for row in values}) > 1]
        return [field for field in differing if field not in self.spec.layered_config]

    def says_layers(self, axis: str) -> bool:
        """Whether a stock config can say an axis of this Hugging Face name layer by layer."""
        product = self.axes.get(axis, axis)
        fields = [field for field, value in self.spec.config.items() if value == product]
        return bool(fields) and all(field in self.spec.layered_config for field in fields)

    def config_values(self, cut: Cut, position: int) -> dict[str, int | str]:
        """What each config field of the Spec becomes in the kept layer at `position`."""
        sizes = self.sizes(cut, position)
        chosen = {field: self.choices.chosen(axis, sizes) for field, axis in self.spec.config.items() if axis in self.choices}
        return {**{field: size(dim, sizes) for field, dim in self.config.items()}, **chosen}


def named_layer_order(order: str | Sequence[int], num_layers: int) -> list[int] | None:
    """Layer indices for a named order, see `from_base`; None is the layers' own.

    Raises:
        ValueError: an unknown name.
    """
    if not isinstance(order, str):
        return list(order)
    if order not in LAYER_ORDERS:
        raise UserError(f"layer_order: {order!r} is unknown; known: {', '.join(LAYER_ORDERS)}, or a list of all layer indices")
    if order == "first" or num_layers < 3:
        return None
    return [0, num_layers - 1, *range(1, num_layers - 1)]


def _tied_names(parameters: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """Name -> the earlier name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first[id(tensor)] for name, tensor in parameters.items() if first.setdefault(id(tensor), name) != name}

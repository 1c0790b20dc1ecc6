"""Axes whose values are names: layers hold a module for each of several choices, and a size keeps one of them, or none: `SKIP`.

For everything that counts and cuts a choice is an axis of its own, of size 1 in the layers that have it and 0 in the others. To
skip is none: where it is chosen, the axes of all others are 0, so that what skips more is nested in what skips less.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from torch import nn

from .adapters import plain_name
from .errors import UserError
from .spec import SKIP, Spec


def choice_axis(axis: str, name: str) -> str:
    """The axis that says whether a layer has a choice."""
    return f"{axis}={name}"


class Choices(Mapping):
    """Axis -> the names that any layer of a model holds.

    Args:
        spec: the architecture's Spec.
        model: a stock model, adapters included; only the names of its modules are read.

    Attributes:
        held: layer -> axis -> the names that this layer holds; the first one runs in the full model.
        axes: the axis of each choice (see `choice_axis`) -> (axis, name); of a model that holds a single one there is none.
    """

    def __init__(self, spec: Spec, model: nn.Module):
        self._spec = spec
        held: dict[int, dict[str, dict[str, None]]] = {}
        for path, _ in model.named_modules() if spec.choices else ():
            inside = spec.layer_of(plain_name(path))
            if inside and (choice := spec.choice_of(inside[2])):
                held.setdefault(inside[1], {}).setdefault(choice[0], {})[choice[1]] = None
        self.held = {
            layer: {axis: (*names, SKIP) if spec.can_skip(axis) else tuple(names) for axis, names in own.items()}
            for layer, own in held.items()
        }
        self._names: dict[str, tuple[str, ...]] = {
            axis: tuple(dict.fromkeys(name for own in self.held.values() for name in own.get(axis, ()))) for axis in spec.choices
        }
        several = {axis: names for axis, names in self._names.items() if len(names) > 1}
        present = [(axis, name) for axis, names in several.items() for name in names if name != SKIP]
        self.axes = {choice_axis(axis, name): (axis, name) for axis, name in present}

    def __getitem__(self, axis: str) -> tuple[str, ...]:
        return self._names[axis]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def are_open(self) -> bool:
        """Whether a layer holds modules of more choices than the one that runs."""
        return any(len({*names} - {SKIP}) > 1 for own in self.held.values() for names in own.values())

    def exclude(self, one: str, two: str) -> bool:
        """Whether two axes are of different names of one axis, which no layer has both."""
        return one in self.axes and two in self.axes and one != two and self.axes[one][0] == self.axes[two][0]

    def axis_of(self, path: str) -> str | None:
        """The axis of the choice that alone has a parameter or a module, by its path; None if all layers have it."""
        inside = self._spec.layer_of(plain_name(path)) if self.axes else None
        choice = self._spec.choice_of(inside[2]) if inside else None
        return choice_axis(*choice) if choice else None

    def check(self, axis: str, name: str) -> None:
        """Raise UserError unless some layer holds a choice."""
        if name not in self[axis]:
            raise UserError(f"{axis}: {name!r} is no choice of this model; it has: {', '.join(self[axis])}")

    def sizes(self, layer: int, given: Mapping[str, object]) -> dict[str, int]:
        """Size of the axis of each choice in a layer of the full model, where what is not given is what runs there.

        Raises:
            UserError: the layer does not hold what is given.
        """
        held = self.held.get(layer, {})
        chosen = {axis: given.get(axis, names[0]) for axis, names in held.items()}
        for axis, name in chosen.items():
            if name not in held[axis]:
                raise UserError(f"{axis}: layer {layer} has no {name!r}, only {', '.join(held[axis])}")
        return {key: int(chosen.get(axis) == name) for key, (axis, name) in self.axes.items()}

    def chosen(self, axis: str, sizes: Mapping[str, int]) -> str:
        """The name that a layer has, by its axis sizes."""
        without = SKIP if SKIP in self[axis] else self[axis][0]
        return next((name for key, (of, name) in self.axes.items() if of == axis and sizes[key]), without)

    def check_kept(self, axis: str, chosen: Collection[str]) -> None:
        """Raise UserError if all layers skip what an axis is about."""
        if set(chosen) == {SKIP}:
            raise UserError(f"{axis}: {SKIP!r} in all {len(chosen)} layers; at least one of them must keep it")

    def gives(self, path: str) -> str | None:
        """What stands in the place of a module that a size does not have gives, as `skips.Skipped` takes it; None for nothing
        there, since the layer holds another choice's."""
        rest = self._spec.layer_of(plain_name(path))[2]
        axis, _ = self._spec.choice_of(rest)
        return self._spec.choices[axis][rest] if self._spec.can_skip(axis) else None

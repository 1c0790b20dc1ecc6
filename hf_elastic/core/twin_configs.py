"""Configs that run for others: as twins follow modules, they follow the full model's, but for what a size changes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from transformers import PretrainedConfig

from .configuration_elastic import PER_LAYER
from .layout import Cut, Layout

# The config's list of what kind of attention each layer has. A key-value cache is laid out after it.
KINDS = "layer_types"


class ConfigTwin:
    """A config that follows another one, but for what a size changes.

    Args:
        original: whom to follow.
        sizes: gives the fields that the size decides, as the original is now.
    """

    def __init__(self, original: PretrainedConfig, sizes: Callable[[], dict]):
        self.original, self._sizes = original, sizes
        self.config = object.__new__(type(original))
        self.known: dict = {}

    def follow(self) -> None:
        """Take over what has changed since the last time."""
        now, known = dict(vars(self.original)), self.known
        if changed := {key: value for key, value in now.items() if known.get(key, self) is not value}:
            vars(self.config).update(changed)
            for field, value in self._sizes().items():
                setattr(self.config, field, value)
        for key in known.keys() - now.keys():
            vars(self.config).pop(key, None)
        self.known = now


class Configs:
    """The configs of a size: one that follows the full model's, and where layers differ one for each, which follows that one.

    Args:
        full: the full model's.
        layout: decides the sizes, together with `cut`; None where nothing is cut.
        cut: the size.

    Attributes:
        main: the config of the size.
        cache_layers: for each kept layer its place in the key-value cache.
        idle_kinds: what the config says of the attention of layers that skip it, where it says something: position -> kind.
    """

    def __init__(self, full: PretrainedConfig, layout: Layout | None, cut: Cut | None):
        self._full, self._layout, self._cut = full, layout, cut
        self.twins: dict[int | None, ConfigTwin] = {}
        self.main = self.at().config
        self.cache_layers = () if layout is None else cache_layers(full, layout, cut)
        kinds = () if layout is None else cut_values(full, layout, cut).get(KINDS, ())
        attends = layout.attends(cut) if kinds else ()
        self.idle_kinds = {place: kind for place, (kind, does) in enumerate(zip(kinds, attends)) if not does}

    def at(self, position: int | None = None) -> ConfigTwin:
        """That of the kept layer at `position`, or of what is outside the layers."""
        position = None if self._cut is None or self._cut.is_uniform else position
        if position not in self.twins:
            original = self._full if position is None else self.main
            self.twins[position] = ConfigTwin(original, functools.partial(self._sizes, position))
        return self.twins[position]

    def _sizes(self, position: int | None) -> dict:
        return {} if self._layout is None else cut_values(self._full, self._layout, self._cut, position)

    def follow(self) -> None:
        """Take over what has changed since the last time."""
        for twin in self.twins.values():
            twin.follow()


def cut_values(full, layout: Layout, cut: Cut, position: int | None = None) -> dict:
    """Fields of a stock config whose values a cut decides, in the kept layer at `position`; by default those of the first one,
    or of all layers where the config has a value for each."""
    values = {"num_hidden_layers": len(cut.layers)}
    for field in layout.spec.per_layer_config:
        listed = vars(full).get(field)
        if isinstance(listed, (list, tuple)) and len(listed) == layout.num_layers:
            values[field] = [listed[layer] for layer in cut.layers]
    if KINDS in values:
        values[KINDS] = _kinds_of_cache(values[KINDS], layout.attends(cut))
    if skipped := layout.skipped(cut):
        values[PER_LAYER] = {str(place).zfill(len(str(max(skipped)))): {"skip": skipped[place]} for place in skipped}
    if position is not None:
        return {**values, **layout.config_values(cut, position)}
    rows = [layout.config_values(cut, place) for place in range(len(cut.layers) if not cut.is_uniform else 1)]
    for field, value in rows[0].items():
        column = [row[field] for row in rows]
        values[field] = column if field in layout.spec.layered_config and len(set(column)) > 1 else value
    return values


def is_own(full, field: str, value: object) -> bool:
    """Whether a field has another value than in the full model's config; what the full model skips no config says: nothing."""
    return field == PER_LAYER or getattr(full, field, value) != value


def _kinds_of_cache(kinds: Sequence[str], attends: Sequence[bool]) -> list[str]:
    """The kinds of the kept layers, where some do not attend and their kind means nothing: such that as many first layers of a
    cache as there are layers that attend are of the kinds of these. The others stay empty, at its end, as if they were not."""
    used = sum(attends)
    behind = iter([kind for kind, does in zip(kinds[used:], attends[used:]) if does])
    return [kind if does else next(behind, kinds[attends.index(True)]) for kind, does in zip(kinds, attends)]


def cache_layers(full, layout: Layout, cut: Cut) -> tuple[int, ...]:
    """For each kept layer its place in the key-value cache: the first ones are of those that attend, each of its kind."""
    attends = layout.attends(cut)
    kinds = cut_values(full, layout, cut).get(KINDS, [""] * len(attends))
    free, rest = list(enumerate(kinds[: sum(attends)])), iter(range(sum(attends), len(attends)))
    places = []
    for kind, does in zip(kinds, attends):
        taken = next(one for one in free if one[1] == kind) if does else None
        places.append(next(rest) if taken is None else free.pop(free.index(taken))[0])
    return tuple(places)

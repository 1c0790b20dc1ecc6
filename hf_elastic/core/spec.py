"""A backbone as data: one *shape string* per parameter, in the notation of `shapes`, and everything that follows from it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from .shapes import SpecError

# The axes that a Space may name, by their Hugging Face names, and the product of axes that each one is.
ELASTIC_AXES = ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
# What a layer does with modules that it may skip.
FULL, SKIP = "full", "skip"


@dataclass(frozen=True)
class Spec:
    """The shapes of one family of architectures.

    Attributes:
        model_types: the `config.model_type` values that it covers.
        layers: where the list of blocks is, `#` standing for the index: `"*encoder.layer.#"`.
        config: config field -> the product of axes that it holds, such as `{"num_attention_heads": "kv group"}`.
        parameters: glob over parameter names -> shape string; the first match counts.
        attributes: glob over module names -> {attribute: expression}: what a module keeps of its own sizes (ints, shapes of
            one dimension, and buffers). An expression is a product of axes, or `axis^0.5`. An attribute that a release of
            transformers does not have is left out.
        head_attributes: like `attributes`, what follows the size of a head. A Spec without any has heads that cannot be
            partitioned anew (`partition_heads`).
        aliases: axis -> (other axis, glob): the two are one unless a parameter matches the glob, as the embedding width
            is the hidden size unless a projection follows.
        follows: axis -> expression: where the two are equal in the full model, they are in every size; else the axis is
            never cut. An expression may be a quotient, rounded down: `hidden // division`.
        pooled: globs of weights applied once per sequence, not per token, in headless and sequence-level models.
        positional: globs of matrices that are applied to positions, once for the whole batch.
        tables: globs of matrices of attention that are applied to a table as well as to tokens -> the axis that counts its
            rows. It is done once for all sequences, and each token is multiplied by every row of the result.
        score_products: products of tokens by tokens in attention: with keys and values; with relative positions as well.
        scores: globs of the queries' weights -> the width of their attention, which heads partition; for layers that attend in
            several widths, or not all of which attend. Else every layer attends once, in the width `attention`.
        cached: how many layers a key-value cache has beside those of the model's layers: of embeddings.
        choices: axis whose values are names -> where in a layer the modules are of which a size keeps one, `@` for its name:
            `{"block_type": "blocks.@"}`. The first of a layer is what runs in the full model. Or which modules a layer has
            (`FULL`) or skips (`SKIP`) together, and what each gives where it is skipped, as in `skips`:
            `{"mlp": {"mlp": "0", "post_attention_layernorm": "x"}}`.
        per_layer_config: config fields that are lists with one entry per layer.
        layered_config: fields of `config` that the stock config takes as a list with one entry per layer as well.
        head_partition: whether heads partition the hidden size, see `partition_heads`.
    """

    model_types: tuple[str, ...]
    layers: str
    config: Mapping[str, str]
    parameters: Mapping[str, str]
    attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    head_attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    aliases: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    follows: Mapping[str, str] = field(default_factory=dict)
    pooled: tuple[str, ...] = ()
    positional: tuple[str, ...] = ()
    tables: Mapping[str, str] = field(default_factory=dict)
    score_products: int = 2
    scores: Mapping[str, str] = field(default_factory=dict)
    cached: int = 0
    choices: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict)
    per_layer_config: tuple[str, ...] = ("layer_types", "no_rope_layers")
    layered_config: tuple[str, ...] = ()
    head_partition: bool = False

    def to_dict(self) -> dict:
        """The Spec as JSON-able data, stored in `config.json` so that a checkpoint needs no registry to load."""
        data = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        # The first match counts, and JSON files are written with sorted keys: keep the order in a list.
        data["parameters"] = [list(item) for item in self.parameters.items()]
        data["aliases"] = {axis: list(value) for axis, value in self.aliases.items()}
        return data

    @classmethod
    def from_dict(cls, data: Mapping) -> Spec:
        """The inverse of `to_dict`."""
        fields = dict(data)
        for key in ("model_types", "pooled", "positional", "per_layer_config", "layered_config"):
            fields[key] = tuple(fields.get(key, ()))
        fields["parameters"] = dict(fields["parameters"])
        fields["aliases"] = {axis: tuple(value) for axis, value in fields["aliases"].items()}
        return cls(**fields)

    @property
    def heads(self) -> str:
        """The product of axes that counts attention heads: `heads`, or `kv group` with grouped queries."""
        return "kv group" if any("kv" in value.split() for value in self.config.values()) else "heads"

    @property
    def attention(self) -> str:
        """The product of axes that is the width of attention, all heads together."""
        return CONTEXT if self.head_partition else f"{self.heads} head"

    @property
    def attention_axes(self) -> set[str]:
        """The axes of which one is in every width of attention, and in nothing else of a layer."""
        return {"head", CONTEXT, *self.scores.values()}

    def axes(self) -> dict[str, str]:
        """Hugging Face's name of each elastic axis -> its product of axes here."""
        known = {"hidden_size": "hidden", "num_attention_heads": self.heads, "intermediate_size": "ffn"}
        if self.heads == "kv group":
            known["num_key_value_heads"] = "kv"
        return {name: known[name] for name in ELASTIC_AXES if name in known and known[name] in self.config.values()}

    def shape_of(self, name: str) -> str:
        """The shape string of a parameter.

        Raises:
            SpecError: no pattern matches the name.
        """
        for pattern, shape in self.parameters.items():
            if fnmatch.fnmatchcase(name, pattern):
                return shape
        raise SpecError(f"no shape string of the {'/'.join(self.model_types)} Spec matches the parameter {name!r}")

    def layer_of(self, name: str) -> tuple[str, int, str] | None:
        """(container, index, rest) of a name inside a layer, or None outside: `("encoder.layer", 3, "output.dense.bias")`."""
        match = re.match(_layer_pattern(self.layers), name)
        return (match[1], int(match[2]), match[3]) if match else None

    def choice_of(self, rest: str | None) -> tuple[str, str] | None:
        """(axis, name of the choice) of what only one of the choices has, by its name within the layer, else None."""
        for axis, place in self.choices.items():
            if isinstance(place, str):
                match = re.match(re.escape(place).replace("@", r"([^.]+)") + r"(?:\.|$)", rest or "")
                if match:
                    return axis, match[1]
            elif any(f"{rest}.".startswith(f"{path}.") for path in place):
                return axis, FULL
        return None

    def can_skip(self, axis: str) -> bool:
        """Whether the modules of a choice may be skipped."""
        return not isinstance(self.choices[axis], str)

    def with_skips(self, space: Mapping | None = None, subnets: Mapping | None = None) -> Spec:
        """The same Spec, which lets layers skip only what a space and named sizes name: what nobody asks for changes nothing."""
        axes = {axis for one in (space, *(subnets or {}).values()) if isinstance(one, Mapping) for axis in one}
        choices = {axis: at for axis, at in self.choices.items() if axis in axes or not self.can_skip(axis)}
        return self if choices == self.choices else replace(self, choices=choices)


def _layer_pattern(layers: str) -> str:
    container = re.escape(layers.removesuffix(".#")).replace(r"\*", r"(?:.*?\.)??")
    return rf"^({container})\.(\d+)(?:\.(.*))?$"


SPECS: dict[str, Spec] = {}


def register_spec(spec: Spec) -> Spec:
    """Make a Spec known under each of its model types."""
    for model_type in spec.model_types:
        SPECS[model_type] = spec
    return spec


# All heads together, where they partition the hidden size.
CONTEXT = "context"


def spec_for(model_type: str, space: Mapping | None = None, subnets: Mapping | None = None) -> Spec:
    """The registered Spec of an architecture, whose layers may skip what a space and named sizes name, see `with_skips`.

    Raises:
        SpecError: none is registered; the message lists the known ones.
    """
    if model_type not in SPECS:
        raise SpecError(
            f"no Spec for the model type {model_type!r}; known: {', '.join(sorted(SPECS))}. "
            "CONTRIBUTING.md (section 'Add a backbone') shows how to add one in about 15 lines."
        )
    return SPECS[model_type].with_skips(space, subnets)

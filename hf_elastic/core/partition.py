"""Heads that partition the hidden size anew, for every architecture whose Spec says what follows the size of a head."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from .adapters import plain_name
from .errors import UserError
from .shapes import SpecError, axes_in, evaluate, parse_stored
from .spec import CONTEXT, SPECS, Spec


def partition_heads(spec: Spec) -> Spec:
    """The Spec whose heads partition the hidden size: more heads are narrower ones, and no parameter changes.

    All heads together become the one axis `context`, which follows `hidden`; `heads` remains in the config and in what modules
    remember. It is how LTS (arXiv 2203.02094) varies heads; keeping the size of a head and dropping some is what a Spec does
    otherwise.

    Raises:
        ValueError: heads share keys and values, or what follows the size of a head is not known or is a weight.
    """
    if spec.head_partition:
        return spec
    name = "/".join(spec.model_types)
    if spec.heads != "heads":
        raise UserError(f"head_partition: {name} has heads that share keys and values, which cannot be partitioned anew")
    if not spec.head_attributes:
        able = sorted(name for name, known in SPECS.items() if known.head_attributes)
        raise UserError(f"head_partition: the heads of {name} cannot be partitioned anew; possible with: {', '.join(able)}")
    parameters = {pattern: _joined(shape) for pattern, shape in spec.parameters.items()}
    for pattern, shape in parameters.items():
        if axes_in(parse_stored(shape)[0]) & {"heads", "head"}:
            raise UserError(f"head_partition: {name} has weights by head, {pattern}: {shape!r}, which cannot be partitioned anew")
    attributes = {glob: {key: _joined(value) for key, value in own.items()} for glob, own in spec.attributes.items()}
    for glob, own in spec.head_attributes.items():
        attributes[glob] = {**attributes.get(glob, {}), **own}
    follows = {**spec.follows, CONTEXT: "hidden"}
    return replace(spec, parameters=parameters, attributes=attributes, follows=follows, head_partition=True)


def _joined(text: str) -> str:
    return re.sub(r"\bheads head\b", CONTEXT, text)


def check_partition(spec: Spec, full: Mapping[str, int], model: nn.Module) -> None:
    """Raise SpecError unless the heads of a full model partition its hidden size, as its modules say as well."""
    if full[CONTEXT] != full["hidden"] or full["hidden"] % full["heads"]:
        raise SpecError(
            f"head_partition: {full['heads']} heads of together {full[CONTEXT]} channels do not partition the hidden size "
            f"{full['hidden']}"
        )
    for name, module in model.named_modules():
        for glob, attributes in spec.head_attributes.items():
            for attribute, expression in attributes.items() if fnmatch.fnmatchcase(plain_name(name), glob) else ():
                value = vars(module).get(attribute)
                if value is not None and value != evaluate(expression, full):
                    raise SpecError(
                        f"head_partition: {name}.{attribute} is {value} and not {expression}, so it does not follow the heads"
                    )


def check_divides(heads: int, width: int, name: str = "hidden_size") -> None:
    """Raise ValueError unless so many heads partition a width."""
    if width % heads:
        raise UserError(f"num_attention_heads: {heads} does not divide the {name} {width}, which heads partition here")

"""Tables of a model card, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..core.modeling_elastic import ElasticPreTrainedModel
from ..core.space import Subnet
from ..search import Frontier
from ..search.picture import value_text
from .measured import FULL_NAMES, cell, columns
from .places import Place

if TYPE_CHECKING:
    from .cards import CardFacts


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells hold no line breaks or bars; columns that are empty throughout are left out."""
    rows = [list(row) for row in rows]
    kept = [index for index, heading in enumerate(headings) if any(row[index] for row in rows)]
    lines = [[headings[index] for index in kept], ["---"] * len(kept), *([row[index] for index in kept] for row in rows)]
    return "\n".join(f"| {' | '.join(str(part).replace('|', '/') for part in line)} |" for line in lines)


def size_table(model: ElasticPreTrainedModel, names: Sequence[str], facts: CardFacts, places: Mapping[str, Place]) -> str:
    """Sizes with what they keep, their counts, and what was measured of them."""
    length = facts.sequence_length
    full = model.num_parameters_of(None), model.flops_of(None, sequence_length=length)
    found = columns(facts.measurements)
    rows = []
    for name in names:
        subnet = None if name in FULL_NAMES else name
        parameters, flops = model.num_parameters_of(subnet), model.flops_of(subnet, sequence_length=length)
        cut = model.resolve(subnet)
        rows.append(
            [
                f"`{name}`",
                kept_text(model.subnet(subnet)),
                counted(parameters, full[0]),
                counted(flops, full[1]),
                model.portability_of(subnet),
                places[name].link if name in places else "",
                *(cell(facts.measurements, cut, column) for column in found),
            ]
        )
    return markdown_table(["size", "what it keeps", "parameters", "FLOPs", "kind", "by itself", *found], rows)


def frontier_table(model: ElasticPreTrainedModel, frontier: Frontier) -> str:
    """The points of a frontier."""
    names = [objective.name for objective in frontier.objectives]
    rows = [[kept_text(model.subnet(point.subnet)), *(value_text(point, name) for name in names)] for point in frontier.points]
    return markdown_table(["what it keeps", *(name.replace("_", " ") for name in names)], rows)


def parity_table(records: Mapping[str, Mapping]) -> str | None:
    """What each `parity.json` found; None without any."""
    rows = []
    for folder, record in records.items():
        limits = ", ".join(f"{name.replace('_', ' ')} {limit:g}" for name, limit in record.get("tolerance", {}).items())
        rows.append(
            [
                f"`{folder}/`" if folder else "the checkpoint",
                str(record.get("format", "")),
                f"{record['max_abs_difference']:.2g}" if "max_abs_difference" in record else "",
                f"{record['argmax_agreement']:.1%} of {record.get('rows', '?')}" if "argmax_agreement" in record else "",
                limits,
            ]
        )
    return markdown_table(["what", "format", "largest difference", "same decision", "allowed"], rows) if rows else None


def machine_text(frontier: Frontier) -> str | None:
    """The machine and the settings that a frontier was measured with."""
    machine, settings = frontier.facts.get("machine", {}), frontier.facts.get("settings", {})
    if not machine and not settings:
        return None
    lines = [f"- {key.replace('_', ' ')}: {_plain(value)}" for key, value in [*machine.items(), *settings.items()] if value]
    return "\n".join(["Latency is a median, in brackets its 95% interval.", "", *lines])


def kept_text(subnet: Subnet) -> str:
    """A subnet in words: "3 layers, 12 num_attention_heads, 768 intermediate_size"; of sizes per layer the range."""
    texts = []
    for axis, value in subnet.items():
        if axis == "layers":
            texts.append(f"{len(value)} layers")
        elif isinstance(value, tuple):
            low, high = min(value), max(value)
            texts.append(f"{axis} {low}" if low == high else f"{axis} {low} to {high}")
        else:
            texts.append(f"{axis} {value}")
    return ", ".join(texts)


def counted(value: int, full: int) -> str:
    """A count with its unit, and as a share of the full size."""
    number = next(
        (f"{value / 10**power:.3g} {unit}" for power, unit in ((9, "G"), (6, "M"), (3, "k")) if value >= 10**power), value
    )
    return f"{number}" if value == full else f"{number} ({value / full:.0%})"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)

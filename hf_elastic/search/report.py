"""A frontier as one HTML page that needs nothing else: a picture to point at, and a table to sort."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from importlib.resources import files
from math import inf

from jinja2 import Environment
from markupsafe import Markup

from ..core.errors import UserError
from ..utils.files import write_atomically
from .objectives import OBJECTIVES, Objective
from .picture import MARKED, STYLES, is_predicted, short_names, status_of, value_parts
from .point import Point
from .trade_off import TradeOff

STATUSES = ("frontier", "evaluated", "not measured", "infeasible")  # in the order of the table


def render(frontier: TradeOff, title: str = "Sizes of one elastic model") -> str:
    """The page as text.

    Args:
        frontier: what a search returned.
        title: heading of the page.

    Raises:
        ValueError: no size was evaluated.
    """
    if not frontier.evaluated:
        raise UserError("no size was evaluated; there is nothing to report")
    values = _values(frontier)
    names = [objective.name for objective in frontier.objectives]
    axes = [names[min(1, len(names) - 1)], names[0]]
    front = frontier.points
    found = [(point, status_of(point, front), label) for point, label in zip(frontier.evaluated, short_names(frontier.evaluated))]
    found.sort(key=lambda item: (STATUSES.index(item[1]), item[0].values.get(axes[0], inf)))
    points = [{"index": index, **_point(*item, values)} for index, item in enumerate(found)]
    # "<" would let a name end the script element that the data are in.
    data = json.dumps({"points": points, "values": values, "axes": axes, "styles": STYLES}, allow_nan=False).replace(
        "<", "\\u003c"
    )
    template = files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True)
    facts = {name: value for name, value in frontier.facts.items() if name != "warnings"}
    return environment.from_string(template).render(
        title=title, points=points, warnings=frontier.facts.get("warnings", ()), facts=list(_flat(facts)), data=Markup(data)
    )


def write(frontier: TradeOff, path: str | os.PathLike, title: str = "Sizes of one elastic model") -> None:
    """Write the page by way of a temporary sibling; arguments and errors as for `render`."""
    write_atomically(path, render(frontier, title))


def _values(frontier: TradeOff) -> dict[str, dict[str, str]]:
    """Every value that a point has: its direction, and a title with its unit; the objectives come first."""
    known = {objective.name: objective for objective in (*OBJECTIVES.values(), *frontier.objectives)}
    found = dict.fromkeys([objective.name for objective in frontier.objectives])
    found.update(dict.fromkeys(name for point in frontier.evaluated for name in point.values))
    result = {}
    for name in found:
        one = known.get(name, Objective(name, "minimize"))
        result[name] = {"direction": one.direction, "title": one.title}
    return result


def _point(point: Point, status: str, label: str, values: Mapping[str, Mapping]) -> dict:
    texts = {name: value_parts(point, name) for name in point.values}
    lines = [label, status, *(f"{values[name]['title']}: {' '.join(parts)}" for name, parts in texts.items())]
    lines += [f"{axis}: {value}" for axis, value in point.subnet.items()]
    lines += [f"{status}: {reason}" for reason in point.details.get("infeasible", ())]
    return {
        "label": label,
        "status": status,
        "frontier": status == "frontier",
        "kind": point.name if point.name in MARKED else status,
        "feasible": point.feasible,
        "values": point.values,
        "intervals": {name: list(point.details[name]) for name in point.values if name in point.details},
        "predicted": [name for name in point.values if is_predicted(point, name)],
        "texts": texts,
        "tip": "\n".join(lines),
    }


def _flat(facts: Mapping, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}".replace("_", " "), str(value)

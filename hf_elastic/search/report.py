"""A frontier as one HTML page that needs nothing else: a picture to point at, and a table to sort."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from importlib.resources import files

from jinja2 import Environment
from markupsafe import Markup

from ..core.errors import UserError
from ..utils.files import write_atomically
from .objectives import OBJECTIVES, Objective
from .picture import MARKED, short_names, value_text
from .point import Point
from .trade_off import TradeOff


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
    on_frontier = {id(point) for point in frontier.points}
    labels = short_names(frontier.evaluated)
    points = [
        {"index": index, "frontier": id(point) in on_frontier, **_point(point, label, values)}
        for index, (point, label) in enumerate(zip(frontier.evaluated, labels))
    ]
    names = [objective.name for objective in frontier.objectives]
    axes = [names[min(1, len(names) - 1)], names[0]]
    # "<" would let a name end the script element that the data are in.
    data = json.dumps({"points": points, "values": values, "axes": axes}, allow_nan=False).replace("<", "\\u003c")
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


def _point(point: Point, label: str, values: Mapping[str, Mapping]) -> dict:
    texts = {name: value_text(point, name) for name in point.values}
    lines = [label, *(f"{values[name]['title']}: {text}" for name, text in texts.items())]
    lines += [f"{axis}: {value}" for axis, value in point.subnet.items()]
    lines += [f"not allowed: {problem}" for problem in point.details.get("infeasible", ())]
    return {
        "label": label,
        "kind": point.name if point.name in MARKED else None,
        "feasible": point.feasible,
        "values": point.values,
        "intervals": {name: list(point.details[name]) for name in point.values if name in point.details},
        "texts": texts,
        "tip": "\n".join(lines),
    }


def _flat(facts: Mapping, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}".replace("_", " "), str(value)

"""What sizes are worth, as it is written on the command line or in the results of an evaluation or a search."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ..core.errors import UserError
from ..core.space import Subnet
from ..utils.files import reading


def read_qualities(
    given: Iterable[str],
    sizes: Iterable[str],
    subnets: Mapping[str, Mapping] | None = None,
    report: Callable[[str], object] = print,
) -> dict[str, float]:
    """Qualities by name of a size; what is given later replaces what was given before.

    Args:
        given: each `NAME=VALUE`, or a file: `results.json` of `hf-elastic retrieve evaluate`, whose first metric counts, or the
            frontier of a search, whose first maximised objective counts.
        sizes: their names.
        subnets: their axes, by which the points of a frontier are known; default: those are known by their names.
        report: is told which metric of a file counts, and which sizes the file does not have.

    Raises:
        UserError: another form, no such size, a file of another kind, or one that has none of the sizes.
    """
    sizes, found = list(sizes), {}
    for one in given:
        if Path(one).is_file():
            metric, values = _of_file(one, sizes, subnets or {})
            missing = [name for name in sizes if name not in values]
            if len(missing) == len(sizes):
                raise UserError(f"quality: {one} has none of the sizes {', '.join(sizes)}")
            report(f"quality: {metric} of {one}" + (f"; it does not have {', '.join(missing)}" if missing else ""))
            found |= values
            continue
        name, _, value = one.rpartition("=")
        if name not in sizes:
            raise UserError(f"quality: {one!r} is no file and names no size; give a file, or NAME=VALUE of {', '.join(sizes)}")
        try:
            found[name] = float(value)
        except ValueError as error:
            raise UserError(f"quality: {value!r} of {name} is not a number") from error
    return found


def _of_file(path: str, sizes: list[str], subnets: Mapping[str, Mapping]) -> tuple[str, dict[str, float]]:
    """The metric that counts, and its values by name of a size."""
    with reading(path, "file of qualities", "has no qualities"):
        data = json.loads(Path(path).read_bytes())
        if "objectives" not in data:
            metrics = {name: data["sizes"][name]["metrics"] for name in sizes if name in data["sizes"]}
            metric = next((name for one in metrics.values() for name in one), "")
            return metric, {name: float(one[metric]) for name, one in metrics.items()}
    from ..search.frontier import Frontier

    frontier = Frontier.load(path)
    metric = next((one.name for one in frontier.objectives if one.direction == "maximize"), None)
    if metric is None:
        raise UserError(f"quality: {path} has no objective that is maximised; give NAME=VALUE")
    points = [point for point in frontier.evaluated if metric in point.values]
    named = {point.name: point.values[metric] for point in points}
    cut = {Subnet(point.subnet): point.values[metric] for point in points}
    values = {name: cut.get(Subnet(subnets[name])) if name in subnets else named.get(name) for name in sizes}
    return metric, {name: value for name, value in values.items() if value is not None}

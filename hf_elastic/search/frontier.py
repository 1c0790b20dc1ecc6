"""What a search returns: every evaluated subnet and the ones that no other subnet beats."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from numbers import Real
from pathlib import Path

import numpy
from rich.table import Table

from ..core.errors import UserError
from ..utils.files import reading, write_atomically
from .objectives import Objective
from .pareto import signed_costs, sliced_volume
from .picture import draw
from .point import Point
from .table import make_frame, make_html, make_table
from .trade_off import TradeOff


class Frontier(TradeOff):
    """The evaluated subnets of a search and the trade-off between its objectives; `best` ranks by the first.

    Arguments, attributes and errors are those of `TradeOff`.
    """

    def best(self, **limits: float) -> Point:
        """The point with the best first objective within the limits; the other objectives, in order, break ties.

        Args:
            **limits: by name of an objective, in its unit; most for a minimised one, least for a maximised one.

        Raises:
            ValueError: an unknown name, a limit that is not a number, or no point within the limits.
        """
        known = {objective.name: objective for objective in self.objectives}
        for name, limit in limits.items():
            if name not in known:
                raise UserError(f"unknown limit {name!r}; known: {', '.join(known)}")
            if not isinstance(limit, Real) or math.isnan(limit):
                raise UserError(f"limit {name}={limit!r} is not a number")
        if not self._points:
            raise UserError(f"no feasible point among the {len(self.evaluated)} evaluated")

        def within(names) -> list[Point]:
            chosen = [(known[name], known[name].sign * limits[name]) for name in names]
            return [point for point in self._points if all(o.sign * point.values[o.name] <= most for o, most in chosen)]

        if candidates := within(limits):
            return min(candidates, key=lambda point: [o.sign * point.values[o.name] for o in self.objectives])
        wanted = " and ".join(f"{name} {'<=' if known[name].sign > 0 else '>='} {limit:g}" for name, limit in limits.items())
        # How far each value goes while the other limits hold, or by itself if they cannot hold either.
        reachable = {name: within(set(limits) - {name}) for name in limits}
        if not any(reachable.values()):
            reachable = dict.fromkeys(limits, self._points)
        signs = {name: known[name].sign for name in limits}
        closest = {
            name: signs[name] * min(signs[name] * point.values[name] for point in points)
            for name, points in reachable.items()
            if points
        }
        # Not rounded: the number must work when it is given back as the limit.
        available = " or ".join(f"{name}={value}" for name, value in closest.items())
        raise UserError(f"no point has {wanted}; closest available: {available}")

    def hypervolume(self, reference: Mapping[str, float] | None = None) -> float:
        """Volume between the frontier and a reference point, in the product of the objectives' units; larger is better.

        The indicator is from Zitzler & Thiele (PPSN 1998), computed by slicing objectives (While et al., IEEE TEC 10(1), 2006).

        Args:
            reference: the worst value of interest per objective. None: the worst feasible value plus a tenth of its range.
                Give one to compare frontiers; the default differs between them.

        Raises:
            ValueError: the reference does not give exactly the objectives a finite value.
        """
        names = [objective.name for objective in self.objectives]
        if reference is not None and (set(reference) != set(names) or not all(map(math.isfinite, reference.values()))):
            raise UserError(f"reference must give a finite value for each of {names}, got {dict(reference)}")
        if not self._points:
            return 0.0
        if reference is None:
            worst = self.costs.max(axis=0) + 0.1 * numpy.ptp(self.costs, axis=0)
        else:
            worst = numpy.array([objective.sign * reference[objective.name] for objective in self.objectives], dtype=float)
        costs = signed_costs(self.objectives, self._points)
        return float(sliced_volume(costs[(costs < worst).all(axis=1)], worst))

    def save(self, path: str | os.PathLike) -> None:
        """Write everything as JSON; raises ValueError if a subnet, detail or fact is nothing JSON can hold."""
        objectives, points = ([asdict(item) for item in items] for items in (self.objectives, self.evaluated))
        data = {"objectives": objectives, "points": points, "facts": self.facts}
        try:
            text = json.dumps(data, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UserError(f"cannot write the frontier to {path} as JSON: {error}") from error
        write_atomically(path, text)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Frontier":
        """Read what `save` wrote; raises ValueError, naming the file, if it is missing or not such a file."""
        with reading(path, "frontier", "is not a saved frontier"):
            data = json.loads(Path(path).read_bytes())
            objectives = [Objective(**item) for item in data["objectives"]]
            return cls(objectives, [Point(**item) for item in data["points"]], data["facts"])

    def plot(self, path: str | os.PathLike, x: str | None = None, y: str | None = None) -> None:
        """Draw every evaluated point and the frontier, and write the picture.

        Args:
            path: a file whose suffix matplotlib can write, e.g. .png, .svg or .pdf.
            x: value on the horizontal axis, the second objective by default.
            y: value on the vertical axis, the first objective by default.

        Raises:
            ValueError: an unknown value or suffix, no point with both values, or no second objective to default to.
        """
        draw(self, path, x, y)

    def report(self, path: str | os.PathLike, title: str = "Sizes of one elastic model") -> None:
        """Write one HTML page that works offline: every evaluated point to point at, any two values as axes, a sortable table.

        Args:
            path: the file, e.g. report.html.
            title: heading of the page.

        Raises:
            ValueError: no size was evaluated.
        """
        from .report import write  # its templates take a moment to import

        write(self, path, title)

    def table(self) -> Table:
        """The frontier, then dimmed the dominated "full" and "chosen" points, with intervals where they are known."""
        return make_table(self)

    def to_pandas(self):
        """A `pandas.DataFrame` with a row per evaluated point: name, subnet, each of its values, feasible, on_frontier.

        Raises:
            ImportError: pandas is not installed.
        """
        return make_frame(self)

    def __repr__(self) -> str:
        names = ", ".join(objective.name for objective in self.objectives)
        return f"Frontier({names}: {len(self.points)} of {len(self.evaluated)} points)"

    def _repr_html_(self) -> str:
        return make_html(self)

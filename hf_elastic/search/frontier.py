"""What a search returns: every evaluated subnet and the ones that no other subnet beats."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Real
from pathlib import Path

import numpy
from rich.table import Table
from rich.text import Text

DIRECTIONS = ("maximize", "minimize")
MOST_LABELS = 8
LABEL_LETTERS = {
    "layers": "L",
    "num_hidden_layers": "L",
    "num_attention_heads": "H",
    "intermediate_size": "F",
    "hidden_size": "D",
}
LETTERS_EXPLAINED = "L layers, H heads, F intermediate size, D hidden size, ~ mean over layers"
MARKED = {"full": {"fmt": "*", "ms": 15, "color": "#c44e52"}, "chosen": {"fmt": "D", "ms": 9, "color": "#dd8452"}}


@dataclass(frozen=True)
class Objective:
    """One quantity that a search optimises.

    Attributes:
        name: key of the quantity in `Point.values`; also the keyword of its limit in `Frontier.best`.
        direction: "maximize" or "minimize".
        unit: unit for axes and tables, e.g. "ms"; empty if it has none.
    """

    name: str
    direction: str
    unit: str = ""

    def __post_init__(self):
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction of objective {self.name!r} is {self.direction!r}; allowed: {', '.join(DIRECTIONS)}")

    @property
    def sign(self) -> int:
        """Factor that turns a value into a cost: 1 if minimised, -1 if maximised."""
        return 1 if self.direction == "minimize" else -1


@dataclass(frozen=True)
class Point:
    """One evaluated subnet.

    Attributes:
        subnet: the choice, with values that JSON can hold.
        values: measured numbers by name, at least the objectives if the point is feasible.
        details: anything else worth keeping. Under the name of a value: its interval `[low, high]` in the same unit.
        name: a name for tables and pictures; "full" and "chosen" are marked specially.
        feasible: False if the subnet breaks a constraint of the search; such a point is never on the frontier.
    """

    subnet: dict
    values: dict[str, float]
    details: dict = field(default_factory=dict)
    name: str | None = None
    feasible: bool = True

    def __post_init__(self):
        for part in (self.subnet, self.values, self.details):
            if not isinstance(part, dict):
                raise ValueError(f"subnet, values and details of a point must be dicts, got {part!r}")
        for name, value in self.values.items():
            if not isinstance(value, Real) or not math.isfinite(value):
                raise ValueError(f"value {name!r} of subnet {self.subnet} is {value!r}; it must be a finite number, or left out")
            interval = self.details.get(name, (value, value))
            if not isinstance(interval, list | tuple) or len(interval) != 2 or not interval[0] <= value <= interval[1]:
                raise ValueError(f"details[{name!r}] must be [low, high] around {value}, got {interval!r}")
        # numpy and torch scalars are not JSON
        object.__setattr__(self, "values", {name: float(value) for name, value in self.values.items()})


class Frontier:
    """The evaluated subnets of a search and the trade-off between its objectives.

    Args:
        objectives: what was optimised; `best` ranks by the first.
        points: every evaluated point, feasible or not.
        facts: what the numbers depend on (machine, data set, seed), with values that JSON can hold.

    Raises:
        ValueError: no objectives, two of one name, or a feasible point without a value for one of them.
    """

    def __init__(self, objectives: Sequence[Objective], points: Sequence[Point], facts: Mapping | None = None):
        self.objectives = list(objectives)
        self.evaluated = list(points)
        self.facts = dict(facts or {})
        names = [objective.name for objective in self.objectives]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"objectives must be at least one and differ in name, got {names}")
        feasible = [point for point in self.evaluated if point.feasible]
        for point in feasible:
            if missing := [name for name in names if name not in point.values]:
                raise ValueError(f"feasible subnet {point.subnet} has no value for {missing}; it has {sorted(point.values)}")
        self._costs = _costs(self.objectives, feasible)
        second = self.objectives[min(1, len(names) - 1)].name
        front = [feasible[index] for index in numpy.flatnonzero(non_dominated(self._costs))]
        self._points = sorted(front, key=lambda point: point.values[second])

    @property
    def points(self) -> list[Point]:
        """The feasible points that no other dominates, by ascending second objective (the only one, if there is one)."""
        return list(self._points)

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
                raise ValueError(f"unknown limit {name!r}; known: {', '.join(known)}")
            if not isinstance(limit, Real) or math.isnan(limit):
                raise ValueError(f"limit {name}={limit!r} is not a number")
        if not self._points:
            raise ValueError(f"no feasible point among the {len(self.evaluated)} evaluated")

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
        raise ValueError(f"no point has {wanted}; closest available: {available}")

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
            raise ValueError(f"reference must give a finite value for each of {names}, got {dict(reference)}")
        if not self._points:
            return 0.0
        if reference is None:
            worst = self._costs.max(axis=0) + 0.1 * numpy.ptp(self._costs, axis=0)
        else:
            worst = numpy.array([objective.sign * reference[objective.name] for objective in self.objectives], dtype=float)
        costs = _costs(self.objectives, self._points)
        return float(_sliced_volume(costs[(costs < worst).all(axis=1)], worst))

    def save(self, path: str | os.PathLike) -> None:
        """Write everything as JSON; raises ValueError if a subnet, detail or fact is nothing JSON can hold."""
        objectives, points = ([asdict(item) for item in items] for items in (self.objectives, self.evaluated))
        data = {"objectives": objectives, "points": points, "facts": self.facts}
        try:
            text = json.dumps(data, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"cannot write the frontier to {path} as JSON: {error}") from error
        _replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Frontier":
        """Read what `save` wrote; raises ValueError, naming the file, if it is missing or not such a file."""
        try:
            data = json.loads(Path(path).read_bytes())
            objectives = [Objective(**item) for item in data["objectives"]]
            return cls(objectives, [Point(**item) for item in data["points"]], data["facts"])
        except OSError as error:
            raise ValueError(f"cannot read the frontier {path}: {error.strerror}") from error
        except KeyError as error:
            raise ValueError(f"{path} is not a saved frontier: it lacks the key {error}") from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is not a saved frontier: {error}") from error

    def plot(self, path: str | os.PathLike, x: str | None = None, y: str | None = None) -> None:
        """Draw every evaluated point and the frontier, and write the picture.

        Args:
            path: a file whose suffix matplotlib can write, e.g. .png, .svg or .pdf.
            x: value on the horizontal axis, the second objective by default.
            y: value on the vertical axis, the first objective by default.

        Raises:
            ValueError: an unknown value or suffix, no point with both values, or no second objective to default to.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter

        objectives = {objective.name: objective for objective in self.objectives}
        if x is None and len(objectives) < 2:
            raise ValueError(f"the only objective is {self.objectives[0].name!r}; name the value for x")
        x = self.objectives[1].name if x is None else x
        y = self.objectives[0].name if y is None else y
        known = {name for point in self.evaluated for name in point.values} | set(objectives)
        if unknown := {x, y} - known:
            raise ValueError(f"unknown value {min(unknown)!r}; known: {', '.join(sorted(known))}")
        shown = [point for point in self.evaluated if {x, y} <= set(point.values)]
        if not shown:
            raise ValueError(f"none of the {len(self.evaluated)} evaluated points has both {x} and {y}")
        # Not pyplot: its backend and list of figures are global to the caller's process.
        figure = Figure(figsize=(7, 4.6), dpi=150)
        canvas = FigureCanvasAgg(figure)
        suffix = Path(path).suffix[1:]
        if suffix not in canvas.get_supported_filetypes():
            raise ValueError(f"cannot draw to {path}; allowed suffixes: {', '.join(sorted(canvas.get_supported_filetypes()))}")
        axes = figure.add_subplot(xlabel=self._title(x), ylabel=self._title(y))
        if {x, y} <= set(objectives):
            _draw_steps(axes, objectives[x], objectives[y], [point for point in shown if point.feasible])
        front = [point for point in self._points if {x, y} <= set(point.values)]
        _draw_points(axes, x, y, shown, front)
        axes.margins(0.1)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, frameon=False, fontsize=8, columnspacing=1.2)
        for axis, name in ((axes.xaxis, x), (axes.yaxis, y)):
            if max(point.values[name] for point in shown) >= 1e5:
                axis.set_major_formatter(EngFormatter(sep=""))  # "60M" rather than "6" and a far-off "1e7"
        figure.text(0.99, 0.01, LETTERS_EXPLAINED, ha="right", fontsize=6, color="#777777")
        figure.tight_layout(rect=(0, 0.03, 1, 1))
        # Better values lie to the left if x is minimised and above if y is maximised.
        corner = tuple(-objectives[name].sign if name in objectives else default for name, default in ((x, -1), (y, 1)))
        _draw_labels(axes, canvas.get_renderer(), x, y, front, shown, corner)
        _replace_file(path, lambda temporary: figure.savefig(temporary, format=suffix))

    def table(self) -> Table:
        """The frontier, then dimmed the dominated "full" and "chosen" points, with intervals where they are known."""
        title = f"{len(self._points)} of {len(self.evaluated)} evaluated subnets are on the frontier"
        table = Table("name", title=title, caption=LETTERS_EXPLAINED)
        for objective in self.objectives:
            table.add_column(self._title(objective.name), justify="right")
        table.add_column("subnet")
        beaten = [point for point in self.evaluated if point.name in MARKED and point not in self._points]
        for point in self._points + beaten:
            cells = [_value_text(point, objective.name) for objective in self.objectives]
            subnet = " ".join(_size_text(key, size) for key, size in point.subnet.items())
            table.add_row(Text(point.name or ""), *cells, Text(subnet), style="dim" if point in beaten else None)
        return table

    def _title(self, name: str) -> str:
        """A value with its unit and direction, for an axis or a column; just its name if it is no objective."""
        for objective in self.objectives:
            if objective.name == name:
                unit = f" ({objective.unit})" if objective.unit else ""
                better = "lower" if objective.sign > 0 else "higher"
                return f"{name.removesuffix(f'_{objective.unit}').replace('_', ' ')}{unit}, {better} is better"
        return name.replace("_", " ")


def non_dominated(costs: numpy.ndarray) -> numpy.ndarray:
    """Which rows of costs no other row dominates: none is at most as large everywhere and smaller somewhere.

    Args:
        costs: "points objectives", all minimised.

    Returns:
        "points", boolean. Equal rows do not dominate each other.
    """
    # In lexicographic order a row can only be dominated by an earlier one, so each survivor is compared with the later ones.
    remaining = numpy.lexsort(costs.T[::-1])
    columns = numpy.ascontiguousarray(costs[remaining].T)
    position = 0
    while position < len(remaining):
        current, later = columns[:, position : position + 1], columns[:, position + 1 :]
        keep = (later < current).any(axis=0) | (later == current).all(axis=0)
        position += 1
        if not keep.all():
            keep = numpy.concatenate([numpy.ones(position, dtype=bool), keep])
            columns, remaining = columns[:, keep], remaining[keep]
    mask = numpy.zeros(len(costs), dtype=bool)
    mask[remaining] = True
    return mask


def _costs(objectives: Sequence[Objective], points: Sequence[Point]) -> numpy.ndarray:
    """Values as "points objectives", signed so that smaller is better."""
    rows = [[objective.sign * point.values[objective.name] for objective in objectives] for point in points]
    return numpy.array(rows, dtype=float).reshape(len(points), len(objectives))


def _sliced_volume(costs: numpy.ndarray, worst: numpy.ndarray) -> float:
    """Volume dominated by the rows of costs, all below worst: slabs along the last objective times their cross-sections."""
    if len(costs) == 0:
        return 0.0
    if costs.shape[1] == 1:
        return worst[0] - costs.min()
    costs = costs[numpy.argsort(costs[:, -1])]
    thickness = numpy.diff(costs[:, -1], append=worst[-1])
    if costs.shape[1] == 2:
        return ((worst[0] - numpy.minimum.accumulate(costs[:, 0])) * thickness).sum()
    return sum(slab * _sliced_volume(costs[: i + 1, :-1], worst[:-1]) for i, slab in enumerate(thickness) if slab > 0)


def _draw_steps(axes, x: Objective, y: Objective, points: list[Point]) -> None:
    """Join the points that are best in this projection; the line is what a limit on x can buy."""
    corners = [points[index] for index in numpy.flatnonzero(non_dominated(_costs([x, y], points)))]
    corners.sort(key=lambda point: point.values[x.name])
    coordinates = [[point.values[axis.name] for point in corners] for axis in (x, y)]
    axes.step(*coordinates, where="post" if x.sign > 0 else "pre", color="#4c72b0", linewidth=1.2, zorder=4.5)


def _draw_points(axes, x: str, y: str, shown: list[Point], front: list[Point]) -> None:
    groups = {
        "infeasible": ([p for p in shown if not p.feasible], {"fmt": "x", "ms": 5, "color": "#bbbbbb", "ecolor": "none"}),
        "evaluated": ([p for p in shown if p.feasible], {"fmt": "o", "ms": 4, "color": "#999999", "ecolor": "#dddddd"}),
        "frontier": (front, {"fmt": "o", "ms": 6, "color": "#4c72b0"}),
        **{name: ([p for p in shown if p.name == name], {**style, "mec": "white"}) for name, style in MARKED.items()},
    }
    for order, (label, (points, style)) in enumerate(groups.items()):
        if points:
            (xs, x_error), (ys, y_error) = (_values_and_errors(points, name) for name in (x, y))
            axes.errorbar(xs, ys, y_error, x_error, label=label, elinewidth=1, zorder=3 + order, **style)


def _values_and_errors(points: list[Point], name: str) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Values, and their distance to the lower and upper end of the interval (zero where there is none)."""
    values = numpy.array([point.values[name] for point in points])
    ends = numpy.array([point.details.get(name, [point.values[name]] * 2) for point in points]).T
    return values, numpy.abs(ends - values)


def _draw_labels(axes, renderer, x: str, y: str, front: list[Point], shown: list[Point], corner: tuple[int, int]) -> None:
    """Label points spread along the frontier, towards the corner or away from it, where nothing is in the way."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2.5, foreground="white")]
    places = axes.transData.transform([[point.values[x], point.values[y]] for point in shown])
    labelled = [(point, text) for point, text in zip(front, _short_names(front)) if text and point.name not in MARKED]
    labelled.sort(key=lambda item: item[0].values[x])
    spread = {round(place) for place in numpy.linspace(0, len(labelled) - 1, MOST_LABELS)} if labelled else set()
    taken = []
    for point, text in (labelled[place] for place in sorted(spread)):
        for right, up in (corner, (-corner[0], -corner[1])):
            style = {"ha": "left" if right > 0 else "right", "va": "bottom" if up > 0 else "top", "fontsize": 7, "zorder": 9}
            place = (point.values[x], point.values[y])
            label = axes.annotate(text, place, (5 * right, 5 * up), textcoords="offset points", path_effects=halo, **style)
            box = label.get_window_extent(renderer)
            inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1
            if inside and not box.count_contains(places) and not box.count_overlaps(taken):
                taken.append(box)
                break
            label.remove()


def _short_names(points: list[Point]) -> list[str]:
    """The points' names, or the sizes in which their subnets differ."""
    keys = dict.fromkeys(key for point in points for key in point.subnet)
    sizes = [[_size_text(key, point.subnet[key]) if key in point.subnet else "" for point in points] for key in keys]
    differing = [texts for texts in sizes if len(set(texts)) > 1]
    return [point.name or " ".join(filter(None, (texts[i] for texts in differing))) for i, point in enumerate(points)]


def _size_text(key: str, size: object) -> str:
    """A size as "F768"; a list of sizes per layer as its mean, "F~704", and kept layers as their number."""
    if key not in LABEL_LETTERS:
        return f"{key}={size}"
    if key == "layers":
        return f"L{len(size)}"
    if not isinstance(size, list | tuple):
        return f"{LABEL_LETTERS[key]}{size}"
    return f"{LABEL_LETTERS[key]}{'~' if len(set(size)) > 1 else ''}{sum(size) / len(size):.0f}"


def _value_text(point: Point, name: str) -> str:
    if name not in point.values:
        return ""
    numbers = [point.values[name], *point.details.get(name, ())]
    value, *ends = (f"{number:,.0f}" if abs(number) >= 10_000 else f"{number:.4g}" for number in numbers)
    return f"{value} [{', '.join(ends)}]" if ends else value


def _replace_file(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Let write fill a temporary sibling, then move it over path, so that a reader never sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""A frontier as a picture, and how its points are written."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy

from ..core.errors import UserError
from ..core.space import names_text
from ..utils.files import staged_file
from .candidate import PREDICTED
from .objectives import Objective
from .pareto import non_dominated, signed_costs
from .point import Point
from .trade_off import TradeOff

MOST_LABELS = 8
LABEL_LETTERS = {
    "layers": "L",
    "num_hidden_layers": "L",
    "num_attention_heads": "H",
    "num_key_value_heads": "K",
    "intermediate_size": "F",
    "hidden_size": "D",
}
LETTERS_EXPLAINED = "L layers, H heads, K key-value heads, F intermediate size, D hidden size, ~ mean over layers"
HOLLOW = {"mfc": "white", "mec": None}
# Groups of points and their marks, in the terms of matplotlib; report.html draws the same. Later ones lie above.
STYLES = {
    "infeasible": {"fmt": "x", "ms": 5, "color": "#aaaaaa", "ecolor": "none"},
    "not measured": {"fmt": "o", "ms": 4, "color": "#aaaaaa", "ecolor": "none", "mfc": "white"},
    "evaluated": {"fmt": "o", "ms": 4, "color": "#999999", "ecolor": "#dddddd"},
    "frontier": {"fmt": "o", "ms": 6, "color": "#4c72b0"},
    "full": {"fmt": "*", "ms": 15, "color": "#c44e52", "mec": "white", "ecolor": "#c44e52"},
    "chosen": {"fmt": "D", "ms": 9, "color": "#dd8452", "mec": "white", "ecolor": "#dd8452"},
}
MARKED = ("full", "chosen")  # by name


def draw(frontier: TradeOff, path: str | os.PathLike, x: str | None, y: str | None) -> None:
    """What `Frontier.plot` does; arguments and errors are described there."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    objectives = {objective.name: objective for objective in frontier.objectives}
    if x is None and len(objectives) < 2:
        raise UserError(f"the only objective is {frontier.objectives[0].name!r}; name the value for x")
    x = frontier.objectives[1].name if x is None else x
    y = frontier.objectives[0].name if y is None else y
    known = {name for point in frontier.evaluated for name in point.values} | set(objectives)
    if unknown := {x, y} - known:
        raise UserError(f"unknown value {min(unknown)!r}; known: {', '.join(sorted(known))}")
    shown = [point for point in frontier.evaluated if {x, y} <= set(point.values)]
    if not shown:
        raise UserError(f"none of the {len(frontier.evaluated)} evaluated points has both {x} and {y}")
    # Not pyplot: its backend and list of figures are global to the caller's process.
    figure = Figure(figsize=(7, 4.6), dpi=150)
    canvas = FigureCanvasAgg(figure)
    suffix = Path(path).suffix[1:]
    if suffix not in canvas.get_supported_filetypes():
        raise UserError(f"cannot draw to {path}; allowed suffixes: {', '.join(sorted(canvas.get_supported_filetypes()))}")
    axes = figure.add_subplot(xlabel=value_title(frontier, x), ylabel=value_title(frontier, y))
    if {x, y} <= set(objectives):
        _draw_steps(axes, objectives[x], objectives[y], [point for point in shown if point.feasible])
    front = [point for point in frontier.points if {x, y} <= set(point.values)]
    _draw_points(axes, x, y, shown, front)
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(STYLES), frameon=False, fontsize=8, columnspacing=1.2)
    for axis, name in ((axes.xaxis, x), (axes.yaxis, y)):
        if max(point.values[name] for point in shown) >= 1e5:
            axis.set_major_formatter(EngFormatter(sep=""))  # "60M" rather than "6" and a far-off "1e7"
    has_predicted = any(is_predicted(point, name) for point in shown for name in (x, y))
    has_intervals = any(name in point.details for point in shown for name in (x, y))
    notes = ["hollow: predicted, not measured"] * has_predicted + ["bars: 95% intervals"] * has_intervals
    notes += filter(None, [letters_explained(frontier)])
    figure.text(0.99, 0.01, ". ".join(notes), ha="right", fontsize=6, color="#777777")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    # Better values lie to the left if x is minimised and above if y is maximised.
    corner = tuple(-objectives[name].sign if name in objectives else default for name, default in ((x, -1), (y, 1)))
    _draw_labels(axes, canvas.get_renderer(), x, y, front, shown, corner)
    with staged_file(path) as staged:
        figure.savefig(staged, format=suffix)


def value_title(frontier: TradeOff, name: str) -> str:
    """A value with its unit and direction, for an axis or a column; just its name if it is no objective."""
    for objective in frontier.objectives:
        if objective.name == name:
            better = "lower" if objective.sign > 0 else "higher"
            return f"{objective.title}, {better} is better"
    return name.replace("_", " ")


def _draw_steps(axes, x: Objective, y: Objective, points: list[Point]) -> None:
    """Join the points that are best in this projection; the line is what a limit on x can buy."""
    corners = [points[index] for index in numpy.flatnonzero(non_dominated(signed_costs([x, y], points)))]
    corners.sort(key=lambda point: point.values[x.name])
    coordinates = [[point.values[axis.name] for point in corners] for axis in (x, y)]
    axes.step(*coordinates, where="post" if x.sign > 0 else "pre", color="#4c72b0", linewidth=1.2, zorder=4.5)


def status_of(point: Point, front: Sequence[Point]) -> str:
    """Frontier, evaluated, infeasible (a rule of the search is broken) or not measured (a value is missing or only predicted)."""
    if any(point is one for one in front):
        return "frontier"
    if point.feasible:
        return "evaluated"
    reasons = point.details.get("infeasible", ())
    is_refused = any(" breaks " in reason or reason.startswith("not standard") for reason in reasons)
    return "not measured" if reasons and not is_refused else "infeasible"


def _draw_points(axes, x: str, y: str, shown: list[Point], front: list[Point]) -> None:
    groups = {name: [point for point in shown if status_of(point, ()) == name] for name in STYLES}
    groups |= {"frontier": front, **{name: [point for point in shown if point.name == name] for name in MARKED}}
    for order, (label, points) in enumerate(groups.items()):
        kinds: dict[bool, list[Point]] = {False: [], True: []}
        for point in points:
            kinds[is_predicted(point, x) or is_predicted(point, y)].append(point)
        for hollow, some in kinds.items():
            if some:
                (xs, x_error), (ys, y_error) = (_values_and_errors(some, name) for name in (x, y))
                title = None if hollow and kinds[False] else label  # one line of the legend for each group
                look = {**STYLES[label], **HOLLOW} if hollow else STYLES[label]
                axes.errorbar(xs, ys, y_error, x_error, label=title, elinewidth=1, zorder=3 + order, **look)


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
    labelled = [(point, text) for point, text in zip(front, short_names(front)) if text and point.name not in MARKED]
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


def short_names(points: Sequence[Point]) -> list[str]:
    """The points' names, or the sizes in which their subnets differ."""
    keys = dict.fromkeys(key for point in points for key in point.subnet)
    sizes = [[size_text(key, point.subnet[key]) if key in point.subnet else "" for point in points] for key in keys]
    differing = [texts for texts in sizes if len(set(texts)) > 1]
    return [point.name or " ".join(filter(None, (texts[i] for texts in differing))) for i, point in enumerate(points)]


def size_text(key: str, size: object) -> str:
    """A size as "F768"; a list of sizes per layer as its mean, "F~704", and kept layers as their number; names as how many layers
    have each, "block_type=8 bert + 4 mobilebert"."""
    if key not in LABEL_LETTERS and isinstance(size, list | tuple) and all(isinstance(one, str) for one in size):
        return f"{key}={names_text(size)}"
    if key not in LABEL_LETTERS:
        return f"{key}={size}"
    if key == "layers":
        return f"L{len(size)}"
    if not isinstance(size, list | tuple):
        return f"{LABEL_LETTERS[key]}{size}"
    return f"{LABEL_LETTERS[key]}{'~' if len(set(size)) > 1 else ''}{sum(size) / len(size):.0f}"


def letters_explained(frontier: TradeOff) -> str:
    """What the letters of sizes mean, where there are any."""
    has_letters = any(key in LABEL_LETTERS for point in frontier.evaluated for key in point.subnet)
    return LETTERS_EXPLAINED if has_letters else ""


def is_predicted(point: Point, name: str) -> bool:
    """Whether a value was predicted from measurements of other sizes."""
    return point.details.get(f"{name}_is") == PREDICTED


def value_text(point: Point, name: str) -> str:
    """A value with its interval, or nothing where there is none; one that was not measured says so."""
    return " ".join(value_parts(point, name))


def value_parts(point: Point, name: str) -> list[str]:
    """The value, its interval and "predicted", as far as there are any."""
    if name not in point.values:
        return []
    numbers = [point.values[name], *point.details.get(name, ())]
    value, *ends = (f"{number:,.0f}" if abs(number) >= 10_000 else f"{number:.4g}" for number in numbers)
    return [value, *([f"[{', '.join(ends)}]"] if ends else []), *([PREDICTED] if is_predicted(point, name) else [])]

"""A frontier as a table: on a terminal, in a notebook, and as a data frame."""

from html import escape

from rich.table import Table
from rich.text import Text

from ..core.errors import MissingPackageError
from .picture import MARKED, letters_explained, size_text, value_text, value_title
from .point import Point
from .trade_off import TradeOff


def make_table(frontier: TradeOff) -> Table:
    """What `Frontier.table` does."""
    table = Table("name", title=_title(frontier), caption=letters_explained(frontier) or None)
    for objective in frontier.objectives:
        table.add_column(value_title(frontier, objective.name), justify="right")
    table.add_column("subnet")
    for point, (name, *cells, subnet) in _rows(frontier):
        table.add_row(Text(name), *cells, Text(subnet), style=None if point in frontier.points else "dim")
    return table


def make_html(frontier: TradeOff) -> str:
    """The same as HTML, for notebooks."""
    heads = ["name", *(value_title(frontier, objective.name) for objective in frontier.objectives), "subnet"]
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in cells)}</tr>" for _, cells in _rows(frontier))
    caption = f"{escape(_title(frontier))}<br>{escape(letters_explained(frontier))}"
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def make_frame(frontier: TradeOff):
    """What `Frontier.to_pandas` does."""
    try:
        import pandas
    except ImportError as error:
        raise MissingPackageError("a frontier as a data frame needs pandas: pip install pandas") from error
    on_frontier = {id(point) for point in frontier.points}
    return pandas.DataFrame(
        {
            "name": point.name,
            "subnet": point.subnet,
            **point.values,
            "feasible": point.feasible,
            "on_frontier": id(point) in on_frontier,
        }
        for point in frontier.evaluated
    )


def _title(frontier: TradeOff) -> str:
    names = {objective.name for objective in frontier.objectives}
    refused = sum(not names <= set(point.values) for point in frontier.evaluated)  # before they were evaluated
    title = f"{len(frontier.points)} of {len(frontier.evaluated) - refused} evaluated subnets are on the frontier"
    return f"{title}; {refused} more were refused" if refused else title


def _rows(frontier: TradeOff) -> list[tuple[Point, list[str]]]:
    """The points of the frontier, then the marked ones that are beaten: name, objectives and subnet in words."""
    beaten = [point for point in frontier.evaluated if point.name in MARKED and point not in frontier.points]
    return [
        (
            point,
            [
                point.name or "",
                *(value_text(point, objective.name) for objective in frontier.objectives),
                " ".join(size_text(key, size) for key, size in point.subnet.items()),
            ],
        )
        for point in frontier.points + beaten
    ]

import io
import json

import numpy
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from hf_elastic.search.frontier import Frontier
from hf_elastic.search.objectives import Objective
from hf_elastic.search.pareto import non_dominated
from hf_elastic.search.point import Point

pytestmark = pytest.mark.one_lane

ACCURACY = Objective("accuracy", "maximize")
LATENCY = Objective("latency_ms", "minimize", "ms")


def point(accuracy, latency, name=None, feasible=True, **details):
    subnet = {"layers": [0, 2], "intermediate_size": [768, 1536], "num_attention_heads": int(100 * accuracy)}
    return Point(subnet, {"accuracy": accuracy, "latency_ms": latency}, details, name, feasible)


@pytest.fixture
def frontier():
    points = [
        point(0.90, 12, "full", latency_ms=[11.5, 13.0]),
        point(0.80, 4),
        point(0.91, 9, latency_ms=[8.8, 9.1]),
        point(0.85, 6, "chosen"),
        point(0.84, 7),
        point(0.99, 1, feasible=False),
    ]
    return Frontier([ACCURACY, LATENCY], points, {"machine": "m"})


def pairs(points):
    return [(p.values["accuracy"], p.values["latency_ms"]) for p in points]


def test_points_are_the_non_dominated_feasible_ones_by_second_objective(frontier):
    assert pairs(frontier.points) == [(0.80, 4), (0.85, 6), (0.91, 9)]
    assert len(frontier.evaluated) == 6


def test_dominance_is_strict():
    equal = Frontier([ACCURACY, LATENCY], [point(0.9, 5), point(0.9, 5), point(0.9, 6), point(0.8, 5)])
    assert pairs(equal.points) == [(0.9, 5), (0.9, 5)]


def test_one_objective_keeps_only_the_best():
    frontier = Frontier([LATENCY], [point(0.9, 5), point(0.8, 4), point(0.7, 6)])
    assert pairs(frontier.points) == [(0.8, 4)]
    assert frontier.hypervolume({"latency_ms": 10}) == pytest.approx(6)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_non_dominated_agrees_with_the_definition(objectives):
    costs = numpy.random.default_rng(objectives).integers(0, 6, size=(150, objectives)).astype(float)  # many ties
    expected = [not any((o <= c).all() and (o < c).any() for o in costs) for c in costs]
    assert non_dominated(costs).tolist() == expected


def test_non_dominated_keeps_all_of_a_large_trade_off():
    first = numpy.random.default_rng(0).random(5000)
    assert non_dominated(numpy.stack([first, -first], axis=1)).all()


def test_best_respects_limits_of_both_directions(frontier):
    assert pairs([frontier.best()]) == [(0.91, 9)]
    assert pairs([frontier.best(latency_ms=8), frontier.best(latency_ms=6)]) == [(0.85, 6)] * 2
    assert pairs([frontier.best(accuracy=0.85, latency_ms=7)]) == [(0.85, 6)]
    assert pairs([Frontier([LATENCY, ACCURACY], frontier.evaluated).best(accuracy=0.82)]) == [(0.85, 6)]


def test_without_a_feasible_point():
    frontier = Frontier([ACCURACY, LATENCY], [point(0.9, 5, feasible=False)])
    assert frontier.points == [] and frontier.hypervolume() == 0
    with pytest.raises(ValueError, match="no feasible point among the 1"):
        frontier.best()


def test_best_breaks_ties_by_the_next_objective():
    size = Objective("size", "minimize")
    values = [{"accuracy": 0.9, "latency_ms": 5, "size": 2}, {"accuracy": 0.9, "latency_ms": 4, "size": 3}]
    frontier = Frontier([ACCURACY, size, LATENCY], [Point({}, v) for v in values])
    assert len(frontier.points) == 2
    assert frontier.best().values["size"] == 2


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"latency_ms": 3}, r"latency_ms <= 3; closest available: latency_ms=4\.0$"),
        ({"accuracy": 0.95}, r"accuracy >= 0\.95; closest available: accuracy=0\.91$"),
        ({"latency_ms": 6, "accuracy": 0.9}, r"latency_ms <= 6 and accuracy >= 0\.9; .*latency_ms=9\.0 or accuracy=0\.85$"),
        ({"latency_ms": 5, "accuracy": 0.95}, r"closest available: accuracy=0\.8$"),
        ({"latency_ms": 1, "accuracy": 0.95}, r"closest available: latency_ms=4\.0 or accuracy=0\.91$"),
        ({"speed": 3}, "'speed'; known: accuracy, latency_ms"),
        ({"latency_ms": "fast"}, "latency_ms='fast' is not a number"),
        ({"latency_ms": float("nan")}, "latency_ms=nan"),
    ],
)
def test_best_says_what_is_available(frontier, limits, message):
    with pytest.raises(ValueError, match=message):
        frontier.best(**limits)


def test_the_closest_value_works_as_the_limit():
    frontier = Frontier([ACCURACY, LATENCY], [point(0.9, 10 / 3)])
    with pytest.raises(ValueError, match="closest") as caught:
        frontier.best(latency_ms=3)
    assert frontier.best(latency_ms=float(str(caught.value).rpartition("=")[2]))


def test_hypervolume_of_a_staircase(frontier):
    # (10 - 4) * 0.80 + (10 - 6) * 0.05 + (10 - 9) * 0.06
    assert frontier.hypervolume({"accuracy": 0, "latency_ms": 10}) == pytest.approx(5.06)
    # Points beyond the reference add nothing.
    assert frontier.hypervolume({"accuracy": 0.82, "latency_ms": 8}) == pytest.approx(2 * 0.03)
    assert frontier.hypervolume({"accuracy": 0.95, "latency_ms": 10}) == 0
    # Default: worst feasible value and a tenth of the range, so latency 12.8 and accuracy 0.789.
    assert frontier.hypervolume() == pytest.approx(frontier.hypervolume({"accuracy": 0.789, "latency_ms": 12.8}))


def test_hypervolume_of_three_objectives_agrees_with_counting_cells():
    names = ("accuracy", "latency_ms", "size")
    costs = numpy.random.default_rng(0).integers(0, 8, size=(400, 3))
    costs = costs[costs.sum(axis=1) == 9]  # no one dominates another
    points = [Point({}, dict(zip(names, row))) for row in (costs * [-1, 1, 1]).astype(float)]
    frontier = Frontier([ACCURACY, LATENCY, Objective("size", "minimize")], points)
    cells = numpy.stack(numpy.meshgrid(*[range(9)] * 3), axis=-1).reshape(-1, 1, 3)
    expected = (cells >= costs).all(axis=2).any(axis=1).sum()
    assert frontier.hypervolume({"accuracy": -9, "latency_ms": 9, "size": 9}) == expected


@pytest.mark.parametrize("reference", [{"accuracy": 0}, {"accuracy": 0, "latency_ms": float("nan")}, {}])
def test_hypervolume_refuses_an_incomplete_reference(frontier, reference):
    with pytest.raises(ValueError, match="reference must give a finite value for each"):
        frontier.hypervolume(reference)


def test_save_and_load_keep_everything(frontier, tmp_path):
    frontier.save(tmp_path / "new" / "frontier.json")
    loaded = Frontier.load(tmp_path / "new" / "frontier.json")
    assert (loaded.objectives, loaded.facts) == (frontier.objectives, frontier.facts)
    assert (loaded.evaluated, loaded.points) == (frontier.evaluated, frontier.points)
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_values_from_numpy_become_numbers_of_json():
    assert json.dumps(Point({}, {"latency_ms": numpy.float32(1.5)}).values) == '{"latency_ms": 1.5}'


def test_a_failed_save_leaves_the_old_file(frontier, tmp_path):
    path = tmp_path / "frontier.json"
    frontier.save(path)
    before = path.read_bytes()
    broken = Frontier(frontier.objectives, frontier.evaluated, {"model": object()})
    with pytest.raises(ValueError, match=r"frontier\.json as JSON.*object"):
        broken.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_picture_leaves_the_old_one(frontier, tmp_path, monkeypatch):
    path = tmp_path / "frontier.png"
    path.write_bytes(b"old")

    def half_written(figure, target, **options):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", half_written)
    with pytest.raises(OSError, match="disk full"):
        frontier.plot(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


OBJECTIVES = [{"name": "accuracy", "direction": "maximize"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting"),
        ("[]", "list"),
        (json.dumps({"objectives": OBJECTIVES, "facts": {}}), "lacks the key 'points'"),
        (json.dumps({"objectives": OBJECTIVES, "points": [{"subnet": {}}], "facts": {}}), "'values'"),
        (json.dumps({"objectives": OBJECTIVES, "points": [{"subnet": {}, "values": 3}], "facts": {}}), "must be dicts, got 3"),
        (json.dumps({"objectives": OBJECTIVES, "points": [{"subnet": {}, "values": {}}], "facts": {}}), "no value for"),
        (json.dumps({"objectives": [{"name": "a", "direction": "up"}], "points": [], "facts": {}}), "'up'; allowed: maximize"),
        (json.dumps({"objectives": [], "points": [], "facts": {}}), "at least one"),
        (json.dumps({"objectives": OBJECTIVES * 2, "points": [], "facts": {}}), "differ in name"),
        ("\udcff", "'utf-8' codec"),
    ],
)
def test_load_refuses_other_files(tmp_path, text, message):
    with pytest.raises(ValueError, match=r"f\.json: No such file"):
        Frontier.load(tmp_path / "f.json")
    path = tmp_path / "f.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=rf"f\.json is not a saved frontier.*{message}"):
        Frontier.load(path)


@pytest.mark.parametrize(
    ("value", "interval", "message"),
    [(float("nan"), [0, 1], "nan"), ("high", [0, 1], "'high'"), (0.9, [0.95, 0.99], "around 0.9"), (0.9, 0.1, "around 0.9")],
)
def test_point_refuses_bad_numbers(value, interval, message):
    with pytest.raises(ValueError, match=f"'accuracy'.*{message}"):
        Point({}, {"accuracy": value}, {"accuracy": interval})


def drawn_axes(frontier, path, monkeypatch, **options):
    """What plot drew, caught on its way to the file."""
    caught, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: caught.append(figure) or save(figure, *args, **kwargs))
    frontier.plot(path, **options)
    return caught[0].axes[0]


def test_plot_shows_groups_units_and_intervals(frontier, tmp_path, monkeypatch):
    axes = drawn_axes(frontier, tmp_path / "f.png", monkeypatch)
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [tmp_path / "f.png"]
    assert axes.get_xlabel() == "latency (ms), lower is better"
    assert axes.get_ylabel() == "accuracy, higher is better"
    groups = {container.get_label(): container for container in axes.containers}
    assert list(groups) == ["infeasible", "evaluated", "frontier", "full", "chosen"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(groups)
    assert groups["full"].lines[0].get_marker() != groups["chosen"].lines[0].get_marker()
    assert len(groups["evaluated"].lines[0].get_xdata()) == 5
    horizontal = groups["full"].lines[2][0].get_segments()[0]
    assert horizontal[:, 0].tolist() == pytest.approx([11.5, 13.0])
    step = next(line for line in axes.lines if line.get_drawstyle() == "steps-post")
    assert step.get_xdata().tolist() == [4, 6, 9]
    assert step.get_ydata().tolist() == [0.80, 0.85, 0.91]


def test_what_is_predicted_says_so(tmp_path, monkeypatch):
    """Hollow in the picture, a word in the table; the measured ones keep their group."""
    points = [point(0.9, 12, "full", latency_ms_is="measured"), point(0.8, 4, latency_ms_is="predicted"), point(0.85, 6)]
    frontier = Frontier([ACCURACY, LATENCY], points)
    axes = drawn_axes(frontier, tmp_path / "f.png", monkeypatch)
    hollow = [one.lines[0] for one in axes.containers if one.lines[0].get_markerfacecolor() == "white"]
    assert [line.get_xdata().tolist() for line in hollow] == [[4], [4]]  # as evaluated, and as of the frontier
    groups = {one.get_label(): one for one in axes.containers}
    assert groups["frontier"].lines[0].get_xdata().tolist() == [6, 12]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["evaluated", "frontier", "full"]
    assert axes.figure.texts[0].get_text().startswith("hollow: predicted")
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(frontier.table())
    [row] = [line for line in console.export_text().splitlines() if "predicted" in line]
    assert "4 predicted" in row


def test_plot_labels_cover_neither_points_nor_each_other(tmp_path, monkeypatch):
    # A crowd at the left edge, and infeasible points where labels of the others would go.
    points = [point(0.5 + i / 4000, 1 + i / 1000, f"one of a crowd, {i}") for i in range(8)]
    points += [point(0.6 + i / 25, 3 + i) for i in range(8)]
    points += [point(0.605 + i / 200, 2.7 + i / 8, feasible=False) for i in range(56)]
    axes = drawn_axes(Frontier([ACCURACY, LATENCY], points), tmp_path / "f.png", monkeypatch)
    assert 2 <= len(axes.texts) < 8
    boxes = [text.get_window_extent(axes.figure.canvas.get_renderer()) for text in axes.texts]
    places = axes.transData.transform([(p.values["latency_ms"], p.values["accuracy"]) for p in points])
    for index, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[index + 1 :])
        assert not box.count_contains(places)
        assert axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1
    # Named points by name, the others by what differs, which is only the heads.
    assert {text.get_text()[0] for text in axes.texts} == {"o", "H"}


def test_plot_of_other_values(tmp_path, monkeypatch):
    points = [Point({}, {"accuracy": 0.8 + i / 10, "latency_ms": 4 + i, "parameters": 1e7 * (i + 1)}) for i in range(2)]
    axes = drawn_axes(Frontier([ACCURACY, LATENCY], points), tmp_path / "f.svg", monkeypatch, x="parameters")
    assert axes.get_xlabel() == "parameters"
    assert axes.xaxis.get_major_formatter()(2e7) == "20M"
    assert not any(line.get_drawstyle().startswith("steps") for line in axes.lines)
    assert (tmp_path / "f.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("file", "x", "message"),
    [
        ("f.png", "speed", "'speed'; known: accuracy, latency_ms"),
        ("f.txt", None, r"f\.txt; allowed.*png"),
        ("f", None, "allowed"),
    ],
)
def test_plot_refuses_bad_input(frontier, tmp_path, file, x, message):
    with pytest.raises(ValueError, match=message):
        frontier.plot(tmp_path / file, x=x)
    assert not list(tmp_path.iterdir())


def test_plot_needs_points_and_a_second_value(tmp_path):
    with pytest.raises(ValueError, match="only objective is 'latency_ms'"):
        Frontier([LATENCY], [point(0.9, 5)]).plot(tmp_path / "f.png")
    with pytest.raises(ValueError, match="none of the 0 evaluated points has both"):
        Frontier([ACCURACY, LATENCY], []).plot(tmp_path / "f.png")


def test_table_lists_the_frontier_then_the_beaten_full_size(frontier):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(frontier.table())
    text = console.export_text()
    rows = [line for line in text.splitlines() if line.startswith("│")]
    assert len(rows) == 4
    assert "3 of 6" in text and "latency (ms), lower is better" in text
    assert "9 [8.8, 9.1]" in rows[2] and "L2 F~1152 H91" in rows[2]
    assert "full" in rows[3]


def test_table_of_an_infeasible_full_size_without_values():
    full = Point({"num_hidden_layers": 12}, {"accuracy": 0.9}, name="full", feasible=False)
    table = Frontier([ACCURACY, LATENCY], [full, point(0.8, 4)]).table()
    assert (table.row_count, table.title) == (2, "1 of 1 evaluated subnets are on the frontier; 1 more were refused")


def test_shown_by_itself_in_a_notebook_and_as_a_data_frame(frontier):
    assert repr(frontier) == "Frontier(accuracy, latency_ms: 3 of 6 points)"
    page = Frontier([ACCURACY, LATENCY], [point(0.9, 5, "<b>full</b>")])._repr_html_()
    assert "&lt;b&gt;full" in page and "<b>" not in page and "latency (ms), lower is better" in page
    frame = frontier.to_pandas()
    assert list(frame.columns) == ["name", "subnet", "accuracy", "latency_ms", "feasible", "on_frontier"]
    assert frame.on_frontier.tolist() == [False, True, True, True, False, False] and not frame.feasible[5]
    assert (frame.name[3], frame.subnet[3]["layers"], frame.latency_ms[3]) == ("chosen", [0, 2], 6)


@pytest.mark.parametrize(("name", "unit", "title"), [("peak_memory_mb", "MB", "peak memory (MB)"), ("my_loss", "", "my loss")])
def test_objectives_have_titles_for_people(name, unit, title):
    assert Objective(name, "minimize", unit).title == title

"""The page of a frontier, in a real browser without a network."""

import html
import json
import re
import shutil
import subprocess

import pytest
from matplotlib.figure import Figure

from hf_elastic.search import Frontier, Objective
from hf_elastic.search.candidate import Candidate, Rules
from hf_elastic.search.objectives import read_constraints
from hf_elastic.search.picture import STYLES
from hf_elastic.search.point import Point

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--virtual-time-budget=5000",
]  # fmt: skip
# What a reader does, and what the page then shows, as the page's title.
READER = """<script>
const all = (where, css) => [...where.querySelectorAll(css)], marks = () => all(plot, ".point"), body = get("table").tBodies[0];
const seen = {marks: marks().length, rows: body.rows.length};
const full = plot.querySelector("[data-kind=full]");
full.dispatchEvent(new MouseEvent("mouseenter"));
seen.tip = tip.textContent; seen.tipIsShown = !tip.hidden; seen.lit = document.querySelector("tr.lit").cells[0].textContent;
full.dispatchEvent(new MouseEvent("mouseleave"));
seen.tipIsHidden = tip.hidden;
const texts = () => all(plot, "text").map(element => element.textContent);
seen.before = texts().includes("latency (ms)");
seen.statuses = [...body.rows].map(row => row.cells[0].textContent + ": " + row.cells[1].textContent);
seen.missing = all(body, "td.missing").map(cell => cell.textContent.trim());
seen.left = get("left").textContent;
seen.legend = all(get("legend"), "span").map(span => span.textContent);
const look = path => ["d", "fill", "stroke"].map(name => path.getAttribute(name)).join();
const filled = where => all(where, "path[data-kind]").filter(path => path.getAttribute("fill") !== "white");
const looks = where => Object.fromEntries(filled(where).map(path => [path.dataset.kind, look(path)]));
seen.looks = [looks(plot), looks(get("legend")), looks(body)];
seen.hollow = marks().filter(path => path.getAttribute("fill") === "white").map(path => path.dataset.kind);
const fits = () => document.documentElement.scrollWidth <= document.documentElement.clientWidth;
const boxes = all(plot, "text").map(element => element.getBoundingClientRect());
const over = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
seen.narrow = {width: innerWidth, fits: fits(), smallest: Math.min(...boxes.map(box => Math.min(box.width + 8, box.height))),
  overlaps: boxes.some((a, i) => boxes.slice(i + 1).some(b => over(a, b))),
  cut: boxes.some(box => box.left < 0 || box.right > innerWidth)};
const change = (id, value) => { get(id).value = value; get(id).dispatchEvent(new Event("change")); };
change("x", "parameters");
seen.after = texts().includes("parameters") && !texts().includes("latency (ms)");
get("log").checked = true; get("log").dispatchEvent(new Event("change"));
seen.logarithmic = marks().length;
get("all").checked = false; get("all").dispatchEvent(new Event("change"));
seen.fewer = marks().length;
const column = () => [...body.rows].map(row => row.cells[2].textContent.trim());
document.querySelectorAll("th button")[2].click(); seen.ascending = column();
document.querySelectorAll("th button")[2].click(); seen.descending = column();
parent.document.title = JSON.stringify(seen);
</script></body>"""


def frontier():
    """In an order of their own: a size that beats another, a dominated one, two not measured and two that break a rule."""
    rules = Rules(("accuracy", "latency_ms"), tuple(read_constraints(["parameters<=4e6"])), is_standard=True)

    def refused(layers, values, details=(), left_out=(), **candidate):
        reasons = [*rules.problems(Candidate(None, values, is_evaluated=True, **candidate)), *left_out]
        return Point({"num_hidden_layers": layers}, values, {**dict(details), "infeasible": reasons}, feasible=False)

    points = [
        refused(7, {"accuracy": 0.91, "latency_ms": 9.0, "parameters": 5e6}),
        refused(2, {"latency_ms": 2.0, "parameters": 0.5e6}, why_failed="</script><b>accuracy</b> is not a finite number"),
        refused(5, {"accuracy": 0.7, "latency_ms": 7.0, "parameters": 2.5e6}, why_elastic="its heads are too few"),
        Point({"num_hidden_layers": 3}, {"accuracy": 0.8, "latency_ms": 6.0, "parameters": 1e6}),
        Point({"num_hidden_layers": 6}, {"accuracy": 0.9, "latency_ms": 8.0, "parameters": 3e6}, name="full"),
        refused(
            1,
            {"accuracy": 0.6, "latency_ms": 1.0, "parameters": 0.3e6},
            {"latency_ms_is": "predicted"},
            ["not among the 3 that were chosen to be measured"],
        ),
        Point({"num_hidden_layers": 4}, {"accuracy": 0.88, "latency_ms": 5.0, "parameters": 2e6}, {"latency_ms": [4.5, 5.5]}),
    ]
    objectives = [Objective("accuracy", "maximize"), Objective("latency_ms", "minimize", "ms")]
    return Frontier(objectives, points, {"machine": {"processor": "<i>fast</i>"}, "warnings": ["busy & slow"]})


def read(folder, width):
    """What the reader sees on a screen of `width` pixels: a frame, since windows are at least 500 wide."""
    frontier().report(folder / "report.html")
    page = (folder / "report.html").read_text().replace("</body>", READER)
    (folder / "frame.html").write_text(
        f'<!doctype html><iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{html.escape(page)}"></iframe>'
    )
    options = [f"--user-data-dir={folder / 'browser'}", "--dump-dom", (folder / "frame.html").as_uri()]
    shown = subprocess.run([CHROMIUM, *FLAGS, *options], capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(html.unescape(re.search("<title>(.*?)</title>", shown, re.S).group(1)))


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium; apt-get install chromium")
    return read(tmp_path_factory.mktemp("narrow"), 420)


def test_page_is_whole_and_escaped(tmp_path):
    frontier().report(tmp_path / "report.html", "A <title>")
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"(src|href)\s*=|@import|https?://(?!www\.w3\.org)", page)
    assert "A &lt;title&gt;" in page and "&lt;i&gt;fast" in page and "busy &amp; slow" in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))
    assert [point["frontier"] for point in data["points"]] == [True, True] + [False] * 5
    assert data["axes"] == ["latency_ms", "accuracy"] and data["values"]["latency_ms"]["title"] == "latency (ms)"


def test_nothing_to_report(tmp_path):
    with pytest.raises(ValueError, match="no size was evaluated"):
        Frontier([Objective("accuracy", "maximize")], []).report(tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_a_reader_points_switches_and_sorts(seen):
    assert seen["marks"] == 6 and seen["rows"] == 7  # one size has no accuracy to be drawn at
    assert seen["tipIsShown"] and seen["tipIsHidden"] and "latency (ms): 8" in seen["tip"] and seen["lit"] == "full"
    assert seen["before"] and seen["after"] and seen["logarithmic"] == 6 and seen["fewer"] == 2
    ordered = ["0.6", "0.7", "0.8", "0.88", "0.9", "0.91"]
    assert seen["ascending"] == [*ordered, "not measured"] and seen["descending"] == [*reversed(ordered), "not measured"]


def test_rows_come_frontier_first_and_not_measured_is_not_infeasible(seen):
    assert seen["statuses"] == [
        "L4: frontier", "full: frontier", "L3: evaluated", "L1: not measured", "L2: not measured",
        "L5: infeasible", "L7: infeasible",
    ]  # fmt: skip
    assert seen["missing"] == ["not measured"] and seen["left"].endswith("was not measured: 1.")


def test_legend_and_marks_agree_with_each_other_and_with_the_picture(seen, tmp_path, monkeypatch):
    in_plot, in_legend, in_table = seen["looks"]
    assert in_plot == in_legend == in_table and len(set(in_plot.values())) == len(in_plot) == 4
    assert seen["hollow"] == ["not measured"]
    caught, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: caught.append(figure) or save(figure, *args, **kwargs))
    frontier().plot(tmp_path / "frontier.png")
    drawn = {one.get_label(): one.lines[0] for one in caught[0].axes[0].containers}
    words = "hollow: predicted, not measured"
    assert seen["legend"] == [*drawn, words] and caught[0].texts[0].get_text().startswith(words)
    for name, line in drawn.items():
        assert (line.get_color(), line.get_marker()) == (STYLES[name]["color"], STYLES[name]["fmt"])
        assert name in seen["hollow"] or in_legend[name].endswith(line.get_color())


def test_page_is_readable_on_a_narrow_screen(seen):
    narrow = seen["narrow"]
    assert narrow["width"] == 420 and narrow["fits"] and narrow["smallest"] >= 12
    assert not narrow["overlaps"] and not narrow["cut"]

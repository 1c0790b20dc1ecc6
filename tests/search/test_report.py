"""The page of a frontier, in a real browser without a network."""

import html
import json
import re
import shutil
import subprocess

import pytest

from hf_elastic.search import Frontier, Objective
from hf_elastic.search.point import Point

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1100,900", "--virtual-time-budget=5000",
]  # fmt: skip
# What a reader does, and what the page then shows, as the page's title.
READER = """<script>
const seen = {circles: document.querySelectorAll("circle").length, rows: get("table").tBodies[0].rows.length};
const full = document.querySelector("circle.full");
full.dispatchEvent(new MouseEvent("mouseenter"));
seen.tip = tip.textContent; seen.tipIsShown = !tip.hidden; seen.lit = document.querySelector("tr.lit").cells[0].textContent;
full.dispatchEvent(new MouseEvent("mouseleave"));
seen.tipIsHidden = tip.hidden;
const label = () => [...plot.querySelectorAll("text")].map(element => element.textContent);
const change = (id, value) => { get(id).value = value; get(id).dispatchEvent(new Event("change")); };
seen.before = label().includes("latency (ms)");
change("x", "parameters");
seen.after = label().includes("parameters") && !label().includes("latency (ms)");
get("log").checked = true; get("log").dispatchEvent(new Event("change"));
seen.logarithmic = plot.querySelectorAll("circle").length;
get("all").checked = false; get("all").dispatchEvent(new Event("change"));
seen.fewer = plot.querySelectorAll("circle").length;
const column = () => [...get("table").tBodies[0].rows].map(row => row.cells[1].textContent);
document.querySelectorAll("th button")[1].click(); seen.ascending = column();
document.querySelectorAll("th button")[1].click(); seen.descending = column();
document.title = JSON.stringify(seen);
</script></body>"""


def frontier():
    points = [
        Point({"num_hidden_layers": 6}, {"accuracy": 0.9, "latency_ms": 8.0, "parameters": 3e6}, name="full"),
        Point({"num_hidden_layers": 4}, {"accuracy": 0.88, "latency_ms": 5.0, "parameters": 2e6}, {"latency_ms": [4.5, 5.5]}),
        Point({"num_hidden_layers": 3}, {"accuracy": 0.8, "latency_ms": 6.0, "parameters": 1e6}),
        Point(
            {"num_hidden_layers": 2},
            {"latency_ms": 2.0, "parameters": 0.5e6},
            {"infeasible": ["</script><b>accuracy</b> is not a finite number"]},
            feasible=False,
        ),
    ]
    objectives = [Objective("accuracy", "maximize"), Objective("latency_ms", "minimize", "ms")]
    return Frontier(objectives, points, {"machine": {"processor": "<i>fast</i>"}, "warnings": ["busy & slow"]})


def test_page_is_whole_and_escaped(tmp_path):
    frontier().report(tmp_path / "report.html", "A <title>")
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"(src|href)\s*=|@import|https?://(?!www\.w3\.org)", page)
    assert "A &lt;title&gt;" in page and "&lt;i&gt;fast" in page and "busy &amp; slow" in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))
    assert [point["frontier"] for point in data["points"]] == [True, True, False, False]
    assert data["axes"] == ["latency_ms", "accuracy"] and data["values"]["latency_ms"]["title"] == "latency (ms)"


def test_nothing_to_report(tmp_path):
    with pytest.raises(ValueError, match="no size was evaluated"):
        Frontier([Objective("accuracy", "maximize")], []).report(tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium; apt-get install chromium")
def test_a_reader_points_switches_and_sorts(tmp_path):
    frontier().report(tmp_path / "report.html")
    page = tmp_path / "read.html"
    page.write_text((tmp_path / "report.html").read_text().replace("</body>", READER))
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    seen = json.loads(html.unescape(re.search("<title>(.*?)</title>", shown, re.S).group(1)))
    assert seen["circles"] == 3 and seen["rows"] == 4  # one size has no accuracy to be drawn at
    assert seen["tipIsShown"] and seen["tipIsHidden"] and "latency (ms): 8" in seen["tip"] and seen["lit"] == "● full"
    assert seen["before"] and seen["after"] and seen["logarithmic"] == 3 and seen["fewer"] == 2
    assert seen["ascending"] == ["0.8", "0.88", "0.9", ""] and seen["descending"] == ["0.9", "0.88", "0.8", ""]

"""`--demo`: the page in a real browser, before a real server."""

import re
import subprocess
from importlib.resources import files

import pytest
from browser import browsing
from served import Client, save, serve_command, serving, serving_process

pytest.importorskip("sentence_transformers", minversion="6")

pytestmark = pytest.mark.one_lane

SIZES = ["full", "small", "tiny"]
SET = "get('rate').value = stepOf({rate}); get('auto').checked = {auto}; get('size').value = {size}; "
BARS = "[...get('found').children].map(item => [item.children[0].textContent, Number(item.children[2].textContent)])"
# Whether a plot has pixels of a colour such as that of a size's key.
HAS = """(canvas => {{
  const wanted = getComputedStyle(document.querySelectorAll('#legend i')[{place}]).backgroundColor.match(/\\d+/g).map(Number);
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  const isThere = at => wanted.every((value, part) => Math.abs(pixels[at + part] - value) < 3);
  return Array.from({{length: pixels.length / 4}}, (_, place) => 4 * place).some(isThere);
}})(get('answers'))"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("browser")) as page:
        yield page


def set_load(page, rate, size=None):
    """Move the sliders."""
    script = SET.format(rate=rate, auto="false" if size is not None else "true", size=size or 0)
    page.get(f"{script} get('rate').dispatchEvent(new Event('input'))")


@pytest.mark.slow
@pytest.mark.alone
def test_a_reader_sets_load_and_size(page, tmp_path):
    path = save("symmetric", tmp_path)
    with serving_process(path, "--demo", "true") as (url, _), Client(url) as client:
        page.requested.clear()
        page.open(f"{url}/demo")
        page.until("!!document.getElementById('found')?.children.length")
        assert page.get("get('now').textContent") and path in page.get("get('about').textContent")
        assert "never trained" in page.get("get('about').textContent")
        assert page.get("[...get('legend').children].map(entry => entry.textContent)") == [*SIZES, "load"]
        assert page.get("get('rate-shown').textContent") == "none" and page.get("get('size').disabled")
        set_load(page, 100)
        page.until("get('now').textContent.includes('texts per second came')")
        state = client.get("/demo/state").json()
        assert state["load"]["subnet"] is None and 90 < state["load"]["rate"] < 110
        page.until("state.points.some(point => point.came && point.answered.full && point.p50 && point.p95 >= point.p50)")
        page.until(HAS.format(place=0))
        assert not page.get(HAS.format(place=2))
        set_load(page, 100, size=2)
        page.until("get('now').textContent.includes('(tiny 100%)')")
        page.until(HAS.format(place=2))
        assert page.get("get('size-shown').textContent") == ", now tiny"
        page.get("get('text').value = 'word5 word6'; ask()")
        page.until("get('answered').textContent.startsWith('Answered by tiny in ')")
        sentences = client.get("/demo/state").json()["texts"]
        body = {"inputs": {"source_sentence": "word5 word6", "sentences": sentences}}
        scores = client.post("/similarity", json=body, headers={"x-elastic-subnet": "tiny"}).json()
        expected = sorted(((round(score, 3), text) for score, text in zip(scores, sentences)), reverse=True)[:6]
        assert [score for _, score in page.get(BARS)] == pytest.approx([score for score, _ in expected], abs=2e-3)
        client.put("/demo/load", json={"rate": 0})  # as another page would
        page.until("get('rate-shown').textContent === 'none' && get('auto').checked")
        page.until("get('now').textContent === 'Idle.'")
        page.picture(tmp_path / "page.png")
        assert page.errors == [] and {address.startswith(f"{url}/") for address in page.requested} == {True}
        for status, wanted in ((422, {"rate": -1}), (422, {"rate": 1, "subnet": "huge"}), (200, {"rate": 1e9})):
            response = client.put("/demo/load", json=wanted)
            assert response.status_code == status, response.text
        assert response.json()["rate"] == client.get("/demo/state").json()["most"] < 1e9


@pytest.mark.parametrize(("kind", "names"), [("classifier", {"good", "bad", "neither"}), ("ranker", None)])
def test_other_kinds(kind, names, page, tmp_path):
    with serving_process(save(kind, tmp_path), "--demo", "true") as (url, _):
        page.open(f"{url}/demo")
        page.until("!!document.getElementById('found')?.children.length")
        set_load(page, 50)
        page.until("state.points.some(point => point.came && Object.keys(point.answered).length)")
        shown = {name for name, _ in page.get(BARS)}
        assert shown == names if names else shown < set(page.get("state.texts"))
    page.until("get('now').textContent.startsWith('The server does not answer')")


def test_without_the_option_there_is_no_page(tmp_path):
    with serving(save("symmetric", tmp_path)) as (client, _):
        for path in ("/demo", "/demo/state"):
            assert client.get(path).status_code == 404
        assert client.put("/demo/load", json={"rate": 1}).status_code == 404


def test_the_page_sends_no_key(tmp_path):
    path = save("symmetric", tmp_path)
    command = [*serve_command(path), "--port", "0", "--demo", "true", "--api_key", "secret"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2 and "demo: its page sends no key" in result.stderr and "secret" not in result.stderr


def test_the_page_needs_nothing_from_elsewhere():
    page = files("hf_elastic.serving").joinpath("demo.html").read_text(encoding="utf-8")
    assert not re.search(r"src\s*=|@import|https?://", page) and re.findall(r'href="(.*?)"', page) == ["data:,"]

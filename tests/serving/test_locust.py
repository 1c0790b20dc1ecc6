"""The users of `locust` that come with the recipes, against real servers."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from served import save, serving, until

if find_spec("locust") is None:  # importing it replaces sockets and threads in this process
    pytest.skip("locust is not installed", allow_module_level=True)

pytestmark = [pytest.mark.one_lane, pytest.mark.slow, pytest.mark.alone]
FILE = Path(__file__).parents[2] / "recipes" / "serving" / "locustfile.py"


@pytest.mark.parametrize(
    ("kind", "name"), [("symmetric", "/embed full"), ("classifier", "/predict full"), ("ranker", "/rerank full")]
)
def test_users(kind, name, tmp_path):
    with serving(save(kind, tmp_path)) as (client, worker):
        batches, run = [], worker.ready.result()[0].run
        worker.ready.result()[0].run = lambda *given: (batches.append(given), run(*given))[1]
        where = ["-f", str(FILE), "--host", client.url, "--json-file", str(tmp_path / "found")]
        process = subprocess.Popen([sys.executable, "-m", "locust", *where, "--headless", "-u", "3", "-r", "3"])
        try:
            until(lambda: len(batches) > 20 or process.poll() is not None)
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
        rows = {row["name"]: row for row in json.loads(next(tmp_path.glob("found*")).read_text())}
        assert rows[name]["num_requests"] > 3 and not any(row["num_failures"] for row in rows.values())
        assert rows.keys() == {"/info", name}

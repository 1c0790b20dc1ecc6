"""The users of `locust` that come with the recipes, against real servers."""

import csv
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
        where = ["-f", str(FILE), "--host", client.url, "--csv", str(tmp_path / "found")]
        process = subprocess.Popen([sys.executable, "-m", "locust", *where, "--headless", "-u", "3", "-r", "3"])
        try:
            until(lambda: len(batches) > 20 or process.poll() is not None)
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
        with open(tmp_path / "found_stats.csv", newline="") as file:
            rows = {row["Name"]: row for row in csv.DictReader(file)}
        assert int(rows[name]["Request Count"]) > 3 and int(rows["Aggregated"]["Failure Count"]) == 0
        assert rows.keys() == {"/info", name, "Aggregated"}

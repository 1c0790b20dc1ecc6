"""A trace sent to a real server: what comes back, when it counts from, and how it stands beside the simulation."""

import asyncio
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from served import Stopped, make, save, serving, until
from served_profiles import profile

pytest.importorskip("aiohttp")

from hf_elastic.cli.main import main
from hf_elastic.core.errors import MissingPackageError, UserError
from hf_elastic.serving.compare import compare
from hf_elastic.serving.config import SchedulerConfig
from hf_elastic.serving.replay import RunningServer, at_times, read_texts
from hf_elastic.serving.simulate import EXPIRED, REJECTED
from hf_elastic.serving.simulate_config import SimulateConfig
from hf_elastic.serving.traces import OpenLoop

pytestmark = pytest.mark.one_lane
TEXTS = [" ".join(f"word{place}" for place in range(60))]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save("symmetric", tmp_path_factory.mktemp("replay"))


def trace(*times: float, length: int = 8) -> OpenLoop:
    return OpenLoop(np.array(times), np.full(len(times), length), 1.0)


def test_each_begins_at_its_time_whatever_becomes_of_the_rest():
    async def run():
        begun, may_end = [], asyncio.Event()

        async def begin(place, due):
            begun.append((place, asyncio.get_running_loop().time() - due))
            if place == 2:
                may_end.set()
            await may_end.wait()  # the first two end only because the last one has begun
            return place

        return await at_times([0.0, 0.01, 0.02], begin), begun

    found, begun = asyncio.run(run())
    assert found == [0, 1, 2] and [place for place, _ in begun] == [0, 1, 2] and min(late for _, late in begun) >= 0


def test_what_comes_back(path):
    with serving(path) as (client, _):
        server = RunningServer(client.url, TEXTS)
        assert server.names == ["full", "small", "tiny"] and server.qualities == [0.9, 0.8, 0.7] and server.policy == "slo"
        client.post("/embed", json={"inputs": "word1"})  # another one's is not counted
        found = server.replay(trace(0.0, 0.02, 0.02, 0.05), 60.0)
        assert found.attainment == 1 and found.quality == 0.9 and found.names == server.names and found.objective == 60
        assert (found.latencies > 0).all() and 1 <= found.batches <= 4 and found.switches == 0
        assert 0 < found.busy < found.duration and found.duration >= 1
        assert found.summary()["shares"] == {"full": 1.0, "small": 0.0, "tiny": 0.0}


def test_texts_have_as_many_tokens_as_the_trace_says(path):
    with serving(path) as (client, worker):
        server, seen = RunningServer(client.url, TEXTS), []
        engine = worker.ready.result()[0]
        run = engine.run
        engine.run = lambda name, rows: (seen.extend(len(row.tokens) for row in rows), run(name, rows))[1]
        lengths = [3, 9, 20, 5, 20, 20, 20]
        server.replay(OpenLoop(np.arange(7) / 50, np.array(lengths), 1.0), 60.0)
        assert sorted(seen) == sorted(lengths)
        cut = server.cut(np.array(lengths))
        assert len(set(cut)) == 7 and all(" ".join(TEXTS).count(text) for text in cut)
        with pytest.raises(UserError, match="texts: 60 tokens in all, and the longest request has 98"):
            server.cut(np.array([100]))
        assert RunningServer(client.url, ["word1 unknown", "word2 word3"]).cut(np.array([6])) == ["word1 unknown word2 word3"]
        for wrong, words in (
            ("word1 unknown", "the tokenizer of the model does not know the last word"),
            (" ", "there is no word"),
        ):
            with pytest.raises(UserError, match=f"texts: {words}"):
                RunningServer(client.url, [wrong])


def test_a_full_queue_and_a_passed_deadline(path):
    with serving(path, max_queue=4, max_client_batch_size=4) as (client, worker), ThreadPoolExecutor(1) as pool:
        server = RunningServer(client.url, TEXTS)
        engine = worker.ready.result()[0]
        stopped = Stopped(engine, "full")
        first = pool.submit(client.post, "/embed", json={"inputs": "word1"})
        until(lambda: stopped.runs == 1)
        threading.Timer(0.8, stopped.may_run.set).start()
        found = server.replay(trace(*[0.0] * 6), 0.05, deadlines=True)
        assert first.result().status_code == 200
        assert sorted(found.sizes.tolist()) == [REJECTED] * 2 + [EXPIRED] * 4 and np.isinf(found.latencies).all()
        assert found.attainment == 0 and found.summary()["expired"] == 4


def test_latency_counts_from_when_a_request_was_due(path):
    """The server stands still while requests come: each waits for as long as from its own time on."""
    with serving(path) as (client, worker), ThreadPoolExecutor(2) as pool:
        server = RunningServer(client.url, TEXTS)
        stopped = Stopped(worker.ready.result()[0], "full")
        pool.submit(client.post, "/embed", json={"inputs": "word1"})
        until(lambda: stopped.runs == 1)
        times = np.arange(10) / 20

        def let_go():
            until(lambda: worker.waiting == len(times))
            time.sleep(0.3)
            stopped.may_run.set()

        waiting = pool.submit(let_go)
        found = server.replay(trace(*times), 60.0)
        waiting.result()
        ends = found.arrivals + found.latencies
        assert (ends >= times[-1] + 0.3).all()


def test_a_classifier_and_a_key(tmp_path, monkeypatch):
    with serving(save("classifier", tmp_path), api_key="secret") as (client, _):
        monkeypatch.delenv("HF_ELASTIC_API_KEY", raising=False)
        with pytest.raises(UserError, match=f"server: {client.url}/info answers with status 401: .*the API key is missing"):
            RunningServer(client.url, TEXTS)
        monkeypatch.setenv("HF_ELASTIC_API_KEY", "secret")
        assert RunningServer(f"{client.url}/", TEXTS).replay(trace(0.0, 0.1), 60.0).attainment == 1


def test_servers_that_are_none():
    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"model_id": "something"}')

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        url = f"http://127.0.0.1:{other.server_port}"
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        with pytest.raises(UserError, match=f"server: {url} is not one of hf-elastic serve"):
            RunningServer(url, TEXTS)
        other.shutdown()
        thread.join()
    for wrong in (url, "nothing", "ftp://127.0.0.1"):
        with pytest.raises(UserError, match=f"server: {wrong} does not answer"):
            RunningServer(wrong, TEXTS)


def test_a_server_that_ends_meanwhile(path):
    with serving(path) as (client, worker):
        server = RunningServer(client.url, TEXTS)
        threading.Timer(0.3, worker.drain).start()
        with pytest.raises(UserError, match=f"server: {client.url}"):
            server.replay(trace(*np.arange(20) / 20), 60.0)


def test_texts(tmp_path):
    assert len(read_texts(None)) > 50
    file = tmp_path / "texts.txt"
    file.write_text("one\ntwo")
    assert read_texts(str(file)) == ["one\ntwo"]
    file.write_bytes(b"\xff\xfe")
    for wrong, words in ((file, "is not a text file"), (tmp_path / "none", "cannot read the texts")):
        with pytest.raises(UserError, match=words):
            read_texts(str(wrong))


def test_simulation_and_server_side_by_side(path, tmp_path, capsys):
    _, scheduler = make(path, SchedulerConfig())
    file = tmp_path / "profile.json"
    scheduler.costs.profile.save(file)
    texts = tmp_path / "texts.txt"
    texts.write_text(TEXTS[0])
    options = ["--profile", str(file), "--rate", "30", "--duration", "1", "--max_length", "16", "--texts", str(texts)]
    with serving(path) as (client, _):
        folder = tmp_path / "found"
        assert (
            main(["simulate", *options, "--server", client.url, "--output_dir", str(folder), "--latency_objective", "9999"]) == 0
        )
        runs = {run["policy"]: run for run in json.loads((folder / "simulation.json").read_text())["runs"]}
        assert runs["the server, slo"]["requests"] == runs["slo"]["requests"] > 10
        assert runs["the server, slo"]["attainment"] == 1 and not runs["the server, slo"]["best_static"]
        assert "the server, slo" in capsys.readouterr().out
        values = json.loads(file.read_text())
        values["sizes"].pop()
        file.write_text(json.dumps(values))
        assert main(["simulate", *options, "--server", client.url]) == 2
        assert "server: it has the sizes full, small, tiny, and the profile full, small" in capsys.readouterr().err


def test_options():
    with pytest.raises(UserError, match="server: it gets requests whether or not others are answered, and trace is closed"):
        SimulateConfig(trace="closed", server="http://127.0.0.1:1")
    with pytest.raises(UserError, match="texts is for a server"):
        SimulateConfig(texts="texts.txt")


def test_without_the_extra(monkeypatch):
    """A simulation needs no server's packages; a replay names the extra that has them."""
    monkeypatch.delitem(sys.modules, "hf_elastic.serving.replay")
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(MissingPackageError, match=r"server: this needs aiohttp: run pip install 'hf-elastic\[serve\]'"):
        compare(profile(), SimulateConfig(server="http://127.0.0.1:1"))

"""`hf-elastic serve` as a process: its beginning, its profile and its end."""

import json
import os
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from served import Client, save, serve_command, serving_process, until

pytest.importorskip("sentence_transformers", minversion="6")
from sentences import texts

import hf_elastic_cli
from hf_elastic.core.errors import UserError
from hf_elastic.retrieval.loading import load_denser
from hf_elastic.serving.costs import ServingProfile
from hf_elastic.serving.loading import load_engine
from hf_elastic.serving.profiling import grid_of, load_profile, measure_profile
from hf_elastic.serving.server_config import ServerConfig

pytestmark = pytest.mark.one_lane

TEXTS = texts(24)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save("symmetric", tmp_path_factory.mktemp("command"))


def refused(*arguments):
    """What a server that does not start says in one line."""
    result = subprocess.run(serve_command(*arguments), capture_output=True, text=True, timeout=300)
    assert result.returncode == 2, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("hf-elastic: error: ")]
    assert "Traceback" not in result.stderr and "listening" not in result.stdout
    return line


def test_sigterm_answers_everything_that_was_accepted(path):
    offline = load_denser(path, "cpu")
    vectors = {name: offline.encode(TEXTS, subnet=name) for name in ("full", "small", "tiny")}
    with serving_process(path) as (url, process), ThreadPoolExecutor(24) as pool, Client(url) as client:
        assert client.get("/health").status_code == 200

        def ask(place):
            with Client(url) as own:
                return own.post("/embed", json={"inputs": TEXTS[place % 24 :]})

        waiting = [pool.submit(ask, place) for place in range(120)]
        until(lambda: sum(one.done() for one in waiting) > 12)
        process.send_signal(signal.SIGTERM)
        statuses = []
        for place, one in enumerate(waiting):
            try:
                response = one.result()
            except OSError:  # it came when nothing listened any more
                statuses.append(None)
                continue
            statuses.append(response.status_code)
            if response.status_code == 200:
                expected = vectors[response.headers["x-elastic-subnet"]][place % 24 :]
                assert np.abs(np.array(response.json()) - expected).max() < 1e-5
        assert set(statuses) <= {200, 503, None} and statuses.count(200) > 12
        assert process.wait(60) == 0


@pytest.mark.slow
def test_a_request_that_is_never_all_there_does_not_hold_the_end_up(path):
    half = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{"
    with serving_process(path) as (url, process):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as client, Client(url) as other:
            client.sendall(half)
            assert other.post("/embed", json={"inputs": "word1"}).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert client.recv(100).startswith(b"HTTP/1.1 503 ")
        assert "Traceback" not in process.stdout.read()


def test_ctrl_c_ends_it_too(path):
    with serving_process(path) as (url, process):
        with Client(url) as client:
            assert client.post("/embed", json={"inputs": "word1"}).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert "Traceback" not in process.stdout.read()


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(path):
    limits = ("--max_queue", 100_000, "--max_client_batch_size", 100_000, "--payload_limit", 10**9)
    with serving_process(path, *limits) as (url, process), ThreadPoolExecutor(1) as pool, Client(url) as client:
        waiting = pool.submit(client.post, "/embed", json={"inputs": TEXTS * 2000})
        with Client(url) as other:
            until(lambda: "queue_texts 0.0" not in other.get("/metrics").text)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None and not waiting.done()
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        try:
            assert waiting.result().status_code != 200
        except OSError as error:
            assert "Connection" in str(error)


def test_a_port_in_use(path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert refused(path, "--port", port).endswith(
            f"port: {port} of 127.0.0.1 is in use; stop what listens there, or choose another --port"
        )
    assert "cannot listen on 192.0.2.1:0" in refused(path, "--host", "192.0.2.1", "--port", 0)


def test_an_objective_that_no_size_meets(path):
    line = refused(path, "--port", 0, "--profile_seconds", 0.01, "--latency_objective", "0.001")
    assert "latency_objective: 0.001 ms is out of reach: on an idle machine the fastest size takes " in line


def test_a_profile_is_written_and_read(path, tmp_path):
    file = tmp_path / "profile.json"
    with serving_process(path, "--profile", file, "--quality", "full=0.9", "small=0.7") as (url, _), Client(url) as client:
        qualities = [size["quality"] for size in client.get("/info").json()["subnets"]]
        assert qualities == [0.9, 0.7, None]
    written = file.read_bytes()
    with serving_process(path, "--profile", file, "--quality", "small=0.8") as (url, _), Client(url) as client:
        qualities = [size["quality"] for size in client.get("/info").json()["subnets"]]
        assert qualities == [0.9, 0.8, None]
        header = {"x-elastic-min-quality": "0.85"}
        assert client.post("/embed", json={"inputs": "word1"}, headers=header).headers["x-elastic-subnet"] == "full"
    assert file.read_bytes() == written


def test_a_profile_of_something_else(path, tmp_path):
    engine = load_engine(path)
    profile = measure_profile(engine, {}, max_batch_size=4, max_batch_tokens=64, budget_seconds=1e-9)
    file = tmp_path / "profile.json"
    profile.save(file)
    assert load_profile(file, engine, {}) == profile
    for options, words in (
        ({"subnets": ["full", "small"]}, "model"),
        ({"dtype": "bfloat16"}, "model"),
    ):
        with pytest.raises(UserError, match=f"measured with {words} '{engine.digest}'"):
            load_profile(file, load_engine(path, **options), {})
    values = json.loads(file.read_text())
    for name, value in (("backend", "onnx"), ("device", "cuda"), ("threads", 64)):
        file.write_text(json.dumps({**values, name: value}))
        with pytest.raises(UserError, match=f"measured with {name} {value!r}"):
            load_profile(file, engine, {})
    file.write_text("{")
    with pytest.raises(UserError, match="is not a serving profile"):
        load_profile(file, engine, {})


def test_what_is_measured(path):
    engine, reports = load_engine(path), []
    ran = []
    run = engine.run
    engine.run = lambda name, rows: (ran.append((name, len(rows), len(rows[0].tokens))), run(name, rows))[1]
    profile = measure_profile(
        engine, {"tiny": 0.5}, max_batch_size=6, max_batch_tokens=100, budget_seconds=1e-9, report=reports.append
    )
    assert profile.batch_sizes == [1, 2, 4, 6] and profile.lengths == [16, 32] and profile.names == ["full", "small", "tiny"]
    assert [size.quality for size in profile.sizes] == [None, None, 0.5]
    assert reports[0] == "profile: 18 batches, each once in any case, and again until 1e-09 s are over"
    assert reports[1].startswith("profile: each once took ") and len(reports) == 2
    cells = {(1, 16), (2, 16), (4, 16), (6, 16), (1, 32), (2, 32)}
    assert {one[1:] for one in ran} == cells and len(ran) == 3 * (len(cells) + 2)
    for size in profile.sizes:
        assert size.seconds[2][1] == 2 * size.seconds[1][1] and size.seconds[3][1] == 3 * size.seconds[1][1]
    assert profile == ServingProfile(**vars(profile)) and profile.model == engine.digest
    assert grid_of(8, 1) == ([1], [8]) and grid_of(1000, 32) == ([1, 2, 4, 8, 16, 32], [16, 32, 64, 128, 256, 512])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "jax"}, "backend: 'jax' is unknown; known: torch, onnx, onnx-int8, openvino, openvino-int8"),
        ({"port": 70000}, "port must be at most 65535"),
        ({"port": -1}, "port must be an integer of at least 0"),
        ({"max_queue": 0}, "max_queue must be an integer of at least 1"),
        ({"max_queue": 8}, "max_client_batch_size: 32 texts do not fit into max_queue 8"),
        ({"profile_seconds": 0.0}, "profile_seconds must be above 0"),
        ({"api_key": ""}, "api_key is empty"),
        ({"dtype": "int4"}, "dtype: 'int4' is unknown"),
        ({"backend": "onnx", "compile": True}, "compile: True is for the backend torch, not for onnx"),
        ({"threads": 0}, "threads must be an integer of at least 1"),
    ],
)
def test_options(options, words):
    with pytest.raises(UserError, match=words):
        ServerConfig(**options)


def test_the_model_comes_first_or_in_a_recipe(path, tmp_path, capsys):
    recipe = tmp_path / "serve.yaml"
    recipe.write_text(f"model: {path}\nport: 0\npolicy: fastest\n")
    for arguments in ([str(recipe)], [path, "--policy", "fastest"], ["--model", path, "--policy", "fastest"]):
        assert hf_elastic_cli.main(["serve", *arguments]) == 2
        assert "policy: 'fastest' is unknown; known: slo, table, static:NAME" in capsys.readouterr().err
    assert hf_elastic_cli.main(["serve", str(tmp_path / "nothing.yaml")]) == 2
    assert "no recipe" in capsys.readouterr().err
    assert hf_elastic_cli.main(["serve", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"--{name} " in shown for name in ("model", "port", "max_queue", "latency_objective", "policy", "device"))


def test_threads_are_those_of_the_option(path):
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    code = (
        "from hf_elastic.serving.run import make; from hf_elastic.serving.server_config import ServerConfig;"
        "from hf_elastic.serving.config import SchedulerConfig; import sys;"
        "config = ServerConfig(threads=1, profile_seconds=0.01);"
        "_, scheduler = make(sys.argv[1], config, SchedulerConfig(latency_objective=60000), 'cpu');"
        "print('threads', scheduler.costs.profile.threads)"
    )
    result = subprocess.run(
        [*serve_command()[:1], "-c", code, path], capture_output=True, text=True, env=environment, timeout=300
    )
    assert "threads 1" in result.stdout, result.stderr

"""Replicas on a local Ray, one of which dies under load."""

import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from served import Client, save, until

pytest.importorskip("ray.serve")
import ray
from ray import serve
from sentences import texts

from hf_elastic.core.errors import UserError
from hf_elastic.retrieval.loading import load_denser
from hf_elastic.serving.ray_app import build, merge_metrics, with_less_time

pytestmark = pytest.mark.one_lane

TEXTS = texts(24)
SIZES = ["full", "small", "tiny"]
KEY = {"Authorization": "Bearer open"}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "model: Field required"),
        ({"model": "m", "port": 80}, "port: not with Ray"),
        ({"model": "m", "latency": 5}, "latency: unknown option; known: api_key, .*latency_objective"),
        ({"model": "m", "max_queue": "many"}, "max_queue: Input should be a valid integer"),
        ({"model": "m", "policy": "fastest"}, "policy: 'fastest' is unknown"),
        ({"model": "m", "min_replicas": "0"}, "min_replicas must be an integer of at least 1"),
        ({"model": "m", "min_replicas": 3, "max_replicas": 2}, "max_replicas must be an integer of at least 3"),
    ],
)
def test_options(args, words):
    with pytest.raises(UserError, match=words):
        build(args)


def test_a_deadline_comes_nearer():
    headers = [(b"a", b"1"), (b"x-elastic-deadline-ms", b"1500")]
    assert with_less_time(headers, 1.0) == ([(b"a", b"1"), (b"x-elastic-deadline-ms", b"500.0")], False)
    assert with_less_time(headers, 2.0)[1]
    assert with_less_time([(b"x-elastic-deadline-ms", b"soon")], 2.0) == ([(b"x-elastic-deadline-ms", b"soon")], False)


def test_metrics_of_replicas_stand_side_by_side():
    one = '# HELP texts_total Texts.\n# TYPE texts_total counter\ntexts_total{{subnet="full"}} {}\n# TYPE queue gauge\nqueue {}\n'
    found = merge_metrics({"a": one.format(3.0, 1.0), "b": one.format(4.0, 0.0)}).decode()
    assert [line for line in found.splitlines() if not line.startswith("#")] == [
        'texts_total{replica="a",subnet="full"} 3.0',
        'texts_total{replica="b",subnet="full"} 4.0',
        'queue{replica="a"} 1.0',
        'queue{replica="b"} 0.0',
    ]
    assert found.count("# TYPE texts_total counter") == 1


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save("symmetric", tmp_path_factory.mktemp("ray"))


@pytest.fixture(scope="module")
def client(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else it writes a token into the home folder
        # Ray waits a quarter of a minute for its agent: what that imports is compiled before.
        subprocess.run([sys.executable, "-c", "import ray.dashboard.agent"], check=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            limits = {"payload_limit": 100_000, "max_queue": 512, "api_key": "open", "latency_objective": 60_000}
            replicas = {"min_replicas": 2, "max_replicas": 3, "target_ongoing_requests": 1000}
            serve.run(build({"model": path, "profile_seconds": 0.01, **limits, **replicas}))
            with Client(f"http://127.0.0.1:{port}") as client:
                client.headers.update(KEY)
                yield client
        finally:
            serve.shutdown()
            ray.shutdown()


def replicas():
    """Names of the actors that run the model."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return sorted(actor["name"] for actor in actors if "#Replica#" in actor["name"])


@pytest.mark.slow
@pytest.mark.alone
def test_replicas_answer_as_one_server_does(client, path):
    model = load_denser(path, "cpu")
    for name in SIZES:
        response = client.post("/embed", json={"inputs": TEXTS}, headers={"x-elastic-subnet": name})
        assert response.status_code == 200 and response.headers["x-elastic-subnet"] == name
        assert response.headers["content-type"] == "application/json"
        assert np.abs(np.array(response.json()) - model.encode(TEXTS, subnet=name)).max() < 1e-5
    assert client.get("/health").status_code == 200 and client.get("/info").json()["subnets"][0]["name"] == "full"
    for status, method, route, given in (
        (401, "post", "/embed", {"json": {"inputs": "word1"}, "headers": {"Authorization": "Bearer other"}}),
        (401, "get", "/metrics", {"headers": {"Authorization": ""}}),
        (404, "get", "/nowhere", {}),
        (405, "put", "/embed", {}),
        (413, "post", "/embed", {"data": b" " * 100_001}),
        (413, "post", "/embed", {"data": iter([b" " * 60_000] * 2)}),
        (422, "post", "/embed", {"json": {"inputs": "word1"}, "headers": {"x-elastic-subnet": "huge"}}),
    ):
        refused = client.request(method, route, **given)
        assert refused.status_code == status and set(refused.json()) == {"error", "error_type"}, refused.text
    lines = client.get("/metrics").text.splitlines()
    counts = [float(line.split()[-1]) for line in lines if line.startswith("hf_elastic_texts_total{") and 'subnet="tiny"' in line]
    assert len(counts) == len(replicas()) == 2 and sum(counts) >= len(TEXTS)


@pytest.mark.slow
@pytest.mark.alone
def test_a_replica_that_dies_loses_no_request(client, path):
    model = load_denser(path, "cpu")
    offline = {name: model.encode(TEXTS, subnet=name) for name in SIZES}
    answered, is_over = [], threading.Event()

    def ask(seed):
        generator = np.random.default_rng(seed)
        with Client(client.url) as own:
            own.headers.update(KEY)
            while not is_over.is_set():
                places = generator.choice(len(TEXTS), generator.integers(1, 24), replace=False)
                response = own.post("/embed", json={"inputs": [TEXTS[place] for place in places]})
                assert response.status_code == 200, response.text
                expected = offline[response.headers["x-elastic-subnet"]][places]
                assert np.abs(np.array(response.json()) - expected).max() < 1e-5
                answered.append(seed)

    before = replicas()
    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, seed) for seed in range(8)]
        try:
            until(lambda: len(answered) > 40)
            ray.kill(ray.get_actor(before[0], namespace="serve"))
            count = len(answered)
            until(lambda: len(answered) > count + 80 and set(range(8)) <= set(answered[count:]))
        finally:
            is_over.set()
        for one in asking:
            one.result()
    until(lambda: len(replicas()) == 2 and before[0] not in replicas())

"""What serving costs beside the model: one request through the server against the bare call, a change of size, and memory.

    python recipes/benchmarks/serving_overhead.py [--model FOLDER] [--words 16] [--rounds 8]

The model is MiniLM of the quickstart, made elastic in depth, unless another folder is given. The bare call tokenizes a text, runs
a size and writes the vector as JSON, in the main thread of this process; the server is another process. Both are timed in turns,
in rounds of 40 calls each, so that what else the machine does hits both. Each number is there twice: the tenth percentile and the
median.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as hf-elastic serve sets it
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pydantic_core import to_json

from hf_elastic.data.minilm import minilm_path
from hf_elastic.retrieval import elastic_sentence_transformer
from hf_elastic.serving.engine import Row
from hf_elastic.serving.loading import load_engine, weight_bytes

CALLS = 40  # of a round
SIZES = {"half": {"num_hidden_layers": 3}, "third": {"num_hidden_layers": 2}}
TEXT = "the size of a model changes with what waits while its weights stay where they are and nothing is copied"


def make_model(folder: str) -> str:
    space = {"num_hidden_layers": [2, 3, 6]}
    elastic_sentence_transformer(str(minilm_path()), space, SIZES, mode="symmetric", device="cpu").save(folder)
    return folder


def timed(call, count: int) -> list[float]:
    found = []
    for _ in range(count):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return found


def start(model: str) -> tuple[subprocess.Popen, int]:
    command = [
        sys.executable,
        "-m",
        "hf_elastic.cli.main",
        "serve",
        model,
        "--port",
        "0",
        "--profile_seconds",
        "2",
        "--latency_objective",
        "10000",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in process.stdout:
        if found := re.search(r"listening on .*:(\d+)", line):
            return process, int(found[1])
    raise SystemExit(f"the server has ended with status {process.wait()}")


def requests(port: int, text: str, subnet: str):
    """One request on a connection that stays open; it is opened anew where the server has closed it."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    given, headers = json.dumps({"inputs": text}), {"content-type": "application/json", "x-elastic-subnet": subnet}

    def call() -> None:
        connection.request("POST", "/embed", given, headers)
        response = connection.getresponse()
        body = response.read()
        assert response.status == 200 and response.headers["x-elastic-subnet"] == subnet, body

    return call


def latency(engine, model: str, text: str, rounds: int) -> dict:
    def bare(subnet: str):
        def call() -> None:
            (tokens,) = engine.encoder.encode([text])
            (output,) = engine.run(subnet, [Row(tokens)])
            to_json([engine.embedding(output.values).tolist()])

        return call

    process, port = start(model)
    try:
        calls = {name: (bare(name), requests(port, text, name)) for name in engine.sizes}
        times = {name: ([], []) for name in calls}
        for _, (name, pair) in itertools.product(range(rounds + 1), calls.items()):
            for found, call in zip(times[name], pair):
                found.append(timed(call, CALLS))
    finally:
        process.terminate()
        process.wait()
    return {name: compared(*([*itertools.chain(*found[1:])] for found in both)) for name, both in times.items()}


def compared(bare: list[float], served: list[float]) -> dict[str, list[float]]:
    """Milliseconds and their ratio: the tenth percentile, which other work on the machine hardly touches, and the median."""
    alone, through = ([statistics.quantiles(one, n=10)[place] * 1000 for place in (0, 4)] for one in (bare, served))
    return {"bare_ms": alone, "served_ms": through, "ratio": [b / a for a, b in zip(alone, through)]}


def switch_microseconds(engine, text: str, rounds: int) -> dict[str, float]:
    """How much longer a size takes right after another one than right after itself; the median of many pairs."""
    rows = [Row(engine.encoder.encode([text])[0])]
    first, second = engine.sizes[0], engine.sizes[-1]
    differences = {first: [], second: []}
    for _ in range(CALLS * rounds):
        for name, found in differences.items():
            changed, same = timed(lambda name=name: engine.run(name, rows), 2)
            found.append(changed - same)
    return {name: statistics.median(found) * 1e6 for name, found in differences.items()}


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder of a model that gives vectors; default: elastic MiniLM")
    parser.add_argument("--words", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args(argv)
    text = " ".join(itertools.islice(itertools.cycle(TEXT.split()), args.words))
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or make_model(f"{folder}/model")
        engine = load_engine(model)
        found = {
            "tokens": len(engine.encoder.encode([text])[0]),
            "switch_us": switch_microseconds(engine, text, args.rounds),
            "memory_ratio": weight_bytes(engine.towers.values()) / weight_bytes([engine.towers[engine.sizes[0]]]),
            "latency": latency(engine, model, text, args.rounds),
        }
    print(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    main()

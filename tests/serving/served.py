"""Tiny real models that are served, and real servers on real ports."""

import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("sentence_transformers", minversion="6")
sys.path.insert(0, str(Path(__file__).parents[1] / "retrieval"))

import requests
import uvicorn
from sentences import SIZES, SPACE, make_denser, make_ranker, save_cross_encoder, save_sentence_transformer
from tiny import config_of, decisive, randomize, save_tokenizer
from transformers import AutoModel, AutoModelForSequenceClassification

from hf_elastic import ElasticForSequenceClassification, ElasticModel
from hf_elastic.serving.config import SchedulerConfig
from hf_elastic.serving.costs import CostModel, ServingProfile, SizeProfile
from hf_elastic.serving.loading import load_engine
from hf_elastic.serving.metrics import ServingMetrics
from hf_elastic.serving.profiling import identity
from hf_elastic.serving.run import Server, bind
from hf_elastic.serving.scheduler import Scheduler
from hf_elastic.serving.server import make_app
from hf_elastic.serving.server_config import ServerConfig
from hf_elastic.serving.service import Service
from hf_elastic.serving.worker import Worker

LABELS = {0: "good", 1: "bad", 2: "neither"}


class Client(requests.Session):
    """Sends requests to one server.

    Args:
        url: of the server.
    """

    def __init__(self, url: str):
        super().__init__()
        self.url = url

    def request(self, method, path, *args, **kwargs):
        """Send a request to a path."""
        return super().request(method, f"{self.url}{path}", *args, **{"timeout": 60, **kwargs})


def save(kind: str, folder: Path) -> str:
    """Write a model of a kind that can be served; returns its folder."""
    if kind in ("symmetric", "asymmetric"):
        make_denser(save_sentence_transformer(folder), kind)[0].save(str(folder / kind))
    elif kind == "stock-embedder":
        return save_sentence_transformer(folder)
    elif kind == "ranker":
        make_ranker(save_cross_encoder(folder))[0].save(str(folder / kind))
    elif kind == "stock-ranker":
        return save_cross_encoder(folder)
    elif kind in ("classifier", "stock-classifier"):
        save_tokenizer(folder / kind)
        config = config_of("bert", num_labels=3, id2label=LABELS, label2id={name: place for place, name in LABELS.items()})
        model = decisive(randomize(AutoModelForSequenceClassification.from_config(config)))
        if kind == "classifier":
            model = ElasticForSequenceClassification.from_base(model, space=SPACE, subnets=SIZES)
        model.save_pretrained(folder / kind)
    else:  # an encoder without a pooling
        model_type = kind.removeprefix("encoder-")
        save_tokenizer(folder / kind)
        model = randomize(AutoModel.from_config(config_of(model_type)))
        ElasticModel.from_base(model, space=SPACE, subnets=SIZES).save_pretrained(folder / kind)
    return str(folder / kind)


def make(path: str, scheduling: SchedulerConfig, **options):
    """An engine and its scheduler, with a profile that is the same each time: batches pay, and smaller sizes are faster."""
    engine = load_engine(path, **options)
    sizes = [
        SizeProfile(name, quality, engine.flops[name], [[0.001 / place, 0.001 / place], [0.004 / place, 0.008 / place]])
        for place, (name, quality) in enumerate(zip(engine.sizes, (0.9, 0.8, 0.7)), 1)
    ]
    grid = {"batch_sizes": [1, 32], "lengths": [1, engine.encoder.max_length]}
    return engine, Scheduler(CostModel(ServingProfile(sizes=sizes, **grid, **identity(engine))), scheduling)


@contextmanager
def serving(path: str, *, scheduling: dict | None = None, **options):
    """A server in this process: gives a client of it, and its worker."""
    config = ServerConfig(port=0, **options)
    scheduling = SchedulerConfig(**{"latency_objective": 60_000, **(scheduling or {})})
    metrics = ServingMetrics()
    worker = Worker(lambda: make(path, scheduling), max_queue=config.max_queue, on_batch=metrics.on_batch).start()
    app = make_app(Service(worker, config, metrics))
    with bind(config.host, 0) as listener:
        listener.listen(128)
        server = Server(uvicorn.Config(app, log_level="warning", lifespan="off"), worker)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with Client(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
                yield client, worker
        finally:
            worker.close()
            thread.join()


def serve_command(*arguments) -> list[str]:
    """The command line of a server on a free port."""
    return [sys.executable, "-m", "hf_elastic.cli.main", "serve", *map(str, arguments)]


@contextmanager
def serving_process(*arguments):
    """A server in a process of its own: gives its URL and the process."""
    usual = ["--port", "0", "--profile_seconds", "0.01", "--latency_objective", "60000"]
    command = serve_command(arguments[0], *usual, *arguments[1:])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        printed = []
        for line in process.stdout:
            printed.append(line)
            if found := re.search(r"listening on (\S+)", line):
                break
        else:
            raise AssertionError("".join(printed))
        yield found[1], process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Stopped:
    """An engine's size that waits until it may go on."""

    def __init__(self, engine, name: str):
        self.may_run, self.runs, self._tower = threading.Event(), 0, engine.towers[name]
        engine.towers[name] = self

    def __call__(self, features: dict) -> dict:
        """Wait, then run."""
        self.runs += 1
        assert self.may_run.wait(60)
        return self._tower(features)


def until(condition) -> None:
    """Wait for something that happens in another thread."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.001)

import json

import pytest
from hub_server import HubServer, forget_connections
from huggingface_hub import constants
from tiny import config_of, randomize, save_tokenizer
from transformers import AutoModelForSequenceClassification

from hf_elastic import ElasticForSequenceClassification
from hf_elastic.hub.client import connect

SPACE = {"num_hidden_layers": [1, 2, 4], "num_attention_heads": [2, 4], "intermediate_size": [16, 48]}
SUBNETS = {"small": {"num_hidden_layers": 1, "intermediate_size": 16}, "odd": {"num_attention_heads": 2}}
METRICS = {"eval_accuracy": 0.875, "eval_small_accuracy": 0.8125, "eval_small_loss": 0.5, "eval_runtime": 3.5, "epoch": 1.0}


@pytest.fixture
def make_hub(tmp_path, monkeypatch):
    """Start a local Hub that this process, online for once, takes for the Hub."""
    servers = []

    def make(**options) -> HubServer:
        server = HubServer(tmp_path / "hub", **options).__enter__()
        servers.append(server)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        forget_connections()
        return server

    yield make
    for server in servers:
        server.__exit__()
    forget_connections()


@pytest.fixture
def hub(make_hub):
    return make_hub()


@pytest.fixture
def api(hub):
    return connect()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def model():
    base = AutoModelForSequenceClassification.from_config(config_of("bert", num_labels=2))
    return ElasticForSequenceClassification.from_base(randomize(base), space=SPACE, subnets=SUBNETS)


@pytest.fixture(scope="session")
def checkpoint(model, tokenizer, tmp_path_factory):
    """What `hf-elastic train` leaves: a checkpoint, metrics, and things that are nobody's business."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "optimizer.pt").write_bytes(b"state")
    return folder

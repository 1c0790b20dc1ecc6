"""Sizes as graphs for onnxruntime and OpenVINO: the same answers, and each graph exported once."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
from served import Client, save, serving_process

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("sentence_transformers", minversion="6")
from sentences import texts

from hf_elastic.core.errors import UserError
from hf_elastic.serving.config import SchedulerConfig
from hf_elastic.serving.engine import Row
from hf_elastic.serving.graphs import digest_of
from hf_elastic.serving.loading import load_engine
from hf_elastic.serving.run import make
from hf_elastic.serving.server_config import ServerConfig

pytestmark = pytest.mark.one_lane

TEXTS = texts(13)
OPENVINO = ["openvino", "openvino-int8"] if find_spec("openvino") else []
PAIRS = list(zip(TEXTS, texts(13, seed=1)))


def load(path, folder, backend="onnx", subnets=None):
    config = ServerConfig(backend=backend, cache_dir=str(folder), profile_seconds=1e-9, subnets=subnets)
    scheduling = SchedulerConfig(latency_objective=60_000, max_batch_size=2)
    return make(path, config, scheduling, "cpu", report=lambda text: None)[0]


def values(engine, name, inputs):
    return np.array([output.values for output in engine.run(name, [Row(one) for one in engine.encoder.encode(inputs)])])


KINDS = ("symmetric", "classifier", "asymmetric", "ranker", "stock-embedder", "encoder-qwen2")


# An export takes many seconds.
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "classifier")) for kind in KINDS])
def test_graphs_answer_as_torch_does(kind, tmp_path):
    path = save(kind, tmp_path)
    sizes = ["full"] if kind == "stock-embedder" else ["tiny"] if kind == "classifier" else ["full", "tiny"]
    plain = load_engine(path, sizes)
    for backend in ("onnx", *OPENVINO[:1]):
        engine = load(path, tmp_path / "cache", backend, sizes)
        assert engine.backend == backend and engine.sizes == sizes
        for name in sizes:
            inputs = PAIRS if kind == "ranker" else TEXTS
            assert np.abs(values(engine, name, inputs) - values(plain, name, inputs)).max() < 1e-4
        if kind == "symmetric":
            rows = [Row(engine.encoder.encode(TEXTS[:1])[0], wants_tokens=True)]
            found, expected = (one.run("tiny", rows)[0].tokens for one in (engine, plain))
            assert np.abs(found - expected).max() < 1e-4


def test_a_graph_is_exported_once(tmp_path):
    path, cache = save("symmetric", tmp_path), tmp_path / "cache"
    plain = load_engine(path, ["tiny"])
    for backend, suffixes in (
        ("onnx", [".onnx"]),
        ("onnx-int8", [".onnx", ".onnx"]),
        *zip(OPENVINO, ([".onnx", ".onnx"], [".bin", ".onnx", ".onnx", ".xml"])),
    ):
        engine = load(path, cache, backend, ["tiny"])
        files = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
        assert engine.backend == backend and sorted(file.suffix for file in files) == suffixes
        again = load(path, cache, backend, ["tiny"])
        assert {file: file.stat().st_mtime_ns for file in cache.iterdir()} == files
        found, expected = values(again, "tiny", TEXTS), values(plain, "tiny", TEXTS)
        cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
        assert cosines.min() > 0.98 and (np.abs(found - expected).max() < 1e-4) == (not backend.endswith("int8"))


def test_the_key_of_a_graph_is_all_that_it_depends_on(tmp_path):
    towers = load_engine(save("symmetric", tmp_path)).towers
    models = {name: tower.modules[0].model for name, tower in towers.items()}
    keys = {digest_of(model, backend) for model in models.values() for backend in ("onnx", "onnx-int8")}
    assert len(keys) == 6 and digest_of(models["tiny"], "onnx") in keys
    next(models["tiny"].parameters()).data[5] += 1  # of a table that all sizes share
    assert not keys & {digest_of(model, "onnx") for model in models.values()}


def test_the_command_serves_graphs(tmp_path):
    path = save("symmetric", tmp_path)
    plain = load_engine(path, ["tiny"])
    options = ("--backend", "onnx", "--subnets", "tiny", "--cache_dir", tmp_path / "cache")
    with serving_process(path, *options) as (url, _), Client(url) as client:
        assert client.get("/info").json()["backend"] == "onnx"
        response = client.post("/embed", json={"inputs": TEXTS, "normalize": False})
        assert np.abs(np.array(response.json()) - values(plain, "tiny", TEXTS)).max() < 1e-4


def test_another_device(tmp_path):
    with pytest.raises(UserError, match="device: 'meta' is for the backend torch; onnx runs on the CPU"):
        make(str(tmp_path), ServerConfig(backend="onnx"), SchedulerConfig(), "meta")


def test_what_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"needs openvino, which is not installed: run pip install 'hf-elastic\[openvino"):
        load(save("classifier", tmp_path), tmp_path, "openvino")

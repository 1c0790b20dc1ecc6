"""Sizes are aligned to the vectors of an index that exists, from unlabelled texts."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentences import SIZES, SPACE, make_denser, save_sentence_transformer, texts, two_processes

from hf_elastic.core.errors import UserError
from hf_elastic.retrieval.align import LengthBatches, align, fit_heads, full_vectors, rows_of
from hf_elastic.retrieval.align_config import AlignConfig
from hf_elastic.retrieval.build import build_index
from hf_elastic.retrieval.data import Document
from hf_elastic.retrieval.denser import ElasticDenser
from hf_elastic.retrieval.index import Index
from hf_elastic_cli import main

pytestmark = pytest.mark.one_lane

QUICK = {"max_steps": 12, "per_device_train_batch_size": 8, "learning_rate": 3e-3}
COMMAND = ["retrieve", "align", "--space", json.dumps(SPACE), "--subnets", json.dumps(SIZES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_sentence_transformer(tmp_path_factory.mktemp("stock"))


def test_sizes_come_nearer_and_the_full_one_stays(folder, tmp_path):
    denser, stock = make_denser(folder)
    embeddings = denser.elastic.get_input_embeddings().weight.clone()
    found = align(denser, texts(200), tmp_path / "out", AlignConfig(**QUICK))
    assert all(size["cosine"] > size["before"] + 0.02 for size in found.values()) and set(found) == set(SIZES)
    assert json.loads((tmp_path / "out" / "alignment.json").read_text()) == found
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    again = ElasticDenser(str(tmp_path / "out"), device="cpu")
    assert np.array_equal(again.encode_query(texts(5)), stock.encode_query(texts(5)))
    assert np.array_equal(again.elastic.get_input_embeddings().weight.detach(), embeddings.detach())
    held_out = list(dict.fromkeys(texts(200)))[:19]  # of 200, some are there twice
    full, small = (again.encode_query(held_out, subnet=size) for size in (None, "small"))
    assert found["small"]["cosine"] == pytest.approx(float((full * small).sum(1).mean()), abs=0.05)


def test_heads_are_corrected_where_that_helps_texts_they_have_not_seen(folder, tmp_path):
    denser, stock = make_denser(folder)
    lines = list(dict.fromkeys(texts(400)))
    fitted, unseen = lines[50:], lines[:50]
    full, before = stock.encode_query(lines), denser.encode_query(unseen, subnet="small")
    fit_heads(denser, fitted, 3 * full[50:])  # their length does not matter
    after = denser.encode_query(unseen, subnet="small")
    assert (after * full[:50]).sum(1).mean() > (before * full[:50]).sum(1).mean() + 0.02
    assert np.array_equal(denser.encode_query(unseen), stock.encode_query(unseen))
    fit_heads(denser, fitted, full[50:])  # nothing is left to correct
    assert np.allclose(denser.encode_query(unseen, subnet="small"), after, atol=0.02)


def test_batches_have_texts_of_one_length_and_all_of_them():
    lines = ["x" * (1 + number * 37 % 400) for number in range(403)]
    sampler = LengthBatches(rows_of(lines, np.zeros((403, 2))), batch_size=8, drop_last=False)
    batches = list(sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(403))
    assert [len(batch) for batch in batches] == [8] * 50 + [3] and len(sampler) == 51
    spread = [max(len(lines[row]) for row in batch) - min(len(lines[row]) for row in batch) for batch in batches]
    assert np.mean(spread) < 12 and list(sampler) == batches
    sampler.set_epoch(1)
    assert list(sampler) != batches


def test_the_command_for_an_index(folder, tmp_path, capsys):
    stock = SentenceTransformer(folder, device="cpu")
    documents = [Document(f"d{number}", text) for number, text in enumerate(texts(30, 3))]
    build_index(stock, documents, tmp_path / "index")
    (tmp_path / "texts.txt").write_text("\n".join(texts(100)))
    options = [f"--{name}={value}" for name, value in {**QUICK, "texts": tmp_path / "texts.txt"}.items()]
    command = [*COMMAND, *options, "--model", folder, "--index", str(tmp_path / "index"), "--output_dir", str(tmp_path / "out")]
    assert main(command) == 0
    assert "small" in capsys.readouterr().out
    denser = ElasticDenser(str(tmp_path / "out"), device="cpu")
    index = Index.load(tmp_path / "index", denser)
    ids, _ = index.search(denser.encode_query([documents[4].text], prompt=""), 1)
    assert ids == [["d4"]]
    other = save_sentence_transformer(tmp_path / "other", hidden_act="relu")
    assert main([*command[:-1], str(tmp_path / "never"), "--model", other]) == 2
    assert "another one" in capsys.readouterr().err and not (tmp_path / "never").exists()


@pytest.mark.slow
def test_killed_and_resumed(folder, tmp_path):
    """A run that was killed while it trained gives the weights of one that was not."""
    (tmp_path / "texts.txt").write_text("\n".join(texts(400)))
    options = {**QUICK, "max_steps": 60, "save_steps": 10, "texts": tmp_path / "texts.txt", "model": folder, "device": "cpu"}
    options = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "hf_elastic.cli.main", *COMMAND, *options, "--output_dir"]
    killed = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    training = tmp_path / "killed.training"
    while not list(training.glob("checkpoint-*/trainer_state.json")):
        assert killed.poll() is None
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    vectors = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed.vectors").glob("*.safetensors")}
    assert not (tmp_path / "killed").exists() and vectors
    for name in ("killed", "whole"):
        done = subprocess.run([*command, str(tmp_path / name)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, other = (ElasticDenser(str(tmp_path / name), device="cpu") for name in ("killed", "whole"))
    for size in SIZES:
        assert np.allclose(one.encode_query(texts(5), subnet=size), other.encode_query(texts(5), subnet=size), atol=1e-6)


@pytest.mark.slow
def test_two_processes(folder, tmp_path):
    """They train one model: nothing waits for a gradient that no size has, and all is written once."""
    (tmp_path / "texts.txt").write_text("\n".join(texts(200)))
    options = {**QUICK, "texts": tmp_path / "texts.txt", "model": folder, "output_dir": tmp_path / "out", "device": "cpu"}
    options = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, *two_processes(), "-m", "hf_elastic.cli.main", *COMMAND, *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads((tmp_path / "out" / "alignment.json").read_text())
    assert all(size["cosine"] > size["before"] + 0.02 for size in found.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "texts.txt"]


def test_what_cannot_be_aligned(folder, tmp_path):
    with pytest.raises(UserError, match="symmetric, with 2 named sizes; needed is an asymmetric one"):
        align(make_denser(folder, "symmetric")[0], texts(50), tmp_path / "out")
    with pytest.raises(UserError, match="asymmetric, with 0 named sizes"):
        align(make_denser(folder, subnets=None)[0], texts(50), tmp_path / "out")
    with pytest.raises(UserError, match="texts: 1 that differ"):
        align(make_denser(folder)[0], ["word1 word2"] * 50, tmp_path / "out")
    for options in ({"max_steps": 0}, {"learning_rate": 0.0}, {"warmup_steps": -1.0}, {"save_steps": 0}):
        with pytest.raises(UserError, match=next(iter(options))):
            AlignConfig(**options)
    assert list(tmp_path.iterdir()) == []


def test_what_is_aligned_to_has_the_prompt_of_queries(folder, tmp_path):
    denser, _ = make_denser(folder)
    (shard,) = full_vectors(denser, texts(9), tmp_path / "vectors", AlignConfig(), False).shards
    assert np.allclose(shard.vectors(), denser.encode_query(texts(9)), atol=1e-6)
    assert not np.allclose(shard.vectors(), denser.encode_document(texts(9)), atol=1e-2)

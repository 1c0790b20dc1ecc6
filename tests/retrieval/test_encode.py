"""Vectors of a collection: right, counted, streamed, and not made twice."""

import re

import numpy as np
import pytest

pytest.importorskip("sentence_transformers", minversion="6")
from index_models import kill_when, load, save_model, start, texts, write_corpus
from sentences import two_processes

from hf_elastic.core.errors import UserError
from hf_elastic.retrieval.build import build_index
from hf_elastic.retrieval.data import Document
from hf_elastic.retrieval.encode import encode_corpus
from hf_elastic.retrieval.encode_config import EncodingConfig
from hf_elastic.retrieval.index import Index, IndexConfig

pytestmark = pytest.mark.one_lane
CONFIG = EncodingConfig(shard_size=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encode")
    save_model(folder)
    return folder / "model"


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


def documents(count):
    return [Document(f"doc{i}", text) for i, text in enumerate(texts(count))]


def all_vectors(encoded):
    return np.concatenate([shard.vectors() for shard in encoded.shards])


def state(folder):
    """Which files there are, and that they are still the same ones."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("shard-*")}


def test_vectors_and_counts(model, tmp_path):
    found = encode_corpus(model, documents(50), tmp_path / "work", CONFIG)
    assert len(found) == found.encoded == 50 and [len(shard.ids) for shard in found.shards] == [16, 16, 16, 2]
    assert [one for shard in found.shards for one in shard.ids] == [f"doc{i}" for i in range(50)]
    expected = model.encode_document(texts(50))
    assert np.abs(all_vectors(found) - expected).max() < 1e-6
    longer = sum(len(text.split()) + 2 > 16 for text in texts(50))
    assert sum(shard.cut for shard in found.shards) == longer > 5
    assert sum(shard.empty for shard in found.shards) == 1
    assert "50 documents, 50 encoded now" in found.summary() and f"{longer} cut" in found.summary()
    assert "1 empty" in found.summary()


def test_a_text_of_blanks_is_the_empty_text(model, tmp_path):
    found = encode_corpus(model, [Document("a", ""), Document("b", " \n\t "), Document("c", "word1")], tmp_path / "work")
    vectors = all_vectors(found)
    assert np.array_equal(vectors[0], vectors[1]) and np.allclose(vectors[0], model.encode_document(""), atol=1e-6)
    assert found.shards[0].empty == 2


def test_what_is_there_is_not_encoded_again(model, tmp_path):
    work = tmp_path / "work"
    first = encode_corpus(model, documents(50), work, CONFIG)
    before = state(work)
    again = encode_corpus(model, documents(50), work, CONFIG)
    assert again.encoded == 0 and state(work) == before and np.array_equal(all_vectors(again), all_vectors(first))
    (work / "shard-000001.safetensors").unlink()
    third = encode_corpus(model, documents(50), work, CONFIG)
    assert third.encoded == 16 and np.array_equal(all_vectors(third), all_vectors(first))
    assert {name for name, one in state(work).items() if before[name] != one} == {"shard-000001.safetensors"}


def test_prompts_count(folder, tmp_path):
    """Vectors have the prompt of documents, and a text with it may be too long."""
    model = load(folder)
    text = " ".join(["word1"] * 12)  # 14 tokens of 16
    assert encode_corpus(model, [Document("a", text)], tmp_path / "plain").shards[0].cut == 0
    model.prompts["document"] = "word2 word3 word4 "
    found = encode_corpus(model, [Document("a", text)], tmp_path / "prompt")
    assert found.shards[0].cut == 1
    assert np.allclose(all_vectors(found)[0], model.encode(text, prompt="word2 word3 word4 "), atol=1e-6)


def test_half_as_large(model, tmp_path):
    found = encode_corpus(model, documents(20), tmp_path / "work", EncodingConfig(dtype="float16"))
    vectors = all_vectors(found)
    assert vectors.dtype == np.float16 and np.abs(vectors - model.encode_document(texts(20))).max() < 1e-3


WRONG = {
    "another tower": (lambda model, other: (other, documents(50), CONFIG), "belongs to the document tower of"),
    "more documents": (lambda model, other: (model, documents(51), CONFIG), "has vectors with documents 50, not 51"),
    "another text": (lambda model, other: (model, [*documents(49), Document("doc49", "x")], CONFIG), "has vectors with corpus "),
    "another order": (lambda model, other: (model, documents(50)[::-1], CONFIG), "has vectors with corpus "),
    "another shard size": (
        lambda model, other: (model, documents(50), EncodingConfig()),
        "has vectors with shard_size 16, not 1024",
    ),
    "another type": (
        lambda model, other: (model, documents(50), EncodingConfig(shard_size=16, dtype="float16")),
        "has vectors with dtype 'float32', not 'float16'",
    ),
}


def test_a_folder_of_something_else(model, tmp_path):
    other, work = save_model(tmp_path / "other", seed=1), tmp_path / "work"
    encode_corpus(model, documents(50), work, CONFIG)
    before = state(work)
    for make, message in WRONG.values():
        with pytest.raises(UserError, match=message):
            wrong, corpus, config = make(model, other)
            encode_corpus(wrong, corpus, work, config)
    assert state(work) == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds something else \(notes.txt\)"):
        encode_corpus(model, documents(50), tmp_path / "notes")


def test_damaged_vectors(model, tmp_path):
    work = tmp_path / "work"
    encode_corpus(model, documents(50), work, CONFIG)
    path = work / "shard-000002.safetensors"
    content = path.read_bytes()
    for damaged in (content[:-100], b"", content[:-3] + b"abc"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"shard-000002.safetensors (is damaged|is no file)"):
            encode_corpus(model, documents(50), work, CONFIG)
    path.unlink()
    assert encode_corpus(model, documents(50), work, CONFIG).encoded == 16
    (work / "encoding.json").write_text("{")
    with pytest.raises(UserError, match="is no record of vectors"):
        encode_corpus(model, documents(50), work, CONFIG)


def test_collections_that_are_refused(model, tmp_path):
    with pytest.raises(UserError, match="document 3 has the id 'doc0' of one before it"):
        encode_corpus(model, [*documents(2), Document("doc0", "word1")], tmp_path / "work")
    with pytest.raises(UserError, match="there is no document"):
        encode_corpus(model, [], tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_collection_is_streamed(model, tmp_path):
    """Only one shard of it is held at a time."""
    import gc
    import weakref

    class Text(str):
        pass

    class Corpus(list):
        def __iter__(self):
            for number in range(200):
                text = Text(f"word{number % 60}")
                alive.add(text)
                most.append(len(alive))
                yield Document(f"doc{number}", text)

    alive, most = weakref.WeakSet(), []
    encode_corpus(model, Corpus(), tmp_path / "work", EncodingConfig(shard_size=8))
    gc.collect()
    assert len(most) == 400 and max(most) <= 24


def test_an_index_of_a_file(model, tmp_path):
    corpus = write_corpus(tmp_path / "corpus.jsonl", 60)
    build_index(model, corpus, tmp_path / "index", encoding=CONFIG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "index"]
    index = Index.load(tmp_path / "index", model)
    found, _ = index.search(model.encode_query(texts(60)[10:12]), 1)
    assert len(index) == 60 and found == [["doc10"], ["doc11"]]
    with pytest.raises(UserError, match="is not empty; add --overwrite"):
        build_index(model, corpus, tmp_path / "index")
    encoded = build_index(model, corpus, tmp_path / "index", work_dir=tmp_path / "kept", overwrite=True)
    assert len(all_vectors(encoded)) == 60


def test_too_few_for_an_index_is_said_before_they_are_encoded(model, tmp_path):
    with pytest.raises(UserError, match="30 documents are too few to train on"):
        build_index(model, documents(30), tmp_path / "index", IndexConfig(kind="ivfpq"), work_dir=tmp_path / "work")
    assert not list(tmp_path.iterdir())


COMMAND = ("retrieve", "index", "--shard_size", "8", "--batch_size", "4")


def places(folder, corpus, out):
    return ("--model", folder, "--corpus", corpus, "--output_dir", out)


def is_empty(folder):
    return not folder.exists() or not any(folder.iterdir())


def contents(index):
    return {path.name: path.read_bytes() for path in index.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hnsw", "milvus"])
def test_a_process_that_is_killed(kind, folder, tmp_path):
    """In the middle of encoding, then of making the index: what was finished stays, and the end is as without a kill."""
    corpus = write_corpus(tmp_path / "corpus.jsonl", 6000)
    work, out = tmp_path / "out.vectors", tmp_path / "out"
    uri = tmp_path / "milvus.db"
    command = (*COMMAND, *places(folder, corpus, out), "--kind", kind, *(("--uri", uri) if kind == "milvus" else ()))
    assert kill_when(start(*command), lambda: len(state(work)) >= 100)
    finished = state(work)
    assert 100 <= len(finished) < 750 and is_empty(out)
    # Once all is encoded: FAISS writes its files beside the folder, Milvus has its collection.
    started = start(*command)
    begun = (lambda: list(tmp_path.glob(".hf-elastic-*/new/*"))) if kind == "hnsw" else (lambda: len(state(work)) == 750)
    assert kill_when(started, begun)
    assert len(state(work)) == 750 and is_empty(out)
    assert {name: one for name, one in state(work).items() if name in finished} == finished
    complete = state(work)
    last = start(*command, "--work_dir", work)  # named, so it is kept
    printed, _ = last.communicate()
    assert last.returncode == 0 and "6,000 documents, 0 encoded now" in printed, printed
    assert state(work) == complete
    model = load(folder)
    index = Index.load(out, model)
    assert not list(tmp_path.glob(".hf-elastic-*"))
    ids = [f"doc{i}" for i in range(6000)]
    assert len(index) == len(index.existing(ids)) == 6000
    if kind == "hnsw":
        build_index(model, corpus, tmp_path / "straight", index.config, EncodingConfig(shard_size=8, batch_size=4))
        assert contents(out) == contents(tmp_path / "straight")
    # Both are approximate.
    rows = np.argsort(-model.encode_query(texts(40)) @ model.encode_document(texts(6000)).T, axis=1)[:, :3]
    found, _ = index.search(model.encode_query(texts(40)), 3)
    assert np.mean([len(set(line) & {ids[row] for row in true}) for line, true in zip(found, rows)]) > 2.7


@pytest.mark.slow
def test_several_processes(folder, tmp_path):
    """Each encodes its own shards; all are killed, and two others go on; the index is that of one process."""
    corpus = write_corpus(tmp_path / "corpus.jsonl", 6000)
    work, out = tmp_path / "work", tmp_path / "two"
    command = (*COMMAND, *places(folder, corpus, out), "--work_dir", work)
    assert kill_when(start(*command, launcher=two_processes()), lambda: len(state(work)) >= 100)
    finished = state(work)
    assert 100 <= len(finished) < 750 and is_empty(out)
    process = start(*command, launcher=two_processes())
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    assert printed.count("written:") == 1
    encoded = int(re.search(r"6,000 documents, ([0-9,]+) encoded now", printed)[1].replace(",", ""))
    assert 0 < encoded < 8 * (750 - len(finished))  # the other process has encoded the rest
    assert {name: one for name, one in state(work).items() if name in finished} == finished and len(state(work)) == 750
    build_index(load(folder), corpus, tmp_path / "one", encoding=EncodingConfig(shard_size=8, batch_size=4))
    assert contents(tmp_path / "one") == contents(out)

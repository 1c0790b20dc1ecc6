"""Indexes of FAISS and of the embedded Milvus: what they find, keep, and refuse."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("sentence_transformers", minversion="6")
from index_models import ROOT, load, routed, save_model, texts

from hf_elastic.core.errors import UserError
from hf_elastic.retrieval.index import Index, IndexConfig

pytestmark = pytest.mark.one_lane
KINDS = ("flat", "hnsw", "milvus")
COUNT = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    save_model(folder)
    return folder / "model"


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).standard_normal((COUNT, 32)).astype(np.float32)


IDS = [f"doc {i}" for i in range(COUNT)]


def create(model, kind, tmp_path, **options):
    return Index.create(model, kind=kind, **({"uri": str(tmp_path / "milvus.db")} if kind == "milvus" else {}), **options)


def best(model, queries, vectors, k, metric=None):
    """What an exact search finds, by the model's own similarity."""
    from sentence_transformers import SimilarityFunction

    similarity = SimilarityFunction.to_similarity_fn(metric or model.similarity_fn_name)
    scores = similarity(queries, vectors).numpy()
    rows = np.argsort(-scores, axis=1)[:, :k]
    return rows, np.take_along_axis(scores, rows, 1)


@pytest.mark.parametrize("metric", [None, "dot", "euclidean"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_finds_what_the_model_finds_most_similar(kind, metric, model, vectors, tmp_path):
    index = create(model, kind, tmp_path, metric=metric)
    assert index.search(vectors[:2], 3)[0] == [[], []]
    for start in range(0, COUNT, 100):
        index.add(IDS[start : start + 100], vectors[start : start + 100])
    queries = vectors[:20] + 0.1
    ids, scores = index.search(queries, 5)
    rows, expected = best(model, queries, vectors, 5, metric)
    assert ids == [[IDS[row] for row in line] for line in rows]
    assert np.abs(np.array(scores) - expected).max() < 1e-4
    index.save(tmp_path / "saved")
    again, scores_again = Index.load(tmp_path / "saved", model).search(queries, 5)
    assert again == ids and np.allclose(scores_again, scores, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_adding_and_deleting(kind, model, vectors, tmp_path):
    index = create(model, kind, tmp_path)
    index.add(IDS[:50], vectors[:50])
    index.delete(IDS[:40])
    assert len(index) == 10 and index.existing(IDS[38:42]) == IDS[40:42]
    ids, scores = index.search(vectors[:3], 1000)
    assert [sorted(row) for row in ids] == [sorted(IDS[40:50])] * 3 and all(len(row) == 10 for row in scores)
    index.add(IDS[:1], vectors[7:8])  # an id that was deleted may come back, with another text
    assert index.search(vectors[7:8], 1)[0] == [[IDS[0]]]
    index.save(tmp_path / "saved")
    loaded = Index.load(tmp_path / "saved", model, mmap=False)
    assert len(loaded) == 11 and set(loaded.search(vectors[:1], 50)[0][0]) == {IDS[0], *IDS[40:50]}
    loaded.add(["another"], vectors[99:100])
    loaded.save(tmp_path / "saved", overwrite=True)
    assert Index.load(tmp_path / "saved", model).search(vectors[99:100], 1)[0] == [["another"]]
    loaded.delete(loaded.search(vectors[:1], 50)[0][0])
    assert len(loaded) == 0 and loaded.search(vectors[:2], 5)[0] == [[], []]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_that_are_refused(kind, model, vectors, tmp_path):
    index = create(model, kind, tmp_path)
    index.add(IDS[:5], vectors[:5])
    for call, message in {
        "twice": (lambda: index.add(["a", "b", "a"], vectors[:3]), "the id 'a' is given twice"),
        "there": (lambda: index.add(["a", IDS[2]], vectors[:2]), f"the id {IDS[2]!r} is in the index already"),
        "number": (lambda: index.add([7], vectors[:1]), "an id is a text, got 7"),
        "few": (lambda: index.add(["a"], vectors[:2]), "1 ids for 2 documents"),
        "not there": (lambda: index.delete([IDS[0], "nobody"]), "the id 'nobody' is not in the index"),
        "deleted twice": (lambda: index.delete([IDS[0]] * 2), f"the id {IDS[0]!r} is given twice"),
    }.values():
        with pytest.raises(UserError, match=message):
            call()
    assert len(index) == 5 and index.search(vectors[2:3], 1)[0] == [[IDS[2]]]


def test_vectors_that_are_refused(model, vectors, tmp_path):
    index = Index.create(model)
    for wrong in (vectors[:, :8], vectors[0]):
        with pytest.raises(UserError, match="holds vectors of 32 dimensions, got an array of"):
            index.search(wrong)
    with pytest.raises(UserError, match="32 dimensions, got an array of 300 x 8"):
        index.add(IDS, vectors[:, :8])
    broken = vectors[:3].copy()
    broken[1, 5] = np.nan
    with pytest.raises(UserError, match="the vector of row 1 holds a value that is no number"):
        index.add(IDS[:3], broken)
    for k in (0, -1, 1.5, True):
        with pytest.raises(UserError, match="k must be an integer of at least 1"):
            index.search(vectors, k)
    assert len(index) == 0


def test_texts_are_encoded_and_any_id_is_kept(model, tmp_path):
    ids, documents = ["ä ö", "0", "", "\n", "a\tb", "x" * 300], texts(6)
    index = Index.create(model, kind="hnsw")
    index.add(ids, documents)
    index.save(tmp_path / "saved")
    loaded = Index.load(tmp_path / "saved", model)
    found, scores = loaded.search(model.encode_query(documents), 1)
    assert found == [[one] for one in ids] and np.allclose(scores, 1, atol=1e-5)


def test_a_model_that_has_changed_adds_nothing(folder):
    model = load(folder)
    index = Index.create(model)
    index.add(["a"], ["word1"])
    model.prompts["document"] = "word2 "
    with pytest.raises(UserError, match="prompt '', not 'word2 '"):
        index.add(["b"], ["word1"])


def test_deleting_the_nearest_of_a_graph_finds_the_next(model):
    """More are deleted than a search looks at: it goes on until it has enough."""
    vectors = np.random.default_rng(1).standard_normal((2000, 32)).astype(np.float32)
    index = Index.create(model, kind="hnsw", ef_search=16)
    ids = [str(row) for row in range(2000)]
    index.add(ids, vectors)
    rows, _ = best(model, vectors[:1], vectors, 2000)
    index.delete([str(row) for row in rows[0][:1500]])
    found, _ = index.search(vectors[:1], 10)
    assert len(found[0]) == 10 and len(set(found[0]) & {str(row) for row in rows[0][1500:1520]}) >= 8


@pytest.fixture(scope="module")
def compressed(model):
    """10,000 vectors in groups, compressed to 16 bytes each."""
    random = np.random.default_rng(2)
    centres = random.standard_normal((50, 32)).astype(np.float32)
    vectors = centres[np.arange(10_000) % 50] + 0.3 * random.standard_normal((10_000, 32)).astype(np.float32)
    index = Index.create(model, kind="ivfpq", nlist=16, nprobe=1, pq_m=16)
    index.add([str(row) for row in range(10_000)], vectors)
    return index, vectors


def test_compressed(compressed, model, tmp_path):
    index, vectors = compressed
    rows, _ = best(model, vectors[:50], vectors, 10)
    found, _ = index.search(vectors[:50], 10)
    assert np.mean([len(set(line) & {str(row) for row in true}) for line, true in zip(found, rows)]) > 4
    assert [len(line) for line in index.search(vectors[:2], 5000)[0]] == [5000] * 2  # one group has fewer
    index.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "index.faiss").stat().st_size < vectors.nbytes / 4
    loaded = Index.load(tmp_path / "saved", model)
    assert loaded.search(vectors[:50], 10)[0] == found
    loaded.delete(found[0])
    assert not set(loaded.search(vectors[:1], 10)[0][0]) & set(found[0])


def test_too_few_to_train_on(model, vectors):
    index = Index.create(model, kind="ivfpq", nlist=512)
    with pytest.raises(
        UserError, match="300 documents are too few to train on; nlist 512 needs 19,968, and the smallest one 9,984"
    ):
        index.add(IDS, vectors)
    assert len(index) == 0


OPTIONS = {
    "kind": ({"kind": "tree"}, "kind: 'tree' is unknown; known: flat, hnsw, ivfpq, milvus"),
    "metric": ({"metric": "manhattan"}, "metric: 'manhattan' is not supported; supported: cosine, dot, euclidean"),
    "count": ({"ef_search": 0}, "ef_search must be an integer of at least 1"),
    "links": ({"hnsw_m": 1}, "hnsw_m must be at least 2"),
    "probes": ({"nlist": 4, "nprobe": 5}, "nprobe: 5 is more than nlist, 4"),
    "no place": ({"kind": "milvus"}, "uri: give a path or a URL with kind milvus"),
    "place": ({"uri": "x"}, "uri: give a path or a URL with kind milvus, and only with it"),
    "collection": ({"collection": "a b"}, "collection: 'a b' is no name"),
    "parts": ({"kind": "ivfpq", "pq_m": 5}, "pq_m: 5 does not divide the dimension of the vectors, 32"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_are_refused(name, model):
    options, message = OPTIONS[name]
    with pytest.raises(UserError, match=message):
        Index.create(model, **options)


def test_the_models_own_similarity(folder):
    model = load(folder)
    model.similarity_fn_name = "dot"
    assert Index.create(model).config.metric == "dot"
    assert Index.create(model, IndexConfig(metric="euclidean")).config.metric == "euclidean"
    model.similarity_fn_name = "manhattan"
    with pytest.raises(UserError, match="the model's similarity function 'manhattan' is not supported"):
        Index.create(model)


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_refuses_another_tower(kind, folder, vectors, tmp_path):
    model = load(folder)
    index = create(model, kind, tmp_path)
    index.add(IDS, vectors)
    index.save(tmp_path / "saved")
    small = save_model(tmp_path / "small", num_hidden_layers=1)
    ids = index.search(vectors[:5], 3)[0]
    # Another query tower is welcome; another tower for documents is not, in any disguise.
    assert Index.load(tmp_path / "saved", routed(small, load(folder))).search(vectors[:5], 3)[0] == ids
    for other in (small, routed(model, small)):
        with pytest.raises(UserError, match="num_hidden_layers 4, not 1") as error:
            Index.load(tmp_path / "saved", other)
        assert str(folder) in str(error.value) and str(tmp_path / "small") in str(error.value)
    model.prompts["document"] = "word1 "
    with pytest.raises(UserError, match="prompt '', not 'word1 '"):
        Index.load(tmp_path / "saved", model)


@pytest.fixture
def saved(model, vectors, tmp_path):
    index = Index.create(model, kind="hnsw")
    index.add(IDS, vectors)
    index.save(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("name", ["index.faiss", "ids.arrow", "index.json"])
@pytest.mark.parametrize("mmap", [True, False])
def test_damaged_files(name, mmap, model, saved):
    content = (saved / name).read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    for damaged in (content[:middle], b"", flipped, None):
        (saved / name).unlink()
        if damaged is not None:
            (saved / name).write_bytes(damaged)
        with pytest.raises(UserError, match=f"{name}|record|belongs to") as error:
            Index.load(saved, model, mmap=mmap)
        assert "\n" not in str(error.value)
        (saved / name).write_bytes(content)
    assert len(Index.load(saved, model, mmap=mmap)) == COUNT


def test_records_that_are_none(model, saved):
    record = json.loads((saved / "index.json").read_text())
    for change, message in (
        ({"format": 99}, "it has the format 99, and this version reads 1"),
        ({"dimension": 8}, "its dimension 8 is not that of its fingerprint"),
        ({"config": {"kind": "tree"}}, "kind: 'tree' is unknown"),
        ({"config": {"wings": 2}}, "is not the record of an index"),
        ({"files": 3}, "is not the record of an index"),
    ):
        (saved / "index.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(UserError, match=message):
            Index.load(saved, model)
    with pytest.raises(UserError, match=r"is no index, it has no index.json"):
        Index.load(saved.parent, model)


def test_memory_mapped(model, vectors, saved):
    """What is mapped stays on the disk: it can be searched and deleted from, not added to."""
    index = Index.load(saved, model, verify=False)
    with pytest.raises(UserError, match="is memory-mapped and cannot be added to; load it with mmap=False"):
        index.add(["new"], vectors[:1])
    index.delete(IDS[:1])
    index.save(saved, overwrite=True)  # over the files that are mapped
    assert index.search(vectors[:1], 300)[0] == Index.load(saved, model).search(vectors[:1], 300)[0]
    assert len(Index.load(saved, model)) == COUNT - 1


def test_saving_replaces_nothing_of_others(model, saved, tmp_path):
    index = Index.load(saved, model)
    with pytest.raises(UserError, match="is not empty; add --overwrite"):
        index.save(saved)
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds what hf-elastic has not written there \(notes.txt\)"):
        index.save(saved, overwrite=True)
    assert (saved / "notes.txt").read_text() == "mine" and len(Index.load(saved, model)) == COUNT


def test_two_collections_in_one_milvus(model, vectors, folder, tmp_path):
    """Another tower has another collection; the same one is not mixed with what is there."""
    index = create(model, "milvus", tmp_path)
    index.add(IDS, vectors)
    index.save(tmp_path / "first")
    with pytest.raises(UserError, match=r"has a collection hf_elastic_[0-9a-f]{16} already; choose another collection"):
        create(model, "milvus", tmp_path)
    other = create(save_model(tmp_path / "other", seed=1), "milvus", tmp_path)
    other.add(["a"], vectors[:1])
    assert len(other) == 1 and len(Index.load(tmp_path / "first", model)) == COUNT
    (tmp_path / "milvus.db").rename(tmp_path / "elsewhere.db")
    with pytest.raises(UserError, match=r"the Milvus data of the index .* are not at"):
        Index.load(tmp_path / "first", model)


@pytest.mark.slow
def test_milvus_of_another_process(model, vectors, tmp_path):
    """What one process has written, another one finds."""
    script = """
import sys, numpy as np
from sentence_transformers import SentenceTransformer
from hf_elastic.retrieval.index import Index
model = SentenceTransformer(sys.argv[1], device="cpu")
index = Index.create(model, kind="milvus", uri=sys.argv[2] + "/milvus.db")
vectors = np.load(sys.argv[2] + "/vectors.npy")
index.add([f"doc {i}" for i in range(len(vectors))], vectors)
index.save(sys.argv[2] + "/saved")
"""
    np.save(tmp_path / "vectors.npy", vectors)
    command = [sys.executable, "-c", script, model[0].model.name_or_path, str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    index = Index.load(tmp_path / "saved", model)
    assert len(index) == COUNT and index.search(vectors[:3], 1)[0] == [[one] for one in IDS[:3]]


def test_damaged_milvus(model, vectors, tmp_path, capfd):
    index = create(model, "milvus", tmp_path)
    index.add(IDS, vectors)
    index.save(tmp_path / "saved")
    record = json.loads((tmp_path / "saved" / "index.json").read_text())
    for number, name in enumerate(("*.parquet", "*.idx", "manifest.json*", "schema.json")):
        copy = tmp_path / f"copy{number}.db"
        shutil.copytree(tmp_path / "milvus.db", copy, ignore=shutil.ignore_patterns("LOCK"))
        for path in [path for path in copy.rglob(name) if path.is_file()]:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        record["config"]["uri"] = str(copy)
        (tmp_path / "saved" / "index.json").write_text(json.dumps(record))
        with pytest.raises(UserError, match=r"Milvus at .*/copy"):
            Index.load(tmp_path / "saved", model).search(vectors[:1], 3)
    assert "Traceback" not in capfd.readouterr().err

"""A tower for queries alone, of another backbone, width and tokenizer than that of the documents, whose index it answers for."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling
from sentences import SIZES, SPACE, make_denser, save_sentence_transformer, texts, without_us
from tiny import WORDS, config_of, randomize
from transformers import AutoModel, BertTokenizerFast

from hf_elastic.core.errors import UserError
from hf_elastic.retrieval.align import align
from hf_elastic.retrieval.align_config import AlignConfig
from hf_elastic.retrieval.build import build_index
from hf_elastic.retrieval.data import Document, RetrievalData
from hf_elastic.retrieval.denser import ElasticDenser, elastic_sentence_transformer
from hf_elastic.retrieval.evaluate import evaluate_retrieval
from hf_elastic.retrieval.export import export_denser
from hf_elastic.retrieval.fingerprint import fingerprint_of
from hf_elastic.retrieval.graph import load_graph
from hf_elastic.retrieval.index import Index
from hf_elastic.retrieval.losses import ElasticLoss
from hf_elastic.retrieval.pipeline import RetrievalPipeline
from hf_elastic_cli import main

pytestmark = pytest.mark.one_lane

TEXTS = texts(6, 9)
LINES = list(dict.fromkeys(texts(300)))
DOCUMENTS = [Document(f"d{number}", text) for number, text in enumerate(texts(40, 3))]
QUICK = {"max_steps": 30, "per_device_train_batch_size": 16, "learning_rate": 5e-3, "save_steps": 10}
# Depth in another order than that of the alphabet, in which a file has the heads.
NAMES = {"tiny": SIZES["tiny"], "small": SIZES["small"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT for documents and its index; a plain encoder and a model of sentence-transformers for queries; texts."""
    folder = tmp_path_factory.mktemp("query")
    documents = SentenceTransformer(save_sentence_transformer(folder), device="cpu")
    build_index(documents, DOCUMENTS, folder / "index")
    for name, changes in {"mpnet": {"hidden_size": 24}, "modernbert": {"hidden_size": 40}}.items():
        (folder / name).mkdir()
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *reversed(WORDS)]
        (folder / name / "vocab.txt").write_text("\n".join(vocabulary))
        BertTokenizerFast.from_pretrained(folder / name).save_pretrained(folder / name)
        randomize(AutoModel.from_config(config_of(name, **changes))).save_pretrained(folder / name)
    parts = [Transformer(str(folder / "modernbert"), max_seq_length=16), Pooling(40, "cls"), Normalize()]
    stock = SentenceTransformer(modules=parts, prompts={"query": f"{WORDS[2]} "}, truncate_dim=8, device="cpu")
    stock.save(str(folder / "sentence-modernbert"))
    (folder / "texts.txt").write_text("\n".join(LINES))
    np.save(folder / "vectors.npy", documents.encode_query(LINES))
    return folder


def document_model(folder):
    return SentenceTransformer(str(folder / "sentence"), device="cpu")


def query_model(folder, base="mpnet", **options):
    options = {"space": SPACE, "subnets": NAMES, "aligned_to": fingerprint_of(document_model(folder)), **options}
    return elastic_sentence_transformer(str(folder / base), mode="query", device="cpu", **options)


def with_other_heads(model):
    """The model with heads that are not as they begin."""
    for weight in model[2].parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    return model


@pytest.fixture(scope="module")
def aligned(folder, tmp_path_factory):
    """A model that was aligned to the vectors of a file, and what was said of it."""
    output = tmp_path_factory.mktemp("aligned") / "out"
    model = query_model(folder)
    found = align(model, LINES, output, AlignConfig(**QUICK), targets=torch.from_numpy(np.load(folder / "vectors.npy")))
    return ElasticDenser(str(output), device="cpu"), found


@pytest.mark.parametrize("base", ["mpnet", "sentence-modernbert"])
def test_the_full_size_is_the_base_with_a_head(base, folder):
    stock = SentenceTransformer(str(folder / base), device="cpu")
    model = query_model(folder, base)
    assert model.mode == "query" and model.subnets == NAMES and model.prompts == stock.prompts
    plain = SentenceTransformer(modules=list(stock)[:2], prompts=stock.prompts, device="cpu").encode_query(TEXTS)
    expected = np.zeros((len(TEXTS), 32), np.float32)  # a head begins as the identity
    expected[:, : plain.shape[1]] = plain[:, :32]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    for size in (None, "full", "largest", {"num_hidden_layers": 4}):
        assert np.allclose(model.encode_query(TEXTS, subnet=size), expected, atol=1e-6)
    small = model.encode_query(TEXTS, subnet="small")
    assert np.array_equal(model.encode_query(TEXTS, subnet=SIZES["small"]), small) and not np.allclose(small, expected, atol=1e-2)
    model.elastic.select("small")
    assert np.allclose(model.encode_query(TEXTS), small, atol=1e-6)


def test_saved_and_loaded(folder, tmp_path):
    model = with_other_heads(query_model(folder))
    model.save_pretrained(str(tmp_path))
    again = ElasticDenser(str(tmp_path), device="cpu")
    assert again.mode == "query" and again.aligned_to == model.aligned_to and not again.training
    sizes = (None, "small", "tiny")
    vectors = [model.encode_query(TEXTS, subnet=size) for size in sizes]
    assert all(np.array_equal(again.encode_query(TEXTS, subnet=size), one) for size, one in zip(sizes, vectors))
    assert not any(np.allclose(one, other, atol=1e-2) for one, other in itertools.pairwise(vectors))
    code = "from sentence_transformers import SentenceTransformer as S; import json; "
    code += f"print(json.dumps(S({str(tmp_path)!r}, device='cpu', trust_remote_code=True).encode_query({TEXTS!r}).tolist()))"
    assert np.allclose(np.float32(json.loads(without_us(code))), vectors[0], atol=1e-6)
    card = (tmp_path / "README.md").read_text()
    assert "for queries alone" in card and f"`{folder / 'sentence'}`" in card and "Sizes: full, tiny, small." in card
    again.save_pretrained(str(tmp_path / "again"))
    assert (tmp_path / "again" / "README.md").read_text().count("## Queries only") == 1


def test_aligned_to_vectors_of_a_file(aligned, folder):
    model, found = aligned
    assert list(found) == ["full", "tiny", "small"] and all(size["cosine"] > size["before"] + 0.3 for size in found.values())
    held_out = len(LINES) // 10
    target = np.load(folder / "vectors.npy")[:held_out]
    for size, cosines in found.items():
        vectors = model.encode_query(LINES[:held_out], subnet=size)
        assert cosines["cosine"] == pytest.approx(float((vectors * target).sum(1).mean()), abs=1e-4)


def test_a_model_and_its_vectors_teach_the_same(aligned, folder, tmp_path):
    """Also where texts are there twice or blank: their rows are left out with them."""
    found = align(query_model(folder), LINES, tmp_path / "model", AlignConfig(**QUICK), targets=document_model(folder))
    lines = [" ", *LINES, LINES[3]]
    vectors = np.concatenate([np.ones((1, 32)), np.load(folder / "vectors.npy"), np.ones((1, 32))]).astype(np.float32)
    again = align(query_model(folder), lines, tmp_path / "vectors", AlignConfig(**QUICK), targets=vectors)
    for size, cosines in aligned[1].items():
        assert found[size]["cosine"] == pytest.approx(cosines["cosine"], abs=1e-3)
        assert again[size]["cosine"] == pytest.approx(cosines["cosine"], abs=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "vectors"]


def test_the_index_of_that_tower_alone(aligned, folder, tmp_path):
    model, _ = aligned
    index = Index.load(folder / "index", model)
    pipeline = RetrievalPipeline(model, index, {document.id: document.text for document in DOCUMENTS}, denser_subnet="small")
    vectors = document_model(folder).encode_document([document.text for document in DOCUMENTS])
    for size in (None, "small"):
        best = (model.encode_query(TEXTS, subnet=size or "small") @ vectors.T).argmax(1)
        assert [row[0].id for row in pipeline.search(TEXTS, 1, denser_subnet=size)] == [f"d{row}" for row in best]
    other = SentenceTransformer(save_sentence_transformer(tmp_path, hidden_act="relu"), device="cpu")
    build_index(other, DOCUMENTS, tmp_path / "index")
    with pytest.raises(UserError, match="another one") as error:
        Index.load(tmp_path / "index", model)
    assert str(tmp_path / "sentence") in str(error.value) and str(folder / "sentence") in str(error.value)
    with pytest.raises(UserError, match="another one"):
        RetrievalPipeline(model, Index.load(tmp_path / "index", other), {})
    with pytest.raises(UserError, match="another one"):
        align(query_model(folder), LINES, tmp_path / "never", targets=other)
    assert not list(tmp_path.glob("never*"))


def test_documents_are_refused(aligned, folder, tmp_path):
    model, _ = aligned
    evaluator = InformationRetrievalEvaluator({"q": TEXTS[0]}, {"d": TEXTS[1]}, {"q": {"d"}})
    data = RetrievalData(DOCUMENTS, {"q": TEXTS[0]}, {"q": {"d3": 1}}, {}, "mine")
    index = Index.load(folder / "index", model, mmap=False)
    calls = (
        lambda: model.encode_document(TEXTS),
        lambda: model.encode_document([], subnet="small"),
        lambda: model.tower("document"),
        lambda: model.evaluate(evaluator),
        lambda: evaluate_retrieval(model, data),
        lambda: fingerprint_of(model),
        lambda: build_index(model, DOCUMENTS, tmp_path / "index"),
        lambda: index.add(["new"], ["word1"]),
    )
    for call in calls:
        with pytest.raises(UserError, match="this model encodes queries only"):
            call()
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="2 columns of texts, and this model encodes queries only"):
        ElasticLoss(model, MultipleNegativesRankingLoss(model))([model.preprocess(TEXTS), model.preprocess(TEXTS)], None)


def test_a_size_without_a_head_is_refused(aligned):
    with pytest.raises(UserError, match=r"3\} has no head that maps its vectors of 24 .* sizes with one: full, small, tiny"):
        aligned[0].encode_query(TEXTS, subnet={"num_hidden_layers": 3})


@pytest.mark.parametrize("size", ["small", pytest.param(None, marks=pytest.mark.slow)])
def test_exported_for_plain_sentence_transformers(size, aligned, folder, tmp_path):
    model, _ = aligned
    assert export_denser(model, size, tmp_path / "out", texts=TEXTS)["passed"]
    code = "from sentence_transformers import SentenceTransformer as S; import json\n"
    code += f"model = S({str(tmp_path / 'out')!r}, device='cpu')\n"
    code += f"print(json.dumps([[type(one).__name__ for one in model], model.encode_query({TEXTS!r}).tolist()]))"
    modules, vectors = json.loads(without_us(code))
    assert modules == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert np.abs(np.float32(vectors) - model.encode_query(TEXTS, subnet=size)).max() < 1e-5
    with pytest.raises(UserError, match="another one"):  # there it is a model of its own
        Index.load(folder / "index", SentenceTransformer(str(tmp_path / "out"), device="cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", None])
def test_queries_on_graphs(size, aligned, tmp_path):
    model, _ = aligned
    formats = {"onnx": 1e-5, "onnx-int8": 0.1, "openvino": 1e-5}
    export_denser(model, size, tmp_path / "out", list(formats), texts=TEXTS)
    for name, most in formats.items():
        tower = load_graph(tmp_path / "out" / name)
        assert np.abs(tower.encode_query(TEXTS) - model.encode_query(TEXTS, subnet=size)).max() < most
        with pytest.raises(ValueError, match="No route found for task type 'document'"):
            tower.encode_document(TEXTS)


def test_documents_that_are_not_normalised(folder, tmp_path):
    """Vectors of any length are answered with such; where the index measures distances, lengths are learned too."""
    documents = SentenceTransformer(modules=list(document_model(folder))[:2], similarity_fn_name="euclidean", device="cpu")
    model = query_model(folder, aligned_to=fingerprint_of(documents))
    assert not isinstance(model[-1], Normalize)
    model.similarity_fn_name = "euclidean"
    align(model, LINES, tmp_path / "out", AlignConfig(**{**QUICK, "max_steps": 80}), targets=documents)
    lengths = [np.linalg.norm(one.encode_query(TEXTS), axis=1).mean() for one in (model, documents)]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.2)


ALIGN = ["retrieve", "align", "--space", json.dumps(SPACE), "--subnets", json.dumps(NAMES), "--device", "cpu"]
ALIGN += [f"--{name}={value}" for name, value in QUICK.items()]
FROM_VECTORS = "--query_model {f}/mpnet --vectors {f}/vectors.npy --texts {f}/texts.txt --index {f}/index"


def command(folder, line, output):
    return [*ALIGN, *line.format(f=folder, t=output.parent).split(), "--output_dir", str(output)]


def test_the_commands(folder, tmp_path, capsys):
    save_file({"embeddings": np.load(folder / "vectors.npy").astype(np.float16)}, tmp_path / "half.safetensors")
    assert main(command(folder, f"{FROM_VECTORS} --vectors {{t}}/half.safetensors", tmp_path / "vectors")) == 0
    printed = capsys.readouterr().out
    assert all(size in printed for size in ("full", "tiny", "small"))
    with_model = "--query_model {f}/sentence-modernbert --model {f}/sentence --texts {f}/texts.txt --index {f}/index"
    assert main(command(folder, with_model, tmp_path / "model")) == 0
    model = ElasticDenser(str(tmp_path / "model"), device="cpu")
    assert model.similarity_fn_name == "cosine" and model.elastic.config.base_config.model_type == "modernbert"
    assert "encode_document" not in (tmp_path / "model" / "README.md").read_text()
    (tmp_path / "data" / "qrels").mkdir(parents=True)
    rows = [json.dumps({"_id": document.id, "text": document.text}) for document in DOCUMENTS]
    (tmp_path / "data" / "corpus.jsonl").write_text("\n".join(rows))
    (tmp_path / "data" / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": DOCUMENTS[4].text}))
    (tmp_path / "data" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td4\t1\n")
    shared = ["--model", str(tmp_path / "vectors"), "--index", str(folder / "index")]
    data = ["--data", str(tmp_path / "data"), "--split", "test"]
    assert main(["retrieve", "query", *shared, "--query", TEXTS[0], "--subnet", "small"]) == 0
    assert main(["retrieve", "evaluate", *shared, *data, "--subnets", "small", "tiny"]) == 0
    assert main(["retrieve", "search", *shared, *data, "--ks", "0", "--output_dir", str(tmp_path / "settings")]) == 0
    assert main(["retrieve", "query", *shared, "--query", TEXTS[0], "--subnet", "nope"]) == 2
    assert "unknown subnet 'nope'" in capsys.readouterr().err
    corpus = ["--corpus", str(tmp_path / "data"), "--output_dir", str(tmp_path / "index")]
    assert main(["retrieve", "index", *shared[:2], *corpus]) == 2
    assert "this model encodes queries only" in capsys.readouterr().err and not list(tmp_path.glob("index*"))


@pytest.fixture
def inputs(folder, tmp_path):
    """Files of vectors with a fault each."""
    vectors = np.load(folder / "vectors.npy")
    hole, zeros = vectors.copy(), vectors.copy()
    hole[7, 3], zeros[9] = np.nan, 0
    arrays = {"short": vectors[:-1], "narrow": vectors[:, :31], "hole": hole, "zeros": zeros, "whole": vectors.astype(int)}
    for name, array in {**arrays, "objects": np.array([{}])}.items():
        np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    save_file({"one": vectors, "two": vectors}, tmp_path / "two.safetensors")
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"_id": "d", "text": "word1"}))
    return tmp_path


REFUSED = {
    "rows": ("--vectors {t}/short.npy", "needed is one of {n} x 32"),
    "dimensions": ("--vectors {t}/narrow.npy", "an array of {n} x 31; needed is one of {n} x 32"),
    "no number": ("--vectors {t}/hole.npy", "row 7 holds a value that is no number"),
    "zeros": ("--vectors {t}/zeros.npy", "row 9 holds a value that is no number, or zeros alone"),
    "integers": ("--vectors {t}/whole.npy", "an array of int64; needed are floating-point numbers"),
    "objects": ("--vectors {t}/objects.npy", "objects.npy is no file of vectors"),
    "nothing": ("--vectors {t}/empty.npy", "empty.npy is no file of vectors"),
    "broken": ("--vectors {t}/broken.safetensors", "broken.safetensors is no file of vectors"),
    "two arrays": ("--vectors {t}/two.safetensors", "two.safetensors holds 2 arrays; needed is one"),
    "no file": ("--vectors {t}/none.npy", "cannot read the file of vectors"),
    "another kind": ("--vectors {t}/vectors.csv", "vectors.csv is neither .npy nor .safetensors"),
    "documents": ("--texts {t}/corpus.jsonl", "needed is a .txt file, with a line for each vector"),
    "both": ("--model {f}/sentence", "model, vectors: give one of them"),
    "no index": ("--index {t}", "is no index"),
    "low": ("--space {{num_hidden_layers:[1,2]}}", "space: it does not reach up to the full size"),
    "another mode": ("--query_model {t}/denser", "space, subnets: {t}/denser has its own; leave them out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, folder, inputs, capsys):
    line, message = REFUSED[name]
    if name == "another mode":
        make_denser(str(folder / "sentence"))[0].save_pretrained(str(inputs / "denser"))
    assert main(command(folder, f"{FROM_VECTORS} {line}", inputs / "out")) == 2
    errors = [one for one in capsys.readouterr().err.splitlines() if "error: " in one]
    assert len(errors) == 1 and message.format(t=inputs, n=len(LINES)) in errors[0], errors
    assert not list(inputs.glob("out*"))


def test_what_cannot_be_made(folder, tmp_path):
    with pytest.raises(UserError, match="aligned_to: the fingerprint of a document tower goes with mode 'query'"):
        query_model(folder, aligned_to=None)
    with pytest.raises(UserError, match="aligned_to"):
        make_denser(str(folder / "sentence"), aligned_to=fingerprint_of(document_model(folder)))
    with pytest.raises(UserError, match="targets: vectors, or a model"):
        align(query_model(folder), LINES, tmp_path / "out")
    with pytest.raises(UserError, match="targets: vectors, or a model"):
        align(make_denser(str(folder / "sentence"))[0], LINES, tmp_path / "out", targets=document_model(folder))
    assert not list(tmp_path.iterdir())


def test_a_damaged_fingerprint_is_said(folder, tmp_path):
    query_model(folder).save_pretrained(str(tmp_path))
    (tmp_path / "document_tower.json").write_text("{}")
    with pytest.raises(UserError, match=r"document_tower\.json is no fingerprint of a document tower"):
        ElasticDenser(str(tmp_path), device="cpu")
    query_model(folder).save_pretrained(str(tmp_path))
    (tmp_path / "2_SizeHeads" / "size_heads.safetensors").unlink()
    with pytest.raises(UserError, match=r"its 2_SizeHeads/size_heads\.safetensors is missing"):
        ElasticDenser(str(tmp_path), device="cpu")


def killed(arguments, training):
    """Run a command, and kill it when it has written a checkpoint."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(training.glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_killed_and_resumed(folder, tmp_path, capsys):
    """A run that was killed gives the weights of one that was not, each size its own head; checkpoints of other runs stay."""
    line = f"{FROM_VECTORS} --max_steps 60"
    program = [sys.executable, "-m", "hf_elastic.cli.main"]
    killed([*program, *command(folder, line, tmp_path / "killed")], tmp_path / "killed.training")
    assert not (tmp_path / "killed").exists()
    assert main(command(folder, f"{line} --query_model {{f}}/modernbert", tmp_path / "killed")) == 2
    assert "killed.training has checkpoints of other model; choose another folder" in capsys.readouterr().err
    for name in ("killed", "whole"):
        subprocess.run([*program, *command(folder, line, tmp_path / name)], check=True, capture_output=True)
    one, other = (ElasticDenser(str(tmp_path / name), device="cpu") for name in ("killed", "whole"))
    for size in (None, *NAMES):
        assert np.allclose(one.encode_query(TEXTS, subnet=size), other.encode_query(TEXTS, subnet=size), atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]

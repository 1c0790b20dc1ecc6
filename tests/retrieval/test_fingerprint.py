"""The fingerprint of a document tower changes with its vectors, and with nothing else."""

import numpy as np
import pytest
import torch
from tiny import CONFIGS, config_of, randomize, save_tokenizer
from transformers import AutoModel

pytest.importorskip("sentence_transformers", minversion="6")
from index_models import load, routed, save_model, texts
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding, Transformer

from hf_elastic.core.errors import UserError
from hf_elastic.retrieval.fingerprint import fingerprint_of

pytestmark = pytest.mark.one_lane


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fingerprint")
    save_model(folder)
    return folder / "model"


@pytest.fixture
def model(folder):
    return load(folder)


def test_what_does_not_change_it(model, tmp_path):
    before = fingerprint_of(model)
    model.train()
    assert fingerprint_of(model) == before
    model.eval().encode(texts(40))  # the tokenizer keeps how it was called last
    model.encode_document(["word1"], normalize_embeddings=True)
    assert fingerprint_of(model) == before
    model.save(str(tmp_path / "saved"))
    loaded = load(tmp_path / "saved")
    assert fingerprint_of(loaded).digest == before.digest
    loaded.prompts["query"] = "a query: "
    loaded[0].model.config.hidden_dropout_prob = 0.5
    assert fingerprint_of(loaded).digest == before.digest


@pytest.mark.parametrize("name", ["bert", "roberta", "mpnet", "distilbert", "modernbert", "deberta-v2", "llama", "qwen3"])
def test_saving_does_not_change_it(name, tmp_path):
    if name not in CONFIGS:
        pytest.skip("not in this transformers")
    save_tokenizer(tmp_path / "base")
    randomize(AutoModel.from_config(config_of(name))).save_pretrained(tmp_path / "base")
    modules = [Transformer(str(tmp_path / "base")), Pooling(32, "cls"), Dense(32, 8), Normalize()]
    model = SentenceTransformer(modules=modules, device="cpu", prompts={"document": "word1 "})
    before = fingerprint_of(model)
    model.save(str(tmp_path / "saved"))
    assert fingerprint_of(load(tmp_path / "saved")).digest == before.digest
    assert before.parts["dimension"] == 8 and before.parts["prompt"] == "word1 " and before.parts["normalised"] is True


def _truncated(model):
    model[0].model.encoder.layer = model[0].model.encoder.layer[:2]


def _one_weight(model):
    with torch.no_grad():
        model[0].model.encoder.layer[-1].output.dense.bias[0] += 1e-6


def _settings(**values):
    def change(model):
        for name, value in values.items():
            setattr(model[0].model.config, name, value)

    return change


def _add_token(model):
    model.tokenizer.add_tokens(["word1word"])


CHANGES = {
    "truncated": (_truncated, "weights"),
    "one weight": (_one_weight, "weights"),
    "a setting without weights": (_settings(layer_norm_eps=0.1), "0.Transformer.layer_norm_eps"),
    "pooling": (lambda model: setattr(model[1], "pooling_mode", "max"), "1.Pooling.pooling_mode 'mean', not 'max'"),
    "prompt": (lambda model: model.prompts.update(document="word2 "), "prompt '', not 'word2 '"),
    "another prompt that documents get": (
        lambda model: model.prompts.update(passage="word2 ") or model.prompts.pop("document"),
        "prompt",
    ),
    "length": (lambda model: setattr(model, "max_seq_length", 8), "max_seq_length 16, not 8"),
    "dimension": (lambda model: setattr(model, "truncate_dim", 8), "dimension 32, not 8"),
    "normalisation": (lambda model: model.pop(2), "normalised True, not False"),
    "vocabulary": (_add_token, "tokenizer BertTokenizer of 65 tokens, sha256 "),
    "side that is cut": (lambda model: setattr(model.tokenizer, "truncation_side", "left"), "tokenizer"),
    "projection": (lambda model: model.insert(2, Dense(32, 32)), "2.Normalize"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_it(name, folder, model):
    change, named = CHANGES[name]
    before = fingerprint_of(model)
    change(model)
    after = fingerprint_of(model)
    assert after.digest != before.digest
    with pytest.raises(UserError, match="the index x belongs to the document tower of") as error:
        before.check(after, "the index x")
    assert named in str(error.value) and "\n" not in str(error.value)


def test_another_model_is_named(model, tmp_path):
    other = save_model(tmp_path, seed=1)
    with pytest.raises(UserError) as error:
        fingerprint_of(model).check(fingerprint_of(other), "the index")
    assert str(tmp_path / "model") in str(error.value) and "fingerprint" in str(error.value)
    assert str(error.value).count("sha256") == 2


def test_a_router_counts_as_the_tower_of_documents(model, tmp_path):
    """Wherever the tower stands, and whatever queries go through."""
    before = fingerprint_of(model)
    small = save_model(tmp_path / "small", num_hidden_layers=1)
    both = routed(small, model)
    assert fingerprint_of(both).digest == before.digest
    both.save(str(tmp_path / "both"))
    loaded = load(tmp_path / "both")
    assert fingerprint_of(loaded).digest == before.digest
    assert np.array_equal(loaded.encode_document(texts(5)), model.encode_document(texts(5)))
    assert fingerprint_of(routed(model, small)).digest == fingerprint_of(small).digest != before.digest


def test_no_route_for_documents(model):
    from sentence_transformers.base.modules import Router

    router = Router({"query": list(model)}, allow_empty_key=False)
    with pytest.raises(UserError, match="no tower for documents"):
        fingerprint_of(SentenceTransformer(modules=[router], device="cpu"))


def test_half_precision(model, tmp_path):
    """A tower in half precision is the same one in float32; rounded to half precision it is another."""
    before = fingerprint_of(model)
    half = fingerprint_of(model.half())
    assert half.digest != before.digest
    assert fingerprint_of(model.float()).digest == half.digest


def test_without_a_transformer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=4)], device="cpu")
    found = fingerprint_of(model)
    assert found.parts["dimension"] == 4 and found.parts["max_seq_length"] is None
    other = Tokenizer(WordLevel({"b": 0, "a": 1, "[UNK]": 2}, unk_token="[UNK]"))
    model[0].tokenizer = other
    assert fingerprint_of(model).parts["weights"] == found.parts["weights"]
    with pytest.raises(UserError, match="tokenizer Tokenizer of 3 tokens"):
        found.check(fingerprint_of(model), "the index")

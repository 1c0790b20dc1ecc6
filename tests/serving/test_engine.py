"""Every size that is served answers as it does offline, on one copy of the weights."""

import random

import numpy as np
import pytest
import torch
from served import LABELS, save

pytest.importorskip("sentence_transformers", minversion="6")
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentences import SIZES, make_denser, save_sentence_transformer, texts
from tiny import WORDS, config_of, save_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from hf_elastic import ElasticForSequenceClassification, ElasticModel
from hf_elastic.core.errors import UserError
from hf_elastic.retrieval.denser import ElasticDenser
from hf_elastic.retrieval.export import export_denser
from hf_elastic.retrieval.loading import load_denser, load_ranker
from hf_elastic.serving.engine import Row
from hf_elastic.serving.loading import load_engine, weight_bytes

pytestmark = pytest.mark.one_lane

TEXTS = texts(23)
PAIRS = list(zip(TEXTS, texts(23, seed=1)))


def answers(engine, inputs, **options):
    """By size, in batches of mixed lengths, at sizes that change from one to the next."""
    rows = [Row(tokens) for tokens in engine.encoder.encode(inputs, **options)]
    batches = [(name, places) for name in engine.sizes for places in np.array_split(np.arange(len(rows)), 5)]
    random.Random(0).shuffle(batches)
    found = {name: {} for name in engine.sizes}
    for name, places in batches:
        found[name] |= zip(places, engine.run(name, [rows[place] for place in places]))
    return {name: [one[place] for place in range(len(rows))] for name, one in found.items()}


def assert_close(found, expected):
    assert np.abs(np.array(found) - np.array(expected)).max() < 1e-5


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "stock-embedder"])
def test_vectors_are_the_offline_ones(kind, tmp_path):
    path = save(kind, tmp_path)
    engine, model = load_engine(path), load_denser(path, "cpu")
    sizes = ["full"] if kind == "stock-embedder" else ["full", *SIZES]
    assert engine.kind == "embedding" and engine.sizes == sizes and engine.encoder.max_length == 32
    for name, outputs in answers(engine, TEXTS).items():
        size = {} if kind == "stock-embedder" else {"subnet": name}
        assert_close([engine.embedding(one.values) for one in outputs], model.encode(TEXTS, **size))
        cut = [engine.embedding(one.values, dimensions=8) for one in outputs]
        assert_close(cut, model.encode(TEXTS, truncate_dim=8, normalize_embeddings=True, **size))
    for outputs in answers(engine, TEXTS, prompt=engine.prompts["query"]).values():
        assert len(outputs) == len(TEXTS)
    with_prompt = answers(engine, TEXTS, prompt=engine.prompts["query"])["full"]
    assert_close([engine.embedding(one.values) for one in with_prompt], model.encode(TEXTS, prompt_name="query"))
    tokens = engine.run("full", [Row(one, wants_tokens=True) for one in engine.encoder.encode(TEXTS)])
    for one, expected in zip(tokens, model.encode(TEXTS, output_value="token_embeddings")):
        assert_close(one.tokens, expected.numpy())


@pytest.mark.parametrize("kind", ["ranker", "stock-ranker"])
def test_scores_of_pairs_are_the_offline_ones(kind, tmp_path):
    path = save(kind, tmp_path)
    engine, model = load_engine(path), load_ranker(path, "cpu")
    assert engine.kind == "reranker" and engine.encoder.max_length == model[0].max_seq_length
    for name, outputs in answers(engine, PAIRS).items():
        size = {} if kind == "stock-ranker" else {"subnet": name}
        assert_close([engine.relevance(one.values) for one in outputs], model.predict(PAIRS, **size))


@pytest.mark.parametrize("kind", ["classifier", "stock-classifier"])
def test_logits_of_classifiers_are_the_offline_ones(kind, tmp_path):
    path = save(kind, tmp_path)
    engine, tokenizer = load_engine(path), AutoTokenizer.from_pretrained(path)
    assert engine.kind == "classifier" and engine.labels == list(LABELS.values())
    if kind == "classifier":
        model = ElasticForSequenceClassification.from_pretrained(path)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(path)
    for name, outputs in answers(engine, TEXTS).items():
        one = model.view(name) if kind == "classifier" else model.eval()
        with torch.no_grad():
            expected = one(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
        assert_close([output.values for output in outputs], expected)
        assert_close([engine.probabilities(output.values) for output in outputs], expected.softmax(-1))


@pytest.mark.parametrize(("model_type", "pooling"), [("bert", "mean"), ("bert", "cls"), ("qwen2", "lasttoken"), ("bert", None)])
def test_an_encoder_gets_a_pooling(model_type, pooling, tmp_path):
    path = save(f"encoder-{model_type}", tmp_path)
    engine, model = load_engine(path, pooling=pooling), ElasticModel.from_pretrained(path)
    assert engine.pooling == (pooling or "mean")
    for name, outputs in answers(engine, TEXTS).items():
        first = Transformer(path)
        first.model = model.view(name)
        offline = SentenceTransformer(modules=[first, Pooling(32, pooling_mode=pooling or "mean")], device="cpu")
        assert_close([engine.embedding(one.values, normalize=False) for one in outputs], offline.encode(TEXTS))


def test_a_pooling_that_leaves_out_the_prompt_takes_batches_with_several(tmp_path):
    model = SentenceTransformer(save_sentence_transformer(tmp_path), device="cpu")
    model[1].include_prompt = False
    model.save(str(tmp_path / "excluding"))
    engine = load_engine(str(tmp_path / "excluding"))
    prompts = ["", f"{WORDS[1]} ", f"{WORDS[2]} {WORDS[3]}: "] * 3
    rows = [Row(*engine.encoder.encode([text], prompt=prompt)) for text, prompt in zip(TEXTS, prompts)]
    found = [engine.embedding(one.values) for one in engine.run("full", rows)]
    assert_close(found, [model.encode(text, prompt=prompt) for text, prompt in zip(TEXTS, prompts)])


@pytest.mark.parametrize("kind", ["symmetric", "ranker", "classifier"])
def test_all_sizes_share_the_weights_of_the_full_one(kind, tmp_path):
    engine = load_engine(save(kind, tmp_path))
    assert len(engine.sizes) == 3
    towers = list(engine.towers.values())
    assert weight_bytes(towers) <= 1.15 * weight_bytes(towers[:1])

    def places():
        return [weight.data_ptr() for tower in towers for module in tower.modules for weight in module.parameters()]

    before = places()
    answers(engine, PAIRS if kind == "ranker" else TEXTS)
    assert places() == before


def test_heads_of_an_asymmetric_model_are_all_that_its_sizes_add(tmp_path):
    path = save("asymmetric", tmp_path)
    engine, model = load_engine(path), load_denser(path, "cpu")
    heads = sum(weight.nbytes for weight in model[0].heads.parameters())
    assert weight_bytes(engine.towers.values()) <= 1.15 * sum(weight.nbytes for weight in model.parameters()) + heads


def test_some_sizes(tmp_path):
    path = save("symmetric", tmp_path)
    assert load_engine(path, ["tiny", "smallest", "full", "largest"]).sizes == ["full", "tiny"]
    with pytest.raises(UserError, match=r"unknown subnet 'huge'; known: .*tiny"):
        load_engine(path, ["huge"])
    with pytest.raises(UserError, match="'huge' is unknown; known: full, small, tiny"):
        load_engine(path).run("huge", [])
    with pytest.raises(UserError, match="'small' is unknown; a model without sizes has: full"):
        load_engine(str(tmp_path / "sentence"), ["small"])


def test_what_cannot_be_served(tmp_path):
    save_tokenizer(tmp_path / "tagger")
    AutoModelForTokenClassification.from_config(config_of("bert")).save_pretrained(tmp_path / "tagger")
    with pytest.raises(UserError, match="is a BertForTokenClassification; served are encoders and"):
        load_engine(str(tmp_path / "tagger"))
    save_tokenizer(tmp_path / "writer")
    AutoModelForCausalLM.from_config(config_of("gpt2")).save_pretrained(tmp_path / "writer")
    with pytest.raises(UserError, match="is a GPT2LMHeadModel, and no route writes text; give --pooling to serve its vectors"):
        load_engine(str(tmp_path / "writer"))
    assert load_engine(str(tmp_path / "writer"), pooling="lasttoken").pooling == "lasttoken"
    with pytest.raises((UserError, OSError), match="nowhere"):
        load_engine(str(tmp_path / "nowhere"))
    export_denser(ElasticDenser(save("asymmetric", tmp_path / "both")), "tiny", tmp_path / "router")
    with pytest.raises(UserError, match="router has one tower for queries and another one for documents; served are"):
        load_engine(str(tmp_path / "router"))
    path = save("symmetric", tmp_path)
    with pytest.raises(UserError, match="pooling: 'cls' is for encoders without a pooling"):
        load_engine(path, pooling="cls")
    with pytest.raises(UserError, match="pooling: 'max' is unknown; known: mean, cls, lasttoken"):
        load_engine(path, pooling="max")


def test_a_digest_is_that_of_the_architecture_and_the_sizes(tmp_path):
    path = save("symmetric", tmp_path)
    engine = load_engine(path)
    assert engine.digest == load_engine(path).digest
    assert len({engine.digest, load_engine(path, ["full"]).digest, load_engine(path, dtype="bfloat16").digest}) == 3


def test_half_precision(tmp_path):
    engine = load_engine(save("symmetric", tmp_path), dtype="bfloat16")
    for name, outputs in answers(engine, TEXTS).items():
        offline = load_denser(str(tmp_path / "symmetric"), "cpu").encode(TEXTS, subnet=name)
        assert np.abs(np.array([engine.embedding(one.values) for one in outputs]) - offline).max() < 0.1


@pytest.mark.slow
def test_compiled_sizes_answer_as_the_others(tmp_path):
    path = save("symmetric", tmp_path)
    engine, plain = load_engine(path, compile=True), load_engine(path)
    compiled = answers(engine, TEXTS)
    for name, outputs in answers(plain, TEXTS).items():
        assert_close([one.values for one in compiled[name]], [one.values for one in outputs])


def test_a_cross_encoder_with_several_labels_is_a_classifier(tmp_path):
    path = save("stock-classifier", tmp_path)
    CrossEncoder(path, device="cpu").save_pretrained(str(tmp_path / "pairs"))
    engine, model = load_engine(str(tmp_path / "pairs")), CrossEncoder(str(tmp_path / "pairs"), device="cpu")
    assert engine.kind == "classifier" and engine.labels == list(LABELS.values())
    assert_close([one.values for one in answers(engine, PAIRS)["full"]], model.predict(PAIRS))


def test_a_model_of_sentence_transformers_that_cuts_its_vectors(tmp_path):
    denser, _ = make_denser(save_sentence_transformer(tmp_path), "symmetric")
    denser.truncate_dim = 8
    denser.save(str(tmp_path / "cut"))
    engine, model = load_engine(str(tmp_path / "cut")), load_denser(str(tmp_path / "cut"), "cpu")
    for name, outputs in answers(engine, TEXTS).items():
        expected = model.encode(TEXTS, subnet=name, normalize_embeddings=True)
        assert expected.shape == (len(TEXTS), 8)
        assert_close([engine.embedding(one.values) for one in outputs], expected)

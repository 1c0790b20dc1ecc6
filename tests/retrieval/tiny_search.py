"""A tiny collection, and tiny models that search and rerank in it."""

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from tiny import WORDS, config_of, randomize, save_tokenizer
from transformers import AutoModel, AutoModelForSequenceClassification

from hf_elastic.retrieval.data import Document, RetrievalData


class SizedSentenceTransformer(SentenceTransformer):
    """One whose queries may be encoded by its first layers alone, as those of an elastic model are."""

    def encode_query(self, inputs, *args, subnet=None, **kwargs):
        return _with_layers(
            self[0].model.encoder, subnet, lambda: super(SizedSentenceTransformer, self).encode_query(inputs, *args, **kwargs)
        )


class SizedCrossEncoder(CrossEncoder):
    """One that may score by its first layers alone."""

    def predict(self, inputs, *args, subnet=None, **kwargs):
        return _with_layers(
            self.model.bert.encoder, subnet, lambda: super(SizedCrossEncoder, self).predict(inputs, *args, **kwargs)
        )


def _with_layers(encoder, subnet, compute):
    layers = encoder.layer
    encoder.layer = layers if subnet is None else layers[: {"small": 2, "tiny": 1}[subnet]]
    try:
        return compute()
    finally:
        encoder.layer = layers


def make_model(folder, model_type=SentenceTransformer) -> SentenceTransformer:
    """A tiny BERT, as sentence-transformers saves and loads it."""
    save_tokenizer(folder / "bert")
    randomize(AutoModel.from_config(config_of("bert"))).save_pretrained(folder / "bert")
    parts = [Transformer(str(folder / "bert"), max_seq_length=32), Pooling(32, "mean"), Normalize()]
    SentenceTransformer(modules=parts, prompts={"query": "word1 "}, device="cpu").save(str(folder / "model"))
    return model_type(str(folder / "model"), device="cpu")


def make_ranker(folder, labels: int = 1, ranker_type=CrossEncoder) -> CrossEncoder:
    """A tiny BERT with a head for scores."""
    save_tokenizer(folder / "ranker")
    randomize(AutoModelForSequenceClassification.from_config(config_of("bert", num_labels=labels))).save_pretrained(
        folder / "ranker"
    )
    return ranker_type(str(folder / "ranker"), device="cpu", max_length=32)


def make_data(documents: int = 40, queries: int = 12) -> RetrievalData:
    """Random texts; a query has words of the documents that are right for it."""
    generator = torch.Generator().manual_seed(0)

    def draw(words, count):
        return [words[place] for place in torch.randint(len(words), (count,), generator=generator)]

    corpus = [Document(f"d{place}", " ".join(draw(WORDS, 12))) for place in range(documents)]
    right = {f"q{place}": [corpus[2 * place], corpus[2 * place + 1]] for place in range(queries)}
    texts = {name: " ".join(draw(found[0].text.split() + found[1].text.split(), 6)) for name, found in right.items()}
    qrels = {name: {found[0].id: 2, found[1].id: 1, f"d{documents - 1}": 0} for name, found in right.items()}
    return RetrievalData(corpus, {**texts, "unjudged": "word1"}, qrels, name="tiny")


@pytest.fixture(scope="module")
def data() -> RetrievalData:
    return make_data()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> SizedSentenceTransformer:
    return make_model(tmp_path_factory.mktemp("model"), SizedSentenceTransformer)


@pytest.fixture(scope="module")
def ranker(tmp_path_factory) -> SizedCrossEncoder:
    return make_ranker(tmp_path_factory.mktemp("ranker"), ranker_type=SizedCrossEncoder)

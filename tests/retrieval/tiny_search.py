"""A tiny collection, and tiny models that search and rerank in it."""

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentences import SIZES, save_cross_encoder, save_sentence_transformer
from tiny import WORDS, space_of

from hf_elastic import ElasticForSequenceClassification, ElasticModel
from hf_elastic.retrieval.data import Document, RetrievalData
from hf_elastic.retrieval.transformer import ElasticTransformer


def make_elastic(model, elastic_type):
    """Give a SentenceTransformer or a CrossEncoder sizes."""
    model[0].model = elastic_type.from_base(
        model[0].model, space=space_of("bert", hidden=False), subnets=SIZES, importance="none"
    )
    model[0].__class__ = ElasticTransformer
    return model.eval()


def make_model(folder) -> SentenceTransformer:
    """A tiny BERT, as sentence-transformers saves and loads it."""
    return SentenceTransformer(save_sentence_transformer(folder), device="cpu")


def make_ranker(folder, labels: int = 1) -> CrossEncoder:
    """A tiny BERT with a head for scores."""
    return CrossEncoder(save_cross_encoder(folder, num_labels=labels), device="cpu", max_length=32)


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
def plain(tmp_path_factory) -> SentenceTransformer:
    return make_model(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> SentenceTransformer:
    return make_elastic(make_model(tmp_path_factory.mktemp("model")), ElasticModel)


@pytest.fixture(scope="module")
def ranker(tmp_path_factory) -> CrossEncoder:
    return make_elastic(make_ranker(tmp_path_factory.mktemp("ranker")), ElasticForSequenceClassification)

"""Tiny real models of sentence-transformers, and texts for them."""

import random
import subprocess
import sys

import pytest

pytest.importorskip("sentence_transformers", minversion="6")

from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tiny import WORDS, config_of, randomize, save_tokenizer
from transformers import AutoModel, AutoModelForSequenceClassification

from hf_elastic.retrieval.denser import elastic_sentence_transformer
from hf_elastic.retrieval.ranker import elastic_cross_encoder

SIZES = {"small": {"num_hidden_layers": 2}, "tiny": {"num_hidden_layers": 1, "intermediate_size": 16}}
SPACE = {"num_hidden_layers": [1, 2, 3, 4], "intermediate_size": [16, 48]}


def texts(count: int, seed: int = 0) -> list[str]:
    """Sentences of different lengths of words that the tokenizer knows."""
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(2, 9))) for _ in range(count)]


def save_sentence_transformer(folder, **changes) -> str:
    """Write a tiny BERT with pooling, normalisation and a prompt."""
    save_tokenizer(folder / "bert")
    randomize(AutoModel.from_config(config_of("bert", **changes))).save_pretrained(folder / "bert")
    parts = [Transformer(str(folder / "bert"), max_seq_length=32), Pooling(32), Normalize()]
    SentenceTransformer(modules=parts, prompts={"query": f"{WORDS[1]} "}, device="cpu").save(str(folder / "sentence"))
    return str(folder / "sentence")


def save_cross_encoder(folder, **changes) -> str:
    """Write a tiny BERT with one label."""
    save_tokenizer(folder / "cross")
    config = config_of("bert", **{"num_labels": 1, **changes})
    randomize(AutoModelForSequenceClassification.from_config(config)).save_pretrained(folder / "cross")
    return str(folder / "cross")


def make_denser(folder, mode: str = "asymmetric", **options):
    """A denser of a model from `save_sentence_transformer`, and that model."""
    options = {"space": SPACE, "subnets": SIZES, **options}
    stock = SentenceTransformer(folder, device="cpu")
    return elastic_sentence_transformer(folder, mode=mode, device="cpu", **options), stock


def make_ranker(folder, **options):
    """A ranker of a model from `save_cross_encoder`, and that model."""
    options = {"space": SPACE, "subnets": SIZES, **options}
    return elastic_cross_encoder(folder, device="cpu", **options), CrossEncoder(folder, device="cpu")


def without_us(code: str) -> str:
    """What a program prints in which hf_elastic cannot be imported."""
    program = f"import sys; sys.modules['hf_elastic'] = None\n{code}"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def two_processes() -> tuple[str, ...]:
    """What goes before `-m module` to run it in two processes on this machine's CPU."""
    return ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")

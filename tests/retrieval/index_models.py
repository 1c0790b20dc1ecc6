"""Tiny real sentence-transformers models, and processes that are killed."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from tiny import WORDS, config_of, randomize, save_tokenizer
from transformers import AutoModel

pytest.importorskip("sentence_transformers", minversion="6")
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

ROOT = Path(__file__).parents[2]


def save_model(folder, seed=0, **changes):
    """A tiny model, 32 dimensions, on the disk; returns it as loaded from there."""
    save_tokenizer(folder / "bert")
    torch.manual_seed(seed)
    randomize(AutoModel.from_config(config_of("bert", **changes)), seed).save_pretrained(folder / "bert")
    modules = [Transformer(str(folder / "bert"), max_seq_length=16), Pooling(32), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"))
    return load(folder / "model")


def load(folder):
    return SentenceTransformer(str(folder), device="cpu")


def routed(query, document):
    """A model whose queries go through one tower and documents through another, with the normalisation behind both."""
    *document_modules, normalize = document
    router = Router.for_query_document(query_modules=list(query)[:-1], document_modules=document_modules)
    return SentenceTransformer(modules=[router, normalize], device="cpu")


def texts(count):
    """Different texts of the words that the tokenizer knows, of many lengths, some of them too long, one of them empty."""
    numbers = [(WORDS[i % 60], WORDS[i // 60 % 60], WORDS[i // 3600]) for i in range(count)]
    return ["" if i == 3 else " ".join([*number, *WORDS[i % 30 : i % 30 + i % 23]]) for i, number in enumerate(numbers)]


def write_corpus(path, count):
    rows = [{"_id": f"doc{i}", "title": "", "text": text} for i, text in enumerate(texts(count))]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def start(*arguments, launcher=()):
    """Start `hf-elastic` as a process of its own."""
    command = [sys.executable, *launcher, "-m", "hf_elastic.cli.main", *map(str, arguments)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def kill_when(process, reached, seconds=200):
    """SIGKILL a process and those that it has started as soon as something is reached; False if it was done before."""
    limit = time.monotonic() + seconds
    while process.poll() is None and not reached() and time.monotonic() < limit:
        time.sleep(0.002)
    was_running = process.poll() is None
    if was_running:  # workers of a launcher have groups of their own
        for one in (*psutil.Process(process.pid).children(recursive=True), process):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    printed, _ = process.communicate()
    if not was_running:
        print(printed)
    return was_running and time.monotonic() < limit

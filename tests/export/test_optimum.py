"""Optimum's own classes and commands on our files (transformers 4.57), and nothing of Optimum in ours."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import batch, config_of, randomize, space_of
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
    pipeline,
)

import hf_elastic
from hf_elastic import export_subnet
from hf_elastic.export.onnx.optimum_plugin import install
from hf_elastic.export.outputs import predict
from hf_elastic.graphs.exporters import ON_TRANSFORMERS_5
from hf_elastic.runtimes.onnxruntime import OnnxRunner

ROOT = Path(hf_elastic.__file__).parents[1]
needs_optimum = pytest.mark.skipif(ON_TRANSFORMERS_5, reason="Optimum needs transformers 4.57")

WORDS = ["the", "cat", "sat", "on", "mat", "dog", "ran"]
HEADS = {
    "SequenceClassification": AutoModelForSequenceClassification,
    "TokenClassification": AutoModelForTokenClassification,
    "QuestionAnswering": AutoModelForQuestionAnswering,
    "MaskedLM": AutoModelForMaskedLM,
    "CausalLM": AutoModelForCausalLM,
}
PER_LAYER = {"num_hidden_layers": 2, "intermediate_size": [16, 33]}


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[BOS]", "[EOS]", "[MASK]", "[UNK]", *WORDS]
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]", "eos_token": "[EOS]"}
    return PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **names)


def elastic(name: str, head: str, **kwargs):
    stock = randomize(HEADS[head].from_config(config_of(name)))
    return getattr(hf_elastic, f"ElasticFor{head}").from_base(stock, space=space_of(name), **kwargs)


@needs_optimum
@pytest.mark.parametrize("subnet", [{"num_hidden_layers": 2}, PER_LAYER], ids=["standard", "elastic"])
@pytest.mark.parametrize("head", [head for head in HEADS if head != "CausalLM"])
def test_ort_models_load_it(tmp_path, head, subnet):
    from optimum import onnxruntime

    model = elastic("bert", head)
    export_subnet(model, subnet, tmp_path / "out", ["onnx"])
    loaded = getattr(onnxruntime, f"ORTModelFor{head}").from_pretrained(tmp_path / "out" / "onnx")
    assert np.abs(predict(loaded, batch(7, 2)) - predict(model.view(subnet), batch(7, 2))).max() < 1e-5


@needs_optimum
@pytest.mark.parametrize(
    ("task", "name", "head", "text"),
    [
        ("text-classification", "bert", "SequenceClassification", "the cat sat"),
        ("fill-mask", "bert", "MaskedLM", "the [MASK] sat"),
        ("text-generation", "llama", "CausalLM", "the cat sat"),
    ],
)
def test_pipelines_run_it(tmp_path, task, name, head, text):
    """`pipeline(..., accelerator="ort")` says of a text what the stock pipeline says with the stock checkpoint."""
    from optimum.onnxruntime import pipeline as ort_pipeline

    model = elastic(name, head)
    export_subnet(model, {"num_hidden_layers": 2}, tmp_path / "out", ["safetensors", "onnx"], tokenizer=tokenizer())
    options = {"max_new_tokens": 8, "do_sample": False} if head == "CausalLM" else {}
    stock = pipeline(task, model=str(tmp_path / "out"))(text, **options)
    folder = str(tmp_path / "out" / "onnx")
    assert flat(ort_pipeline(task, model=folder, tokenizer=folder, accelerator="ort")(text, **options)) == flat(stock)


def flat(results: list) -> list:
    return [{key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()} for row in results]


@needs_optimum
@pytest.mark.parametrize("selected", ["small", *(pytest.param(name, marks=pytest.mark.slow) for name in (None, "frozen"))])
def test_optimum_cli_exports_an_elastic_checkpoint(tmp_path, selected):
    """A real process, which learns the model type from the installed plugin; the size is the one that is selected."""
    sizes = {"num_attention_heads": [4, 2], "num_key_value_heads": [2, 1], **PER_LAYER}
    model = elastic("llama", "CausalLM", subnets={"small": sizes})
    subnet = None if selected is None else "small"
    if selected == "frozen":
        model.extract(subnet).save_pretrained(tmp_path / "in")
    else:
        model.select(subnet)
        model.save_pretrained(tmp_path / "in")
    optimum_cli(tmp_path, "export", "onnx", "--model", tmp_path / "in", "--task", "text-generation-with-past", tmp_path / "out")
    inputs = batch(7, 2, left=True)
    logits = OnnxRunner(tmp_path / "out" / "model.onnx")(inputs)["logits"]
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    expected = predict(model.view(subnet), {**inputs, "position_ids": positions})
    kept = inputs["attention_mask"].numpy().astype(bool)
    assert np.abs(logits - expected)[kept].max() < 1e-5
    kind = "llama" if subnet is None else "elastic"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == kind

    from optimum.onnxruntime import ORTModelForCausalLM

    generated = ORTModelForCausalLM.from_pretrained(tmp_path / "out").generate(**inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(generated, model.view(subnet).generate(**inputs, max_new_tokens=8, do_sample=False))


@needs_optimum
@pytest.mark.slow
def test_optimum_cli_exports_an_elastic_classifier(tmp_path):
    model = elastic("bert", "SequenceClassification", subnets={"small": PER_LAYER})
    model.select("small")
    model.save_pretrained(tmp_path / "in")
    optimum_cli(tmp_path, "export", "onnx", "--model", tmp_path / "in", "--task", "text-classification", tmp_path / "out")
    inputs = {**batch(7, 2), "token_type_ids": torch.zeros(2, 7, dtype=torch.int64)}
    difference = OnnxRunner(tmp_path / "out" / "model.onnx")(inputs)["logits"] - predict(model.view("small"), inputs)
    assert np.abs(difference).max() < 1e-5


def optimum_cli(folder: Path, *arguments) -> None:
    """The command with our plugin in a part of its namespace package that is this test's own."""
    install(folder / "plugin" / "optimum" / "commands" / "register")
    command = [Path(sys.executable).with_name("optimum-cli"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder / "plugin")])}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]


@needs_optimum
def test_the_plugin_goes_where_optimum_looks(monkeypatch):
    from hf_elastic.export.onnx import optimum_plugin

    written = {}
    monkeypatch.setattr(optimum_plugin, "write_atomically", lambda path, text: written.update({path: text}))
    path = install()
    assert list(written) == [path]
    assert (path.parent / "register_onnxruntime.py").is_file()


@pytest.mark.skipif(not ON_TRANSFORMERS_5, reason="Optimum is installed")
def test_without_optimum_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optimum.commands", None)
    with pytest.raises(ImportError, match=r"optimum\.commands.*pip install 'hf-elastic"):
        install()


@pytest.mark.slow
def test_the_wheel_brings_no_part_of_optimum(tmp_path):
    """With any file below `optimum/`, `is_optimum_available()` of transformers is true without Optimum."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "hf_elastic", tmp_path / "hf_elastic", ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path / path.name)
    build = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    result = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    roots = {name.split("/")[0].removesuffix(".py") for name in files if ".dist-info/" not in name}
    assert roots <= {"hf_elastic", "hf_elastic_cli"} and "hf_elastic/export/subnet.py" in files

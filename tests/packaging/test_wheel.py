"""The wheel, installed into a clean environment with core dependencies only, and used there."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hf_elastic

pytestmark = [pytest.mark.slow, pytest.mark.one_lane]

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "hf_elastic", "hf_elastic_cli.py", "optimum")
EXTRAS = ("lm_eval", "nncf", "onnx", "onnxruntime", "openvino", "optimum", "peft", "psycopg")

USE = """
import importlib.util, json, sys
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification
from transformers.utils import is_optimum_available, is_peft_available
import hf_elastic
from hf_elastic.cli.main import main

widths = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99,
          "initializer_range": 0.3}  # so that sizes disagree
base = BertForSequenceClassification(BertConfig(**widths)).eval()
space = {"num_hidden_layers": [2, 4], "num_attention_heads": [2, 4], "intermediate_size": [16, 48]}
small = {"num_hidden_layers": 2, "intermediate_size": 16}
model = hf_elastic.ElasticForSequenceClassification.from_base(base, space=space, subnets={"small": small}).eval()
ids = torch.arange(10, 26).view(2, 8)

@torch.no_grad()
def logits(of):
    return of.eval()(input_ids=ids).logits

assert torch.allclose(logits(model), logits(base), atol=1e-5)
model.select("small")
expected = logits(model)
assert not torch.allclose(expected, logits(base), atol=1e-3)
model.select(None)
model.save_pretrained("elastic")
model.extract("small").save_pretrained("small")
assert torch.equal(logits(AutoModelForSequenceClassification.from_pretrained("elastic", subnet="small")), expected)
stock = AutoModelForSequenceClassification.from_pretrained("small")
assert type(stock) is BertForSequenceClassification and torch.allclose(logits(stock), expected, atol=1e-6)
for name in hf_elastic.__all__:
    getattr(hf_elastic, name)
assert main(["push", "--model", "elastic", "--repo_id", "user/name", "--subnets", "small", "--dry_run", "true"]) == 0
assert main(["export", "--model", "elastic", "--formats", "onnx", "--output_dir", "out"]) == 2
print(json.dumps({
    "file": hf_elastic.__file__,
    "found": [name for name in sys.argv[1:] if importlib.util.find_spec(name)],
    "believed": [is_optimum_available(), is_peft_available()],
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, for building leaves folders in the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "sources").mkdir()
    for path in (ROOT / name for name in SOURCES):
        if path.is_dir():
            shutil.copytree(path, folder / "sources" / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.exists():
            shutil.copy(path, folder / "sources")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "sources")
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """The folder of the programs of a new environment that the wheel was installed into, as a user does."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    probe = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder / "probe", "packaging"]
    if subprocess.run(probe, env=environment(), capture_output=True).returncode:
        pytest.skip("pip reaches no package index")
    run(python, "-m", "pip", "install", "--quiet", "--no-compile", "-c", ROOT / "constraints.txt", wheel)
    yield folder / "bin"
    shutil.rmtree(folder)


def environment() -> dict[str, str]:
    """Without what would lead back to the sources."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "HF_HUB_OFFLINE": "1"}


def run(*command, cwd: Path | None = None) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_what_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = [path for path in (ROOT / "hf_elastic").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.relative_to(ROOT).as_posix() for path in sources} <= names
    suffixes = {path.suffix for path in sources}
    assert {".yaml", ".json", ".md", ".jinja", ".typed"} <= suffixes
    assert not [name for name in names if name.startswith(("tests/", "recipes/", "docs/"))]


def test_in_a_clean_environment(clean, tmp_path):
    assert run(clean / "hf-elastic", "--version", cwd=tmp_path).split()[-1] == hf_elastic.__version__
    assert "convert" in run(clean / "hf-elastic", "--help", cwd=tmp_path)
    used = run(clean / "python", "-c", USE, *EXTRAS, cwd=tmp_path)
    assert f'"file": "{clean.parent}' in used
    assert '"found": [], "believed": [false, false]' in used
    assert "user/name-small main README.md" in used
    assert "pip install 'hf-elastic[onnx]'" in used

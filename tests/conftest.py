import gc
import importlib
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # tests share tests/tiny.py
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start: more of them than cores run side by side
torch.set_num_threads(1)
# Of property-based tests: the same examples at every run, and many others in make test-all.
settings.register_profile("default", max_examples=200, deadline=None, derandomize=True)
settings.register_profile("all", max_examples=5000, deadline=None)
settings.load_profile(os.environ.get("HF_ELASTIC_EXAMPLES", "default"))
OTHER = "HF_ELASTIC_OTHER_PYTHON"
ENVIRONMENT = frozenset(os.environ)


def pytest_collection_modifyitems(items):
    """What the other lane loads needs that lane's Python."""
    if OTHER not in os.environ:
        for item in items:
            if item.get_closest_marker("other_lane"):
                item.add_marker(pytest.mark.skip(reason=f"{OTHER} is not set"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _frozen_garbage():
    """Every training collects garbage, and the imports leave over half a million objects to look at."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _environment():
    """TrainingArguments tell accelerate of bf16 (transformers 4.57), FSDP and compilers through the environment, for good; so
    does the quickstart how threads wait. Fixtures of modules do it before this one begins."""
    _forget()
    yield
    _forget()


def _forget():
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_", "OMP_WAIT"))]:
        if name not in ENVIRONMENT:
            del os.environ[name]


@pytest.fixture(scope="module")
def benchmark_module():
    """Imports a module of recipes/benchmarks by its name."""
    folder = str(Path(__file__).parents[1] / "recipes" / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)

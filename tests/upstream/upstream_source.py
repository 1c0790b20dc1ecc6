"""transformers' own common tests: where they are, how they are fetched, and how they are imported unedited.

The source distribution of transformers has `tests/test_modeling_common.py`, but not the folders beside it that it imports. What
is missing is stood in for by what it needs of them; a full checkout of the repository has it all, generation tests included.

    python tests/upstream/upstream_source.py     # make fetch-upstream: fetch the tests of the installed release
"""

import functools
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import types
from pathlib import Path
from unittest import mock

import transformers

VARIABLE = "HF_ELASTIC_TRANSFORMERS_TESTS"
PACKAGE = "transformers_common_tests"
NEEDED = "test_modeling_common.py"


def folder() -> Path:
    """Where the tests of the installed release are, or are to be: never inside this repository."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    given = os.environ.get(VARIABLE)
    return Path(given) if given else cache / "hf_elastic" / f"transformers-{transformers.__version__}" / "tests"


def why_missing() -> str | None:
    """Why the tests cannot run here, or None."""
    if int(transformers.__version__.partition(".")[0]) < 5:
        return "transformers 4.57 has common tests of another kind"
    if importlib.util.find_spec("parameterized") is None:
        return "the common tests import parameterized, which is not installed"
    if not (folder() / NEEDED).exists():
        return f"no {NEEDED} in {folder()}: make fetch-upstream, or set {VARIABLE}"
    return None


def fetch() -> None:
    """Download the source distribution of the installed release from the package index, and keep its tests."""
    target = folder()
    if (target / NEEDED).exists():
        return
    name = f"transformers-{transformers.__version__}"
    target.parent.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent.parent) as temporary:
        options = ["--quiet", "--no-deps", "--no-binary", "transformers", "--dest", temporary]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, name.replace("-", "==")], check=True)
        with tarfile.open(Path(temporary) / f"{name}.tar.gz") as archive:
            members = [member for member in archive if member.name.startswith(f"{name}/tests/")]
            archive.extractall(temporary, members, filter="data")
        target.parent.mkdir(exist_ok=True)
        (Path(temporary) / name / "tests").rename(target)


@functools.cache
def load() -> types.ModuleType:
    """`test_modeling_common`, with `test_configuration_common` and `test_training_mixin` as `configuration` and `training`."""
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(folder())]
    sys.modules.setdefault(PACKAGE, package)
    _stand_in("exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    _stand_in("generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    _stand_in("utils.test_configuration_utils", config_common_kwargs=CONFIG_KWARGS)
    common = importlib.import_module(f"{PACKAGE}.{NEEDED.removesuffix('.py')}")
    # It looks for the source of transformers beside the tests.
    with mock.patch("transformers.utils.direct_transformers_import", lambda *_: transformers):
        common.configuration = importlib.import_module(f"{PACKAGE}.test_configuration_common")
    common.training = importlib.import_module(f"{PACKAGE}.test_training_mixin")
    return common


def _stand_in(name: str, **contents) -> None:
    """A module in place of a file that a source distribution lacks."""
    if (folder() / f"{name.replace('.', '/')}.py").exists():
        return
    package = f"{PACKAGE}.{name.partition('.')[0]}"
    sys.modules.setdefault(package, types.ModuleType(package)).__path__ = []
    module = types.ModuleType(f"{PACKAGE}.{name}")
    vars(module).update(contents)
    sys.modules[module.__name__] = module


# What every config takes, with values that are not the defaults.
CONFIG_KWARGS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
}


if __name__ == "__main__":
    try:
        fetch()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no common tests of transformers, theirs are skipped: {error}")
    else:
        print(f"the common tests of transformers are in {folder()}")

"""What `hf-elastic` says at once: usage, version, help, and what is wrong with a recipe; a user's error against a bug."""

import dataclasses
import re
import subprocess
import sys
import time
from importlib import import_module
from importlib.metadata import version

import pytest

import hf_elastic
from hf_elastic.cli.main import main as main_of_the_package
from hf_elastic.core.errors import UserError
from hf_elastic_cli import COMMANDS, MISSING, defaults_of, groups, help_of, main, module_of

AT_ONCE = {
    "help": (["--help"], 0, "hf-elastic COMMAND"),
    "nothing": ([], 0, "hf-elastic COMMAND"),
    "version": (["--version"], 0, f"hf-elastic {hf_elastic.__version__}\n"),
    "help of a command": (["train", "--help"], 0, "--num_random_subnets NUMBER"),
    "unknown command": (["fly"], 2, "unknown command 'fly'; known: quickstart, convert"),
    "no recipe": (["train", "nowhere.yaml"], 2, "no recipe 'nowhere.yaml'"),
    "unknown key": (["train", "{wings}"], 2, "unknown option 'wings'; see hf-elastic train --help"),
    "no mapping": (["search", "{list}"], 2, "must be a mapping of options"),
    "no YAML": (["search", "{broken}"], 2, "is not YAML"),
}


@pytest.mark.parametrize("name", AT_ONCE)
def test_at_once(name, tmp_path, capsys):
    arguments, status, text = AT_ONCE[name]
    for file, content in {"wings": "wings: 2\nseed: 1", "list": "[1, 2]", "broken": "a: [1"}.items():
        (tmp_path / file).write_text(content)
    started = time.process_time()
    assert main([one.format(**{file: tmp_path / file for file in ("wings", "list", "broken")}) for one in arguments]) == status
    assert time.process_time() - started < 0.3
    printed = capsys.readouterr()
    assert text in (printed.err if status else printed.out)
    assert len(printed.err.splitlines()) == bool(status)


def test_nothing_is_imported_for_it():
    """A fresh process: neither PyTorch nor transformers nor this package."""
    code = """
import sys, hf_elastic_cli
codes = [hf_elastic_cli.main(line.split()) for line in ("--help", "--version", "train --help", "export --help", "train no.yaml")]
sys.exit(codes != [0, 0, 0, 0, 2] or bool({"torch", "transformers", "hf_elastic"} & set(sys.modules)))"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.fixture(params=COMMANDS)
def parsed(request, monkeypatch):
    """A command, the dataclasses that it parses, and its defaults."""
    seen = []

    def parse(types, argv, command, fixed=None):
        seen.append((command, types, fixed or {}))
        raise SystemExit

    module = import_module(f"hf_elastic.cli.{module_of(request.param)}")
    monkeypatch.setattr(module, "parse", parse)
    with pytest.raises(SystemExit):
        module.main([])
    return seen[0]


def test_options_read_off_the_source_are_the_real_ones(parsed):
    """Names, help and defaults are those of the dataclasses, which nothing has run."""
    command, types, fixed = parsed
    read = {name: option for group in groups(command) for name, option in group.options.items()}
    real = {field.name: field for one in types for field in dataclasses.fields(one) if field.init}
    assert read.keys() == real.keys()
    assert fixed == defaults_of(command)
    for name, field in real.items():
        if not read[name].module.startswith("hf_elastic"):
            continue  # one default of TrainingArguments follows from what is installed
        assert read[name].help == field.metadata["help"], name
        if field.default_factory is not dataclasses.MISSING:
            assert read[name].value == field.default_factory(), name
        else:
            assert read[name].value == (MISSING if field.default is dataclasses.MISSING else field.default), name


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    """Each option once, each default once, and what is required says so."""
    text = help_of(command)
    options = re.findall(r"^  --(\S+)", text, flags=re.MULTILINE)
    assert len(options) == len({option.replace("-", "_") for option in options})
    assert "(default: None)" not in text
    for block in re.split(r"^  --", text, flags=re.MULTILINE)[1:]:
        assert " ".join(block.split()).lower().count("default:") <= 1, block
    required = [name for group in groups(command) for name, option in group.options.items() if option.value is MISSING]
    assert text.count("(required)") == len(required)


def test_help_of_train_has_ours_first():
    titles = [group.title for group in groups("train")]
    assert titles[-1] == "Of transformers' Trainer:" and titles[0].startswith("What to train")
    text = help_of("train")
    assert text.index("--num_random_subnets") < text.index("--per_device_train_batch_size")
    assert "(default: 20)" in text[text.index("--logging_steps ") :].partition("--logging_nan")[0]


ERRORS = [UserError("too\nlarge"), OSError("the disk is full"), FloatingPointError("the loss is nan")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_a_user_can_change_is_one_line(error, monkeypatch, capsys):
    """With --debug, wherever it stands, the traceback comes first."""

    def fails(arguments):
        raise error

    monkeypatch.setattr("hf_elastic.cli.measure.main", fails)
    assert main_of_the_package(["measure"]) == 2
    assert capsys.readouterr().err == f"hf-elastic: error: {' '.join(str(error).split())}\n"
    for arguments in (["--debug", "measure"], ["measure", "--model", "x", "--debug"]):
        assert main(arguments) == 2
        assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), ImportError("a bug")], ids=lambda e: type(e).__name__)
def test_a_bug_keeps_its_traceback(error, monkeypatch):
    def fails(arguments):
        raise error

    monkeypatch.setattr("hf_elastic.cli.measure.main", fails)
    with pytest.raises(type(error), match="a bug"):
        main(["measure"])


def test_the_debug_of_trainer_is_its_own(monkeypatch):
    seen = []
    monkeypatch.setattr("hf_elastic.cli.train.main", seen.append)
    assert main(["train", "--debug", "underflow_overflow", "--debug", "--seed", "1"]) == 0
    assert seen == [["--debug", "underflow_overflow", "--seed", "1"]]


def test_what_transformers_refuses_while_options_are_built_is_one_line(tmp_path, capsys):
    arguments = ["train", "--model", "x", "--output_dir", str(tmp_path), "--use_cpu", "true", "--load_best_model_at_end", "true"]
    assert main(arguments) == 2
    assert "load_best_model_at_end requires" in capsys.readouterr().err


def test_the_package_imports_its_names_when_they_are_used():
    """The Auto classes know the config at once, and the models as soon as there is a config."""
    code = """
import sys, hf_elastic
heavy = {"transformers.modeling_utils", "transformers.training_args", "sklearn", "scipy"} & set(sys.modules)
assert not heavy, heavy
assert set(hf_elastic.__all__) <= set(dir(hf_elastic))
from transformers import AutoConfig, AutoModelForCausalLM
from hf_elastic.models.transfo_xl import TransformerXLConfig
assert type(AutoConfig.for_model("elastic")) is hf_elastic.ElasticConfig
config = TransformerXLConfig(vocab_size=20, d_model=8, n_head=2, d_inner=8, n_layer=1, mem_len=4)
assert type(AutoModelForCausalLM.from_config(config)).__name__ == "TransformerXLForCausalLM"
assert all(getattr(hf_elastic, name) for name in hf_elastic.__all__)"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_retrieval_without_its_library(capsys):
    """The lane of transformers 4.57 has a sentence-transformers that is too old for it."""
    if version("sentence-transformers").startswith("6."):
        pytest.skip("sentence-transformers 6 is there")
    assert main(["retrieve", "query", "--model", "none", "--index", "none", "--query", "word"]) == 2
    assert re.fullmatch(
        r"hf-elastic: error: retrieval needs sentence-transformers 6, found \S+: run pip .*\n", capsys.readouterr().err
    )

"""The command line: recipes, the whole path on a tiny model, and one-line errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny import config_of
from transformers import AutoModelForSequenceClassification, BertTokenizerFast

from hf_elastic.cli.main import main

RECIPES = sorted(
    path for path in (Path(__file__).parents[2] / "recipes").glob("*/*.yaml") if path.parent.name != "launch"
)  # those are read by accelerate
WORDS = [f"word{index}" for index in range(60)]
SPACE = {"num_hidden_layers": [1, 2, 4], "intermediate_size": [16, 48]}


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A tiny BERT with a real tokenizer, as on the Hub."""
    folder = tmp_path_factory.mktemp("stock")
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(vocab_file=str(vocabulary)).save_pretrained(folder)
    AutoModelForSequenceClassification.from_config(config_of("bert", num_labels=2)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A task that a tiny model can learn: which of two words comes first."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 64), ("dev", 32)):
        rows = [f"{i % 2}\t{WORDS[i % 2]} {WORDS[2 + i % 50]} {WORDS[3 + i % 40]}" for i in range(count)]
        (folder / f"{split}.tsv").write_text("\n".join(["label\tsentence", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def elastic(stock, tmp_path_factory):
    folder = tmp_path_factory.mktemp("elastic") / "model"
    small = {"small": {"num_hidden_layers": 1, "intermediate_size": 16}}
    options = ["--space", json.dumps(SPACE), "--subnets", json.dumps(small), "--num_labels", "2"]
    assert main(["convert", "--model", str(stock), "--output_dir", str(folder), *options]) == 0
    return folder


def run(*arguments, cwd=None):
    command = [sys.executable, "-m", "hf_elastic.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_the_whole_path(elastic, data, tmp_path, capsys):
    trained, found, out = tmp_path / "trained", tmp_path / "search", tmp_path / "out"
    recipe = tmp_path / "train.yaml"
    options = {"model": str(elastic), "dataset": str(data), "output_dir": str(trained), "max_steps": 12, "learning_rate": 3.0e-3}
    recipe.write_text(yaml.safe_dump({**options, "use_cpu": True, "max_length": 8, "per_device_train_batch_size": 16}))
    assert main(["train", str(recipe), "--max_steps", "20"]) == 0
    metrics = json.loads((trained / "metrics.json").read_text())
    assert {"eval_accuracy", "eval_small_accuracy", "eval_smallest_accuracy"} <= metrics.keys()

    shared = ["--model", str(trained), "--dataset", str(data), "--max_length", "8"]
    assert main(["search", *shared, "--output_dir", str(found), "--portability", "standard"]) == 0
    assert (found / "frontier.png").stat().st_size > 10_000
    frontier = json.loads((found / "frontier.json").read_text())
    assert {"accuracy", "latency_ms"} == {objective["name"] for objective in frontier["objectives"]}

    formats = ["--formats", "safetensors", "onnx", "onnx-int8"]
    choice = ["--frontier", str(found / "frontier.json"), "--output_dir", str(out)]
    assert main(["export", "--model", str(trained), *choice, *formats]) == 0
    for folder in (out, out / "onnx", out / "onnx-int8"):
        assert json.loads((folder / "parity.json").read_text())["passed"]
    assert type(AutoModelForSequenceClassification.from_pretrained(out)).__name__ == "BertForSequenceClassification"
    assert "is standard" in capsys.readouterr().out


def test_export_says_what_is_elastic(elastic, tmp_path, capsys):
    subnet = json.dumps({"intermediate_size": [16, 48, 48, 16]})
    assert main(["export", "--model", str(elastic), "--subnet", subnet, "--output_dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "is elastic" in printed and "nearest standard size" in printed


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_is_valid(recipe, tmp_path, capsys):
    overrides = ["--dry_run", "true", "--output_dir", str(tmp_path / "out")]
    assert main([recipe.stem.partition("_")[0], str(recipe), *overrides]) == 0, capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_there_are_recipes():
    assert {path.parent.name for path in RECIPES} >= {"minilm", "gpt2"}


@pytest.mark.parametrize("command", ["quickstart", "convert", "train", "search", "export"])
def test_help_names_every_option(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert "--output_dir" in capsys.readouterr().out


BAD = {
    "unknown command": (["fly"], "unknown command 'fly'; known: quickstart, convert, train, search, export"),
    "unknown option": (["convert", "--wings", "2"], "--output_dir"),
    "no such recipe": (["train", "nowhere.yaml"], "no recipe 'nowhere.yaml'"),
    "unknown axis": (
        ["convert", "--model", "{stock}", "--output_dir", "{out}", "--space", '{"wings": [2]}'],
        "unknown axis 'wings'",
    ),
    "too large": (
        ["convert", "--model", "{stock}", "--output_dir", "{out}", "--space", '{"num_hidden_layers": [9]}'],
        "num_hidden_layers: 9 is larger than the model, which has 4",
    ),
    "space is no JSON": (["convert", "--model", "{stock}", "--output_dir", "{out}", "--space", "{{"], "neither a JSON mapping"),
    "unknown task": (["convert", "--model", "{stock}", "--output_dir", "{out}", "--task", "sing"], "'sing' is unknown; known:"),
    "no such model": (["convert", "--model", "./nowhere", "--output_dir", "{out}"], "./nowhere"),
    "not elastic": (["export", "--model", "{stock}", "--output_dir", "{out}"], "is a bert checkpoint; make it elastic"),
    "unknown subnet": (
        ["export", "--model", "{elastic}", "--subnet", "tiny", "--output_dir", "{out}"],
        "known: largest, smallest, small",
    ),
    "unknown format": (
        ["export", "--model", "{elastic}", "--output_dir", "{out}", "--formats", "pdf"],
        "'pdf' is unknown; known:",
    ),
    "folder not empty": (["export", "--model", "{elastic}", "--output_dir", "{elastic}"], "is not empty; add --overwrite"),
    "missing data": (["search", "--model", "{elastic}", "--dataset", "./nowhere", "--output_dir", "{out}"], "nowhere"),
    "missing column": (
        ["search", "--model", "{elastic}", "--dataset", "{data}", "--label_column", "mood", "--output_dir", "{out}"],
        "mood",
    ),
    "bad constraint": (
        ["search", "--model", "{elastic}", "--output_dir", "{out}", "--constraints", "small"],
        "'small' must be a name",
    ),
    "bad objective": (
        ["search", "--model", "{elastic}", "--output_dir", "{out}", "--objectives", "beauty"],
        "'beauty' is unknown; known:",
    ),
    "bad sampling": (
        ["train", "--model", "{elastic}", "--output_dir", "{out}", "--sampling", "some"],
        "'some' is unknown; known:",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_2(name, stock, elastic, data, tmp_path, capsys):
    arguments, message = BAD[name]
    places = {"{stock}": stock, "{elastic}": elastic, "{data}": data, "{out}": tmp_path / "out"}
    filled = [str(places.get(argument, argument)) for argument in arguments]
    before = sorted(path.name for path in elastic.iterdir())
    try:
        status = main(filled)
    except SystemExit as end:
        status = end.code
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if "error" in line]
    assert status == 2, error
    assert len(lines) == 1 and message in lines[0], error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
    assert sorted(path.name for path in elastic.iterdir()) == before


def test_labels_outside_the_head(elastic, tmp_path, capsys):
    (tmp_path / "train.tsv").write_text("label\tsentence\n" + "\n".join(f"{i % 5}\tword{i}" for i in range(20)) + "\n")
    assert main(["search", "--model", str(elastic), "--dataset", str(tmp_path), "--output_dir", str(tmp_path / "out")]) == 2
    assert "label" in capsys.readouterr().err


def test_interrupted_training_resumes(elastic, data, tmp_path):
    """Ctrl-C in the middle leaves whole checkpoints, from which the same command goes on."""
    options = ["--model", elastic, "--dataset", data, "--output_dir", tmp_path / "run", "--max_length", 8, "--use_cpu", "true"]
    options += ["--save_steps", 2, "--learning_rate", "1e-3", "--eval_strategy", "no"]
    command = [sys.executable, "-m", "hf_elastic.cli.main", "train", *map(str, options), "--max_steps", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run").glob("checkpoint-*/trainer_state.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "--resume_from_checkpoint true" in error and "Traceback" not in error
    steps = [int(path.name.partition("-")[2]) for path in (tmp_path / "run").glob("checkpoint-*")]
    again = run("train", *options, "--max_steps", max(steps) + 2, "--resume_from_checkpoint", "true")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_failed_export_leaves_nothing(elastic, tmp_path, capsys, monkeypatch):
    """An export over its tolerance fails as a whole; what was there before stays."""
    from hf_elastic.export import parity

    monkeypatch.setattr(parity, "FLOAT32", parity.Tolerance(max_relative_difference=-1.0))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    arguments = ["export", "--model", str(elastic), "--output_dir", str(tmp_path / "out"), "--overwrite", "true"]
    assert main(arguments) == 2
    assert "the export differs from the model it came from" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_quickstart(tmp_path):
    """The real model and data; a tenth of an epoch shows that every step runs."""
    out = tmp_path / "quickstart"
    result = run("quickstart", "--output_dir", out, "--epochs", "0.1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for name in ("elastic/config.json", "search/frontier.json", "search/frontier.png", "export/parity.json"):
        assert (out / name).exists(), name
    for name in ("onnx", "onnx-int8"):
        assert json.loads((out / "export" / name / "parity.json").read_text())["passed"]
    for words in (
        "transformers.models.bert.modeling_bert.BertForSequenceClassification",
        "full",
        "chosen, ONNX int8",
        "hf-elastic export",
    ):
        assert words in result.stdout, words
    again = run("quickstart", "--output_dir", out, "--epochs", "0.1", cwd=tmp_path)
    assert again.returncode == 2 and "--overwrite" in again.stderr

"""The command line: recipes, the whole path on a tiny model, and one-line errors."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny import WORDS
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from hf_elastic import ElasticForSequenceClassification
from hf_elastic.cli.main import main

STAGES = {"convert": "convert", "finetune": "train", "train": "train", "search": "search", "export": "export"}
RECIPES = [  # those with a dry run
    path
    for path in sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
    if path.stem in STAGES and "retrieval" not in path.parts
]


def run(*arguments, cwd=None):
    command = [sys.executable, "-m", "hf_elastic.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_the_whole_path(elastic, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained, found, out = tmp_path / "trained", tmp_path / "search", tmp_path / "exported"
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
    following = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("next: hf-elastic export "))
    assert main([*shlex.split(following)[2:], *formats]) == 0
    for folder in (out, out / "onnx", out / "onnx-int8"):
        assert json.loads((folder / "parity.json").read_text())["passed"]
    assert type(AutoModelForSequenceClassification.from_pretrained(out)).__name__ == "BertForSequenceClassification"
    assert "is standard" in capsys.readouterr().out


def test_a_search_with_its_storage_elsewhere_goes_on(elastic, data, tmp_path, capsys):
    """The named sizes are among the first, and a second run takes what the first has found."""
    model = ElasticForSequenceClassification.from_pretrained(elastic)
    model.config.subnets["middle"] = {"num_hidden_layers": 2}
    model.save_pretrained(tmp_path / "named")
    AutoTokenizer.from_pretrained(elastic).save_pretrained(tmp_path / "named")
    options = ["search", "--model", str(tmp_path / "named"), "--dataset", str(data), "--objectives", "accuracy", "parameters"]
    options += ["--max_length", "8", "--storage", str(tmp_path / "trials.db"), "--output_dir", str(tmp_path / "out")]
    assert main([*options, "--n_trials", "3"]) == 0
    first = json.loads((tmp_path / "out" / "frontier.json").read_text())["points"]
    assert {point["name"] for point in first} == {"full", "smallest", "middle"}
    assert main([*options, "--n_trials", "4"]) == 0
    second = json.loads((tmp_path / "out" / "frontier.json").read_text())["points"]
    assert len(second) == 4 and all(point in second for point in first)
    (tmp_path / "out" / "mine.txt").write_text("kept")
    assert main([*options, "--n_trials", "4"]) == 0 and (tmp_path / "out" / "mine.txt").read_text() == "kept"
    assert main([*options, "--n_trials", "4", "--study_name", "another"]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("space", "wanted"),
    [
        ([], {"num_hidden_layers": [1, 2, 3, 4], "intermediate_size": [12, 24, 36, 48]}),
        (["--space", "none"], {"layers": [[0, 1, 2, 3]]}),
    ],
)
def test_a_space_that_nobody_gave_is_said(space, wanted, stock, tmp_path, capsys):
    options = ["--model", str(stock), "--num_labels", "2", "--importance", "none", *space]
    assert main(["convert", *options, "--output_dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    model = ElasticForSequenceClassification.from_pretrained(tmp_path / "out")
    assert {axis: list(map(list, values)) if axis == "layers" else list(values) for axis, values in model.space.items()} == wanted
    assert ("space: none given, so " in printed) == (not space)


def test_a_dry_run_knows_the_sizes_of_a_local_checkpoint(stock, tmp_path, capsys):
    options = ["convert", "--model", str(stock), "--dry_run", "true", "--output_dir", str(tmp_path / "out")]
    assert main(options) == 0 and not (tmp_path / "out").exists()
    assert main([*options, "--space", '{"num_hidden_layers": [1, 9]}']) == 2
    assert "9 is larger than the model, which has 4" in capsys.readouterr().err


def test_data_that_nobody_named_are_said(elastic, tmp_path, capsys):
    options = ["--objectives", "accuracy", "--n_trials", "2", "--max_examples", "4", "--max_length", "8"]
    assert main(["search", "--model", str(elastic), *options, "--output_dir", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert "dataset: none given, so stdlib-docstrings, which comes with Python" in said.out
    assert "label" in said.err  # a head of two labels, and eight kinds of modules


def test_finetune_rank_and_train(stock, data, tmp_path):
    """A stock checkpoint is fine-tuned into a stock checkpoint, ranked on its task, and teaches its own sizes."""
    shared = ["--dataset", data.name, "--data_dir", str(data.parent), "--max_length", "8"]
    training = [*shared, "--use_cpu", "true", "--max_steps", "60", "--learning_rate", "3e-3"]
    folders = {name: str(tmp_path / name) for name in ("finetuned", "elastic", "trained")}
    task = ["--task", "sequence-classification"]
    assert (
        main(["train", "--model", str(stock), *task, "--num_labels", "2", *training, "--output_dir", folders["finetuned"]]) == 0
    )
    assert type(AutoModelForSequenceClassification.from_pretrained(folders["finetuned"])).__name__.startswith("Bert")
    options = ["--model", folders["finetuned"], *task, "--importance", "taylor", "--layer_order", "ends", *shared]
    assert main(["convert", *options, "--space", '{"num_hidden_layers": [2, 4]}', "--output_dir", folders["elastic"]]) == 0
    options = ["--model", folders["elastic"], "--teacher", folders["finetuned"], *training, "--output_dir", folders["trained"]]
    assert main(["train", *options]) == 0
    metrics = json.loads((tmp_path / "trained" / "metrics.json").read_text())
    assert metrics["eval_accuracy"] > 0.9 and "eval_smallest_accuracy" in metrics


def test_rankings_from_texts(stock, data, tmp_path, capsys):
    """By default texts rank: the embedded ones, those of the data set, or a file's; the same texts give the same model."""
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{word} {WORDS[0]} and others\n\n" for word in WORDS[:20]))
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    (pairs / "train.jsonl").write_text("".join(json.dumps({"premise": word, "hypothesis": WORDS[1]}) + "\n" for word in WORDS))
    body = tmp_path / "body"
    shutil.copytree(stock, body)
    AutoModel.from_pretrained(stock).save_pretrained(body)
    space = json.dumps({"num_hidden_layers": [2, 4], "intermediate_size": [16, 48], "hidden_size": [16, 32]})
    weights = {}
    for name, options, said in (
        ("embedded", [], "ranked on 512 texts of our own: docstrings and random tokens"),
        ("dataset", ["--dataset", str(data), "--max_length", "8"], f"ranked on 64 texts of {data}"),
        ("file", ["--calibration", str(texts), "--layer_order", "influence"], f"texts of {texts}"),
        ("again", ["--calibration", str(texts), "--layer_order", "influence"], f"texts of {texts}"),
        ("pairs", ["--calibration", str(pairs), "--calibration_rows", "8"], f"ranked on 8 texts of {pairs}"),
        ("choices", ["--model", str(body), "--task", "multiple-choice", "--calibration", str(texts)], f"texts of {texts}"),
        ("none", ["--importance", "none"], "largest:"),
        ("without a tokenizer", ["--tokenizer", "none"], "largest:"),
    ):
        folder = tmp_path / f"of {name}"
        assert main(["convert", "--model", str(stock), "--space", space, "--output_dir", str(folder), *options]) == 0
        out = capsys.readouterr().out
        assert said in out and ("ranked" in out) == ("ranked" in said or "texts" in said)
        weights[name] = (folder / "model.safetensors").read_bytes()
    assert weights["file"] == weights["again"]
    assert len({weights[name] for name in ("embedded", "dataset", "file", "none", "without a tokenizer")}) == 5
    expected = AutoModelForSequenceClassification.from_pretrained(stock).eval()
    inputs = {"input_ids": torch.arange(5, 12)[None]}
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "of file").eval()
    torch.testing.assert_close(model(**inputs).logits, expected(**inputs).logits, atol=1e-5, rtol=0)
    assert sorted(model.config.layer_order) == [0, 1, 2, 3]


def test_lora_by_recipe(elastic, data, tmp_path):
    """`lora` trains an adapter, which alone is saved; its folder is a model for the other commands."""
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    options = ["--model", str(elastic), "--dataset", str(data), "--use_cpu", "true", "--max_steps", "30", "--max_length", "8"]
    options += ["--learning_rate", "3e-2", "--lora", '{"r": 4, "target_modules": ["query", "value"]}', "--seed", "1"]
    assert main(["train", *options, "--output_dir", str(adapter)]) == 0
    assert (adapter / "adapter_model.safetensors").stat().st_size < (elastic / "model.safetensors").stat().st_size / 4
    assert not (adapter / "model.safetensors").exists()
    metrics = json.loads((adapter / "metrics.json").read_text())
    assert metrics["eval_accuracy"] > 0.9 and "eval_small_accuracy" in metrics
    assert main(["export", "--model", str(adapter), "--subnet", "small", "--output_dir", str(out)]) == 0
    assert json.loads((out / "parity.json").read_text())["passed"]


def test_a_teacher_with_another_vocabulary(stock, elastic, data, tmp_path, capsys):
    teacher = tmp_path / "teacher"
    shutil.copytree(stock, teacher)
    tokens = json.loads((teacher / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary[WORDS[0]], vocabulary[WORDS[1]] = vocabulary[WORDS[1]], vocabulary[WORDS[0]]
    (teacher / "tokenizer.json").write_text(json.dumps(tokens))
    options = ["--model", str(elastic), "--dataset", str(data), "--output_dir", str(tmp_path / "out"), "--use_cpu", "true"]
    assert main(["train", *options, "--teacher", str(teacher), "--max_steps", "2"]) == 2
    assert "the teacher has another vocabulary" in capsys.readouterr().err
    assert main(["train", *options, "--teacher", str(stock), "--max_steps", "2"]) == 0


def test_export_says_what_is_elastic(elastic, tmp_path, capsys):
    subnet = json.dumps({"intermediate_size": [16, 48, 48, 16]})
    assert main(["export", "--model", str(elastic), "--subnet", subnet, "--output_dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "is elastic" in printed and "nearest standard size" in printed


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_is_valid(recipe, tmp_path, capsys):
    overrides = ["--dry_run", "true", "--output_dir", str(tmp_path / "out")]
    assert main([STAGES[recipe.stem], str(recipe), *overrides]) == 0, capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_there_are_recipes():
    assert {path.parent.name for path in RECIPES} >= {"minilm", "gpt2", "sst2", "cola", "mrpc", "qnli", "wikitext2"}


TRAIN = ("--model", "{elastic}", "--dataset", "{data}", "--output_dir", "{out}", "--use_cpu", "true", "--max_steps", "2")
BAD = {
    "unknown option": (["convert", "--wings", "2"], "--output_dir"),
    "unknown axis": (
        ["convert", "--model", "{stock}", "--output_dir", "{out}", "--space", '{"wings": [2]}'],
        "unknown axis 'wings'",
    ),
    "space is no JSON": (["convert", "--model", "{stock}", "--output_dir", "{out}", "--space", "{{"], "neither a JSON mapping"),
    "unknown task": (["convert", "--model", "{stock}", "--output_dir", "{out}", "--task", "sing"], "'sing' is unknown; known:"),
    "no such model": (["convert", "--model", "./nowhere", "--output_dir", "{out}"], "./nowhere"),
    "not elastic": (["export", "--model", "{stock}", "--output_dir", "{out}"], "is a bert checkpoint; make it elastic"),
    "unknown subnet": (
        ["export", "--model", "{elastic}", "--subnet", "tiny", "--output_dir", "{out}"],
        "known: full, largest, smallest, small",
    ),
    "unknown format": (
        ["export", "--model", "{elastic}", "--output_dir", "{out}", "--formats", "pdf"],
        "'pdf' is unknown; known:",
    ),
    "folder not empty": (["export", "--model", "{elastic}", "--output_dir", "{stock}"], "is not empty; add --overwrite"),
    "missing data": (["search", "--model", "{elastic}", "--dataset", "./nowhere", "--output_dir", "{out}"], "nowhere"),
    "missing column": (
        ["search", "--model", "{elastic}", "--dataset", "{data}", "--label_column", "mood", "--output_dir", "{out}"],
        "mood",
    ),
    "bad objective": (
        ["search", "--model", "{elastic}", "--output_dir", "{out}", "--objectives", "beauty"],
        "'beauty' is unknown; known:",
    ),
    "bad LoRA target": (["train", *TRAIN, "--lora", '{"target_modules": ["q_prj"]}'], "q_prj"),
    "no such data in the folder": (
        ["train", "--model", "{elastic}", "--output_dir", "{out}", "--dataset", "glue/sst2", "--data_dir", "{data}"],
        "data_dir: no glue/sst2 in",
    ),
    "taylor without data": (
        ["convert", "--model", "{stock}", "--output_dir", "{out}", "--importance", "taylor"],
        "importance taylor needs a dataset",
    ),
    "taylor with texts": (
        ["convert", "--model", "{stock}", "--output_dir", "{out}", "--importance", "taylor", "--calibration", "{data}"],
        "importance taylor needs a dataset with labels",
    ),
    "unknown ranking": (
        ["convert", "--model", "{stock}", "--output_dir", "{out}", "--importance", "fisher"],
        "importance: 'fisher' is unknown; known: activation, magnitude, taylor, none",
    ),
    "texts that nothing reads": (
        ["convert", "--model", "{stock}", "--output_dir", "{out}", "--importance", "magnitude", "--calibration", "{data}"],
        "calibration: importance magnitude and layer_order first look at no data",
    ),
    "texts without a tokenizer": (
        ["convert", "--model", "{stock}", "--output_dir", "{out}", "--tokenizer", "none", "--layer_order", "influence"],
        "need a tokenizer; it is none",
    ),
    "no such texts": (
        ["convert", "--model", "{stock}", "--output_dir", "{out}", "--calibration", "./nowhere.txt"],
        "./nowhere.txt: no such file",
    ),
    "ranked new weights": (
        ["convert", "--model_config", '{"model_type": "bert"}', "--output_dir", "{out}", "--importance", "activation"],
        "model_config: new weights are not ranked",
    ),
    "bad task to fine-tune": (["train", *TRAIN, "--task", "question-answering"], "task: 'question-answering' is unknown"),
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


@pytest.mark.slow
def test_a_model_in_a_subfolder_or_a_revision(elastic, tmp_path):
    """What `push` makes with its layouts, in a local folder and in the cache of the Hub."""
    shutil.copytree(elastic, tmp_path / "local" / "small")
    snapshot = tmp_path / "cache" / "models--me--sizes" / "snapshots" / ("a" * 40)
    shutil.copytree(elastic, snapshot / "small")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "v1").write_text(snapshot.name)
    sources = {"local": ["--model", tmp_path / "local"], "hub": ["--model", "me/sizes", "--revision", "v1"]}
    for name, source in sources.items():
        command = [sys.executable, "-m", "hf_elastic.cli.main", "export", *map(str, source), "--subfolder", "small"]
        environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [*command, "--output_dir", str(tmp_path / "out" / name)], capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr
        assert {"tokenizer.json", "model.safetensors"} <= {path.name for path in (tmp_path / "out" / name).iterdir()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--subfolder", "large"], "subfolder: there is no 'large' in "),
        (["--revision", "v1"], "is a local folder, which has none"),
    ],
)
def test_a_subfolder_or_a_revision_that_is_not_there(options, message, elastic, tmp_path, capsys):
    assert main(["export", "--model", str(elastic), *options, "--output_dir", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()

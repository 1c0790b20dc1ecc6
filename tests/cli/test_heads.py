"""Commands on the data and the heads that users have: labels by name, several labels, numbers, long texts, no padding."""

import csv
import json

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from tiny import WORDS, config_of, decisive, randomize, save_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hf_elastic.cli.main import main
from hf_elastic.data.tokenizer import train_byte_level_bpe

SPACE = json.dumps({"num_hidden_layers": [2, 4]})
TRAIN = ["--max_steps", "1", "--use_cpu", "true", "--disable_tqdm", "true", "--save_strategy", "no"]


def elastic(folder, model_type: str = "bert", *, padding: bool = True, constant=None, change=None, **config):
    """An elastic classifier with a tokenizer; with `constant` one that always gives these logits."""
    stock = folder / "stock"
    if padding:
        save_tokenizer(stock)
    else:
        (folder / "corpus.txt").write_text("word1 word2 word3\n" * 50)
        tokenizer = train_byte_level_bpe(str(folder / "corpus.txt"), vocab_size=300)
        tokenizer.pad_token = None
        tokenizer.save_pretrained(stock)
        ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config |= {"vocab_size": 300, "pad_token_id": None, **ends}
    model = AutoModelForSequenceClassification.from_config(config_of(model_type, **config))
    if constant is not None:
        with torch.no_grad():
            model.classifier.weight.zero_()
            model.classifier.bias.copy_(torch.tensor(constant))
    if change is not None:
        change(randomize(model))
    model.save_pretrained(stock)
    options = ["--space", SPACE, "--importance", "none", "--task", "sequence-classification"]
    assert main(["convert", "--model", str(stock), "--output_dir", str(folder / "elastic"), *options]) == 0
    return folder / "elastic"


def table(path, rows) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return str(path)


def searched(model, data, folder, *objectives: str) -> list[dict]:
    options = ["--objectives", *objectives, "parameters", "--output_dir", str(folder)]
    assert main(["search", "--model", str(model), "--dataset", data, *options]) == 0
    return [point["values"] for point in json.loads((folder / "frontier.json").read_text())["points"]]


def config_in(folder) -> dict:
    return json.loads((folder / "config.json").read_text())["base_config"]


@pytest.fixture(scope="module")
def always_pos(tmp_path_factory):
    """Label 0 is "pos", which it always says."""
    names = {"id2label": {0: "pos", 1: "neg"}, "label2id": {"pos": 0, "neg": 1}}
    return elastic(tmp_path_factory.mktemp("pos"), constant=[5.0, -5.0], **names)


@pytest.mark.parametrize("kind", ["strings", "ClassLabel"])
def test_labels_are_found_by_name(kind, always_pos, tmp_path):
    """Three of four rows are "pos", which comes second in the alphabet and in the data: so three of four are right."""
    rows = [(f"{WORDS[i % 50]} {WORDS[i % 7]}", "neg" if i % 4 == 0 else "pos") for i in range(40)]
    if kind == "strings":
        (tmp_path / "data").mkdir()
        for split in ("train", "dev"):
            table(tmp_path / "data" / f"{split}.csv", rows)
    else:
        features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
        split = Dataset.from_list([{"text": text, "label": label} for text, label in rows], features=features)
        DatasetDict(train=split, validation=split).save_to_disk(tmp_path / "data")
    data = str(tmp_path / "data")
    assert {point["accuracy"] for point in searched(always_pos, data, tmp_path / "search", "accuracy")} == {0.75}
    assert main(["export", "--model", str(always_pos), "--dataset", data, "--output_dir", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["held_out"]["view"]["accuracy"] == 0.75
    options = [*TRAIN, "--learning_rate", "0", "--output_dir", str(tmp_path / "trained")]
    assert main(["train", "--model", str(always_pos), "--dataset", data, *options]) == 0
    assert json.loads((tmp_path / "trained" / "metrics.json").read_text())["eval_accuracy"] == 0.75
    assert config_in(tmp_path / "trained")["id2label"] == {"0": "pos", "1": "neg"}


@pytest.mark.parametrize("command", ["search", "train", "export", "quickstart"])
@pytest.mark.parametrize(("label", "problem"), [("", "no label"), ("maybe", "label 'maybe'")])
def test_a_label_that_is_none_of_the_heads(command, label, problem, always_pos, tmp_path, capsys):
    """It is named with its row in the file and the labels that there are; the row may be in any split by then."""
    data = table(tmp_path / "data.csv", [*[(f"text {i}", "pos") for i in range(30)], ("oops", label)])
    model = always_pos.parent / "stock" if command == "quickstart" else always_pos
    options = [*(TRAIN if command == "train" else []), "--output_dir", str(tmp_path / "out")]
    assert main([command, "--model", str(model), "--dataset", data, *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"row 30: {problem} in column 'label'; the head's labels are pos, neg" in error
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_head_without_names_gets_those_of_the_data(tmp_path):
    """It has room for three, and the data have two."""
    model = elastic(tmp_path, num_labels=3)
    data = table(tmp_path / "data.csv", [(f"text {i}", "yn"[i % 2]) for i in range(20)])
    options = [*TRAIN, "--output_dir", str(tmp_path / "trained")]
    assert main(["train", "--model", str(model), "--dataset", data, *options]) == 0
    assert config_in(tmp_path / "trained")["id2label"] == {"0": "n", "1": "y", "2": "LABEL_2"}
    assert searched(tmp_path / "trained", data, tmp_path / "search", "accuracy")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labels", "config", "scores"),
    [
        ([["a"], ["b", "c"], [], ["a", "c"]], {"num_labels": 3}, ("accuracy", "f1")),
        ([0.5, 1.5, 4.0, 2.5], {"num_labels": 1}, ("pearson", "spearmanr", "mse")),
    ],
)
def test_several_labels_a_row_and_numbers(labels, config, scores, tmp_path):
    """Search, train and export with the scores that such heads have, int8 too."""
    model = elastic(tmp_path, change=decisive, **config)
    rows = [{"text": f"{WORDS[i % 4]} {WORDS[i % 4]} {WORDS[i % 45]}", "label": labels[i % 4]} for i in range(24)]
    DatasetDict(train=Dataset.from_list(rows), validation=Dataset.from_list(rows[:12])).save_to_disk(tmp_path / "data")
    data = str(tmp_path / "data")
    assert all(set(scores) <= set(point) for point in searched(model, data, tmp_path / "search", *scores, "loss"))
    options = [*TRAIN, "--output_dir", str(tmp_path / "trained")]
    assert main(["train", "--model", str(model), "--dataset", data, *options]) == 0
    metrics = json.loads((tmp_path / "trained" / "metrics.json").read_text())
    assert all(f"eval_{name}" in metrics and f"eval_smallest_{name}" in metrics for name in scores)
    options = ["--formats", "safetensors", "onnx", "onnx-int8", "--output_dir", str(tmp_path / "out")]
    assert main(["export", "--model", str(model), "--dataset", data, *options]) == 0
    record = json.loads((tmp_path / "out" / "onnx" / "parity.json").read_text())["held_out"]
    assert set(record["view"]) == set(scores) and record["file"] == pytest.approx(record["view"], abs=1e-4)


def test_a_score_that_the_head_has_not(tmp_path, capsys):
    model = elastic(tmp_path, num_labels=1)
    data = table(tmp_path / "data.csv", [(f"text {i}", i / 7) for i in range(20)])
    for command, message in (
        (["search", "--objectives", "accuracy"], "accuracy is no score of this head and these labels; they have: pearson"),
        (["export", "--max_accuracy_drop", "1"], "max_accuracy_drop: a regression has no accuracy; it is scored by pearson"),
    ):
        options = ["--model", str(model), "--dataset", data, "--output_dir", str(tmp_path / "out")]
        assert main([*command, *options]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("model_type", ["bert", "roberta", "llama"])
def test_long_texts_are_cut_to_the_models_input(model_type, tmp_path, caplog, capsys):
    """64 positions, of which RoBERTa's table keeps two; 128 tokens are the default."""
    model = elastic(tmp_path, model_type, num_labels=2, pad_token_id=1 if model_type == "roberta" else 0)
    longest = 62 if model_type == "roberta" else 64
    data = table(tmp_path / "data.csv", [("word1 " * (200 if i % 2 else 3), i % 2) for i in range(20)])
    for command in (["search", "--objectives", "accuracy", "parameters"], ["train", *TRAIN], ["export"]):
        caplog.clear()
        output = ["--output_dir", str(tmp_path / command[0])]
        assert main([*command, "--model", str(model), "--dataset", data, *output]) == 0
        assert f"10 of 20 texts were longer than {longest} tokens and are cut" in caplog.text
    if model_type != "llama":  # which computes its positions
        capsys.readouterr()
        output = ["--output", str(tmp_path / "profile.json")]
        assert main(["measure", "--model", str(model), "--sequence_length", "100", *output]) == 2
        assert f"sequence_length: 100 tokens, but the model has positions for {longest} at most" in capsys.readouterr().err


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_classifier_without_padding_takes_batches(model_type, tmp_path, caplog):
    """The end of text pads, in the tokenizer and in the config, and what is written says so."""
    model = elastic(tmp_path, model_type, padding=False, num_labels=2)
    data = table(tmp_path / "data.csv", [("word1 " * (i % 5 + 1), "yn"[i % 2]) for i in range(20)])
    assert searched(model, data, tmp_path / "search", "accuracy")
    assert "batches are padded with token" in caplog.text
    options = [*TRAIN, "--output_dir", str(tmp_path / "trained")]
    assert main(["train", "--model", str(model), "--dataset", data, *options]) == 0
    for source, given in ((tmp_path / "trained", ["--dataset", data]), (model, [])):
        out = tmp_path / f"out-{source.name}"
        assert main(["export", "--model", str(source), *given, "--output_dir", str(out)]) == 0
        tokenizer = AutoTokenizer.from_pretrained(out)
        assert tokenizer.pad_token == tokenizer.eos_token
        assert AutoModelForSequenceClassification.from_pretrained(out).config.pad_token_id == tokenizer.pad_token_id
        classify = pipeline("text-classification", str(out), device="cpu")
        texts = ["word1", "word1 word2 word3"]
        alone = [classify(text)[0]["score"] for text in texts]
        assert [found["score"] for found in classify(texts, batch_size=2)] == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("importance", ["taylor", "activation"])
def test_a_classifier_without_padding_is_ranked_row_by_row(importance, tmp_path):
    """What ranks it leaves its tokenizer as it was, no padding and no truncation in the file."""
    elastic(tmp_path, "gpt2", padding=False, num_labels=2)
    data = table(tmp_path / "data.csv", [("word1 " * (i % 5 + 1), "yn"[i % 2]) for i in range(20)])
    options = ["--importance", importance, "--dataset", data, "--output_dir", str(tmp_path / "ranked")]
    assert main(["convert", "--model", str(tmp_path / "stock"), *options]) == 0
    stored, before = (json.loads((tmp_path / name / "tokenizer.json").read_text()) for name in ("ranked", "stock"))
    assert stored == before and AutoTokenizer.from_pretrained(tmp_path / "ranked").pad_token is None

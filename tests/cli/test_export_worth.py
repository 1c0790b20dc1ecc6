"""`hf-elastic export` with data: what each file is worth, limits, calibration, one-line errors."""

import importlib.util
import json

import pytest
from tiny import WORDS, config_of, decisive, randomize, save_tokenizer
from transformers import AutoModelForSequenceClassification

from hf_elastic import ElasticForSequenceClassification
from hf_elastic.cli.main import main
from hf_elastic.export.scoring import HeldOut


@pytest.fixture(scope="module")
def elastic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elastic")
    save_tokenizer(folder / "model")
    stock = decisive(
        randomize(AutoModelForSequenceClassification.from_config(config_of("bert", num_labels=2, num_hidden_layers=2)))
    )
    model = ElasticForSequenceClassification.from_base(stock, space={"num_hidden_layers": [1, 2]})
    model.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 24), ("dev", 16)):
        rows = [f"{i % 2}\t{WORDS[i % 2]} {WORDS[2 + i % 50]}\t{WORDS[3 + i % 40]}" for i in range(count)]
        (folder / f"{split}.tsv").write_text("\n".join(["label\tsentence1\tsentence2", *rows]) + "\n")
    return folder


def test_the_table_says_what_each_file_is_worth(elastic, data, tmp_path, capsys):
    options = ["--dataset", str(data), "--max_eval_rows", "12", "--calibration_rows", "4", "--max_accuracy_drop", "100"]
    formats = ["--formats", "safetensors", "onnx-int8", "onnx-int8-static", "--cpu_instructions", "avx2"]
    assert main(["export", "--model", str(elastic), "--output_dir", str(tmp_path / "out"), *options, *formats]) == 0
    printed = capsys.readouterr().out
    assert "12 rows of" in printed
    for name in ("full size, torch", "this size, torch", "safetensors", "onnx-int8", "onnx-int8-static"):
        assert name in printed
    record = json.loads((tmp_path / "out" / "onnx-int8-static" / "parity.json").read_text())
    assert record["held_out"]["rows"] == 12
    assert record["held_out"]["max_accuracy_drop"] == 100
    assert record["quantization"]["cpu_instructions"] == "avx2"


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.slow
def test_tensorrt_is_scored_on_the_cpu_and_not_timed(precision, elastic, data, tmp_path, capsys, monkeypatch):
    options = ["--dataset", str(data), "--calibration_rows", "4", "--formats", "tensorrt", "--precision", precision]
    options += ["--max_sequence_length", "16", "--max_batch_size", "5", "--max_accuracy_drop", "100"]
    assert main(["export", "--model", str(elastic), "--output_dir", str(tmp_path / "out"), *options]) == 0
    printed = capsys.readouterr().out
    assert "16 rows of" in printed and "points lost" in printed and " ms [" not in printed
    record = json.loads((tmp_path / "out" / "tensorrt" / "parity.json").read_text())
    assert record["held_out"]["rows"] == 16 and record["size_mb"] > 0
    assert "accuracy" in record["held_out"]["file"] and "latency" not in record
    accuracies = iter((0.9, 0.5))  # of the view, and of the file
    monkeypatch.setattr(HeldOut, "score", lambda *_args: {"accuracy": next(accuracies)})
    refused = ["export", "--model", str(elastic), "--output_dir", str(tmp_path / "no"), *options[:-1], "1"]
    assert main(refused) == 2
    assert "40.00 points; max_accuracy_drop is 1" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_calibration_of_its_own(elastic, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(f"{word} first" for word in WORDS))
    options = ["--calibration", str(tmp_path / "texts.txt"), "--calibration_rows", "5", "--formats", "onnx-int8-static"]
    assert main(["export", "--model", str(elastic), "--output_dir", str(tmp_path / "out"), *options]) == 0
    assert "held_out" not in json.loads((tmp_path / "out" / "onnx-int8-static" / "parity.json").read_text())


BAD = {
    "wrong columns": (["--formats", "onnx-int8-static", "--calibration", "{wrong}"], "calibration: no text to calibrate with: "),
    "no such calibration": (["--formats", "onnx-int8-static", "--calibration", "{wrong}/none.txt"], "none.txt"),
    "fallback without limit": (["--formats", "onnx-int8", "--fallback", "float"], "it needs max_accuracy_drop"),
    "rows": (
        ["--formats", "onnx-int8", "--dataset", "{data}", "--max_eval_rows", "0"],
        "max_eval_rows must be an integer of at least 1, got 0",
    ),
    "build true": (["--build", "true", "--formats", "tensorrt"], "build: neither tensorrt nor onnxruntime's"),
    "build of another": (["--build", "--formats", "onnx"], "build: an option of tensorrt; formats: onnx"),
    "no such data": (["--formats", "onnx-int8", "--dataset", "none", "--data_dir", "{data}"], "data_dir: no none in"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(elastic, data, tmp_path, capsys, case):
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for split in ("train", "dev"):
        (wrong / f"{split}.csv").write_text("label,number\n0,1\n1,2\n")
    arguments, message = BAD[case]
    if "neither tensorrt" in message and importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed")
    arguments = [one.format(wrong=wrong, data=data) for one in arguments]
    assert main(["export", "--model", str(elastic), "--output_dir", str(tmp_path / "out"), *arguments]) == 2
    # Of reading files the libraries show progress before.
    *_, printed = capsys.readouterr().err.strip().splitlines()
    assert printed.startswith("hf-elastic: error: ")
    assert message in printed
    assert not (tmp_path / "out").exists()

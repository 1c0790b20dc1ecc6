"""Where the commands write: never over what they read, never half, and only over what is theirs."""

import json
import os
import resource
import shutil
import subprocess
import sys

import pytest

from hf_elastic.cli.main import main

SPACE = '{"num_hidden_layers": [1, 2], "intermediate_size": [16, 48]}'


def state(folder):
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def copies(stock, elastic, data, tmp_path):
    """Copies of all inputs that may be lost, in one folder."""
    for name, folder in (("stock", stock), ("elastic", elastic), ("data", data)):
        shutil.copytree(folder, tmp_path / "all" / name)
    (tmp_path / "all" / "space.json").write_text(SPACE)
    return tmp_path / "all"


COMMANDS = {
    "convert": ["convert", "--model", "{all}/stock", "--space", "{all}/space.json"],
    "train": ["train", "--model", "{all}/elastic", "--dataset", "{all}/data", "--teacher", "{all}/stock"],
    "search": ["search", "--model", "{all}/elastic", "--dataset", "{all}/data"],
    "export": ["export", "--model", "{all}/elastic", "--dataset", "data", "--data_dir", "{all}"],
    "quickstart": ["quickstart", "--model", "{all}/stock", "--dataset", "{all}/data"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_output_over_an_input(command, copies, tmp_path, capsys):
    arguments = [argument.format(all=copies) for argument in COMMANDS[command]]
    inputs = [argument for argument in arguments if argument.startswith(str(copies)) and os.path.isdir(argument)]
    (tmp_path / "link").symlink_to(copies)
    before = state(copies)
    for output in {*inputs, str(copies), str(tmp_path / "link"), str(tmp_path)}:
        assert main([*arguments, "--output_dir", output, "--overwrite", "true"]) == 2
        error = capsys.readouterr().err
        assert f"error: output_dir: {output} " in error and error.count("\n") == 1, error
    assert state(copies) == before


def test_no_output_over_the_recipe_or_the_base_of_an_adapter(copies, tmp_path, capsys):
    (copies / "data" / "recipe.yaml").write_text(f"model: {copies}/stock\nspace: {copies}/space.json\n")
    command = ["convert", str(copies / "data" / "recipe.yaml"), "--output_dir", str(copies / "data"), "--overwrite", "true"]
    assert main(command) == 2 and "contains the recipe" in capsys.readouterr().err
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(copies / "elastic")}))
    command = ["export", "--model", str(tmp_path / "adapter"), "--output_dir", str(copies / "elastic"), "--overwrite", "true"]
    assert main(command) == 2 and "is the base of the adapter" in capsys.readouterr().err


def test_export_in_python_keeps_what_the_model_was_read_from(copies):
    from hf_elastic import ElasticForSequenceClassification, export_subnet
    from hf_elastic.core.errors import UserError

    before = state(copies)
    for model in (
        ElasticForSequenceClassification.from_pretrained(copies / "elastic"),
        ElasticForSequenceClassification.from_base(copies / "stock", space=json.loads(SPACE)),
    ):
        for output in (copies / ("elastic" if model.name_or_path else "stock"), copies):
            with pytest.raises(UserError, match=r"output_dir: .* the folder of the "):
                export_subnet(model, None, output, overwrite=True)
    assert state(copies) == before


def test_a_file_of_another_kind_is_not_replaced(copies, tmp_path, capsys):
    """Of `measure` and `evaluate`, which write one file."""
    config = copies / "elastic" / "config.json"
    before = config.read_bytes()
    assert main(["measure", "--model", str(copies / "elastic"), "--output", str(config), "--overwrite", "true"]) == 2
    assert "is not a device profile" in capsys.readouterr().err and config.read_bytes() == before
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {copies}/elastic\n")
    assert main(["measure", str(recipe), "--output", str(recipe), "--overwrite", "true"]) == 2
    assert "is the recipe" in capsys.readouterr().err and recipe.exists()


def test_overwrite_replaces_what_was_exported_and_nothing_else(elastic, tmp_path, capsys):
    command = ["export", "--model", str(elastic), "--output_dir", str(tmp_path / "out"), "--overwrite", "true"]
    assert main([*command, "--formats", "safetensors", "onnx"]) == 0
    assert main([*command, "--subnet", "small"]) == 0
    assert not (tmp_path / "out" / "onnx").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 1
    (tmp_path / "out" / "notes.txt").write_text("mine")
    before = state(tmp_path / "out")
    assert main(command) == 2 and "has not written there (notes.txt)" in capsys.readouterr().err
    assert state(tmp_path / "out") == before


def test_a_limit_on_the_size_of_files_is_one_line(stock, tmp_path):
    command = [sys.executable, "-m", "hf_elastic.cli.main", "convert", "--model", stock, "--space", SPACE]
    command += ["--output_dir", tmp_path / "a" / "out"]
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    errors = [line for line in done.stderr.splitlines() if "hf-elastic" in line]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert len(errors) == 1 and f"the disk of {tmp_path / 'a' / 'out'} is full; nothing was written" in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_a_search_with_its_own_storage_goes_on(elastic, data, tmp_path, capsys):
    options = ["--model", str(elastic), "--dataset", str(data), "--objectives", "accuracy", "parameters", "--max_length", "8"]
    command = ["search", *options, "--output_dir", str(tmp_path / "out")]
    for trials, found in (("3", 3), ("5", 5)):
        assert main([*command, "--storage", str(tmp_path / "trials.db"), "--n_trials", trials]) == 0
        assert len(json.loads((tmp_path / "out" / "frontier.json").read_text())["points"]) == found
    before = state(tmp_path / "out")
    assert main([*command, "--storage", str(tmp_path / "other.db"), "--n_trials", "3"]) == 2
    assert "is not empty" in capsys.readouterr().err and state(tmp_path / "out") == before


def test_two_trainings_at_once(elastic, data, tmp_path, capsys):
    from hf_elastic.utils.folders import claimed

    command = ["train", "--model", str(elastic), "--dataset", str(data), "--output_dir", str(tmp_path / "out")]
    with claimed(tmp_path / "out"):
        assert main([*command, "--use_cpu", "true", "--max_steps", "1"]) == 2
    assert "another process is writing to" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_files_may_be_read_by_all_who_may_read_new_files(elastic, data, tmp_path):
    options = ["--use_cpu", "true", "--max_steps", "1", "--max_length", "8", "--save_strategy", "no", "--report_to", "none"]
    command = ["train", "--model", str(elastic), "--dataset", str(data), "--output_dir", str(tmp_path / "trained"), *options]
    assert main(command) == 0
    (tmp_path / "new").touch()
    for folder in (elastic, tmp_path / "trained"):
        assert {path.stat().st_mode for path in folder.glob("*.*") if path.is_file()} == {(tmp_path / "new").stat().st_mode}

"""The launch files with real `accelerate launch` processes on CPU, one and two machines (both this one)."""

import json
import socket
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from launching import ROOT, launch, start, wait
from tiny import WORDS, config_of, save_tokenizer
from transformers import AutoModelForSequenceClassification
from worker import make_model

from hf_elastic import ElasticTrainer, ElasticTrainingArguments
from hf_elastic.cli.main import main
from hf_elastic.core.errors import UserError

FOLDER = ROOT / "recipes" / "launch"


def command(file: str, recipe: Path, *options: str, arguments: tuple = ()) -> list[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / file), *options]
    return [*launcher, "-m", "hf_elastic.cli.main", "train", str(recipe), *arguments]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A tiny elastic model, its data and a training recipe."""
    folder = tmp_path_factory.mktemp("launch")
    stock, elastic, data = folder / "stock", folder / "elastic", folder / "data"
    data.mkdir()
    save_tokenizer(stock)
    AutoModelForSequenceClassification.from_config(config_of("bert", num_labels=2)).save_pretrained(stock)
    for split, count in (("train", 64), ("dev", 32)):
        rows = [f"{i % 2}\t{WORDS[i % 2]} {WORDS[2 + i % 50]}" for i in range(count)]
        (data / f"{split}.tsv").write_text("\n".join(["label\tsentence", *rows]) + "\n")
    space = json.dumps({"num_hidden_layers": [1, 2, 4], "intermediate_size": [16, 48]})
    assert main(["convert", "--model", str(stock), "--output_dir", str(elastic), "--space", space, "--num_labels", "2"]) == 0
    options = {"model": str(elastic), "dataset": str(data), "max_length": 8, "max_steps": 4, "use_cpu": True}
    options |= {"per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 2, "disable_tqdm": True}
    (folder / "train.yaml").write_text(yaml.safe_dump(options))
    return folder / "train.yaml"


@pytest.mark.parametrize("file", ["ddp.yaml", "fsdp2.yaml"])
def test_accelerate_reads_the_file(file):
    config = ClusterConfig.from_yaml_file(str(FOLDER / file))
    assert config.num_machines == 1 and config.machine_rank == 0 and not config.use_cpu
    if file == "fsdp2.yaml":
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_auto_wrap_policy"] == "NO_WRAP"
        assert config.fsdp_config["fsdp_cpu_ram_efficient_loading"] is False


@pytest.mark.parametrize("line", [line for line in (FOLDER / "README.md").read_text().splitlines() if "--config_file" in line])
def test_the_readme_names_files_that_exist(line):
    words = line.split()
    assert (ROOT / words[words.index("--config_file") + 1]).is_file()


@pytest.mark.slow
def test_two_processes_on_one_machine(recipe, tmp_path):
    """One process alone writes the results."""
    out = str(tmp_path / "out")
    status, printed = launch(command("ddp.yaml", recipe, "--num_processes", "2", arguments=("--output_dir", out)))
    assert status == 0, printed[-4000:]
    assert "eval_smallest_accuracy" in json.loads((tmp_path / "out" / "metrics.json").read_text())
    checkpoint = tmp_path / "out" / "checkpoint-4"
    assert {"sampler.json", "rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in checkpoint.iterdir()}
    # 4 steps of 2 processes x 4 rows of 64.
    assert json.loads((checkpoint / "trainer_state.json").read_text())["epoch"] == 0.5
    assert not list((tmp_path / "out").glob(".partial*"))


def test_fsdp_asked_for_by_the_launcher_is_refused_on_a_cpu(tmp_path, monkeypatch):
    """`accelerate launch` says so in the environment, not in the arguments."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="fsdp: accelerate would silently use NO here; FSDP needs several accelerators"):
        ElasticTrainer(model=make_model("classifier"), args=ElasticTrainingArguments(str(tmp_path), use_cpu=True, report_to=[]))


@pytest.mark.slow
def test_two_machines(recipe, tmp_path):
    """Both are this one: each starts its own launcher, and they meet at a port."""
    meeting = ("--num_machines", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port()))
    arguments = ("--output_dir", str(tmp_path / "out"))
    machines = [
        start(command("ddp.yaml", recipe, *meeting, "--machine_rank", rank, "--num_processes", "2", arguments=arguments))
        for rank in ("0", "1")
    ]
    try:
        for machine in machines:
            status, printed = wait(machine)
            assert status == 0, printed[-4000:]
    finally:
        for machine in machines:
            wait(machine)
    assert json.loads((tmp_path / "out" / "checkpoint-4" / "trainer_state.json").read_text())["epoch"] == 0.5
    assert (tmp_path / "out" / "metrics.json").is_file()

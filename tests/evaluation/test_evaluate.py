"""`hf-elastic evaluate`: sizes, exports, resuming, the table, and one-line errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'hf-elastic[evaluate]'")

import torch
from made_up import ITEMS, tokenizer, write_all
from transformers import AutoConfig, AutoModelForCausalLM

from hf_elastic import ElasticForCausalLM
from hf_elastic.cli.main import main
from hf_elastic.evaluation import task_names
from hf_elastic.evaluation.candidates import Candidate, elastic_candidates, torch_call
from hf_elastic.evaluation.harness import CandidateLM, load_task, run_task
from hf_elastic.evaluation.suite import find_tasks

RECIPE = Path(__file__).parents[2] / "recipes" / "gpt2" / "wikitext2" / "evaluate.yaml"
DATA_DIR = os.environ.get("HF_ELASTIC_DATA_DIR")
needs_data = pytest.mark.skipif(
    DATA_DIR is None, reason="HF_ELASTIC_DATA_DIR is not set; it names a folder with zeroshot/*.jsonl.gz"
)
PER_LAYER = {"intermediate_size": [16, 48, 48, 16]}
CHOOSING = [name for name in task_names() if name not in ("lambada_openai", "triviaqa")]


def run(model, data, output, *options) -> dict:
    shared = ["--model", str(model), "--data_dir", str(data), "--output", str(output), "--threads", "1"]
    assert main(["evaluate", *shared, "--sequence_length", "16", *options]) == 0
    return json.loads(output.read_text())


def scores_of(results: dict, size: str) -> dict:
    return {name: score["metrics"] for name, score in results["sizes"][size]["scores"].items()}


def test_all_tasks_on_named_sizes(elastic, data, tmp_path, capsys):
    results = run(elastic, data, tmp_path / "results.json")
    printed = capsys.readouterr().out
    assert list(results["sizes"]) == ["largest", "smallest", "small"]
    model = ElasticForCausalLM.from_pretrained(elastic)
    for name, size in results["sizes"].items():
        assert sorted(size["scores"]) == task_names() and size["parameters"] == model.num_parameters_of(name)
        values = [score["value"] for score in size["scores"].values()]
        assert size["average"]["value"] == pytest.approx(sum(values) / len(values)) and size["average"]["stderr"] > 0
        assert all(score["items"] == ITEMS for score in size["scores"].values())
        assert size["latency"]["median_ms"] > 0 and name in printed
    assert results["target"]["sequence_length"] == 16 and {"torch", "lm_eval", "transformers"} <= results["versions"].keys()
    assert results["identity"]["num_fewshot"] == 0 and results["tasks"]["copa"]["chance"] == 0.5
    assert results["average_of_chance"]["value"] == pytest.approx((0.2 + 5 * 0.25 + 6 * 0.5) / 14)
    assert "chance" in printed and all(name in printed for name in task_names()) and "±" in printed
    numbers = [scores_of(results, size) for size in results["sizes"]]
    assert numbers[0] != numbers[1] and numbers[0] != numbers[2]


def test_one_shot_by_recipe_style_lists(elastic, data, tmp_path):
    zero = run(elastic, data, tmp_path / "zero.json", "--tasks", *CHOOSING, "--subnets", "largest", "--latency", "false")
    one = run(elastic, data, tmp_path / "one.json", "--tasks", ",".join(CHOOSING), "--subnets", "largest", "--num_fewshot", "1")
    assert scores_of(zero, "largest") != scores_of(one, "largest")
    assert zero["sizes"]["largest"]["latency"] is None and one["identity"]["num_fewshot"] == 1


def test_a_view_scores_as_its_extracted_and_exported_size(elastic, exported, data, tmp_path):
    """The same numbers from the view in the supernet, the stock checkpoint and the graph; and the same parameters."""
    tasks = ["--tasks", *CHOOSING, "lambada_openai"]
    view = run(elastic, data, tmp_path / "view.json", *tasks, "--subnets", "small")["sizes"]["small"]
    stock = run(exported, data, tmp_path / "stock.json", *tasks)["sizes"]["full"]
    graph = run(exported / "onnx", data, tmp_path / "graph.json", *tasks)["sizes"]["onnx"]
    assert view["scores"] == stock["scores"] == graph["scores"]
    assert view["parameters"] == stock["parameters"] == graph["parameters"]
    assert graph["latency"]["median_ms"] > 0


@pytest.mark.slow
def test_an_openvino_export(elastic, data, tmp_path):
    """Scores of the view, but for rounding, and not those of another size."""
    pytest.importorskip("openvino", reason="needs openvino")
    options = ["--subnet", "small", "--output_dir", str(tmp_path / "out"), "--formats", "openvino"]
    assert main(["export", "--model", str(elastic), *options]) == 0
    tasks = ["--tasks", "copa,piqa,lambada_openai"]
    view = run(elastic, data, tmp_path / "view.json", *tasks, "--subnets", "small")["sizes"]["small"]
    graph = run(tmp_path / "out" / "openvino", data, tmp_path / "graph.json", *tasks)["sizes"]["openvino"]
    assert graph["scores"] == view["scores"] and graph["parameters"] == view["parameters"]
    assert graph["latency"]["median_ms"] > 0


def test_transformer_xl(data, tmp_path):
    """A stock model of our own, with adaptive embeddings."""
    shape = {"d_model": 32, "d_embed": 32, "n_layer": 2, "n_head": 2, "d_head": 16, "d_inner": 32, "mem_len": 16, "cutoffs": []}
    config = AutoConfig.for_model("transformer_xl", vocab_size=99, div_val=1, eos_token_id=2, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    results = run(tmp_path / "model", data, tmp_path / "results.json", "--tasks", "copa,lambada_openai,triviaqa")
    assert len(results["sizes"]["full"]["scores"]) == 3 and results["sizes"]["full"]["latency"]["median_ms"] > 0


def test_likelihoods_of_views(elastic, data):
    """Of one copy of the weights, which lm-eval leaves as they are; equal to those of the extracted size."""
    model = ElasticForCausalLM.from_pretrained(elastic)
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    candidates = elastic_candidates(model, ["largest", "small", PER_LAYER])
    assert [size.name for size in candidates.sizes] == ["largest", "small", json.dumps(PER_LAYER)]
    task = load_task(find_tasks(["piqa"], data)[0])
    task.build_all_requests(limit=None)
    found = {}
    for size in candidates.sizes:
        found[size.name] = CandidateLM(size, tokenizer(), 4).loglikelihood(task.instances)
        tied = size.model.lm_head.weight.data_ptr() == size.model.transformer.wte.weight.data_ptr()
        assert tied and size.model.lm_head.weight.data_ptr() == model.base.lm_head.weight.data_ptr()
    assert len({str(values) for values in found.values()}) == 3
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == before[name][0] and torch.equal(tensor, before[name][1])
    small = model.extract("small")
    extracted = CandidateLM(Candidate("small", None, 0, small, True, torch_call(small)), tokenizer(), 4)
    assert extracted.loglikelihood(task.instances) == found["small"]


@pytest.mark.slow
def test_frozen_exports(elastic, data, tmp_path):
    options = ["--tasks", "copa,triviaqa", "--latency", "false"]
    size, folder = json.dumps(PER_LAYER), tmp_path / "frozen"
    view = run(elastic, data, tmp_path / "view.json", *options, "--subnets", size)["sizes"][size]
    formats = ["--output_dir", str(folder), "--formats", "safetensors", "onnx"]
    assert main(["export", "--model", str(elastic), "--subnet", size, *formats]) == 0
    frozen = run(folder, data, tmp_path / "frozen.json", *options)["sizes"]["largest"]
    assert frozen["scores"] == view["scores"] and frozen["parameters"] == view["parameters"]
    graph = run(folder / "onnx", data, tmp_path / "graph.json", "--tasks", "copa", "--latency", "false")["sizes"]["onnx"]
    assert graph["scores"]["copa"] == view["scores"]["copa"] and graph["parameters"] == view["parameters"]


def test_an_interrupted_evaluation_goes_on(elastic, data, tmp_path, monkeypatch, capsys):
    """What is scored is on disk, the same command scores the rest, and more tasks can be added."""
    command = ["evaluate", "--model", str(elastic), "--data_dir", str(data), "--tasks", "copa,piqa", "--latency", "false"]
    whole, output = tmp_path / "whole.json", tmp_path / "results.json"
    assert main([*command, "--output", str(whole)]) == 0
    calls = []

    def interrupted(file, task, model, limit):
        calls.append(file.name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return run_task(file, task, model, limit)

    monkeypatch.setattr(sys.modules["hf_elastic.evaluation.evaluate"], "run_task", interrupted)
    assert main([*command, "--output", str(output)]) == 130
    assert "The same command goes on where it was." in capsys.readouterr().err
    scores = [size["scores"] for size in json.loads(output.read_text())["sizes"].values()]
    assert [sorted(found) for found in scores] == [["copa", "piqa"], ["copa"], ["copa"]]
    assert main([*command, "--output", str(output)]) == 0
    assert calls[5:] == ["piqa", "piqa"]
    assert json.loads(output.read_text())["sizes"] == json.loads(whole.read_text())["sizes"]
    assert main([*command, "--output", str(output)]) == 0
    assert len(calls) == 7
    assert main([*command, "--output", str(output), "--tasks", "copa,siqa"]) == 0
    assert calls[7:] == ["siqa"] * 3


@pytest.mark.slow
def test_a_killed_process_goes_on(elastic, data, tmp_path):
    output = tmp_path / "results.json"
    options = ["--model", elastic, "--data_dir", data, "--output", output, "--latency", "false", "--subnets", "largest"]
    command = [sys.executable, "-m", "hf_elastic.cli.main", "evaluate", *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 300
    while not output.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130 and "The same command goes on" in error and "Traceback" not in error, error
    done = json.loads(output.read_text())["sizes"]["largest"]["scores"]
    assert 0 < len(done) < 14
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "arc_challenge (1 of 14), largest" not in again.stderr, again.stderr
    assert len(json.loads(output.read_text())["sizes"]["largest"]["scores"]) == 14


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num_fewshot", "1"], "num_fewshot was 0, is 1"),
        (["--limit", "3"], "limit was None, is 3"),
        (["--model", "{exported}"], "model was '"),
    ],
)
def test_results_of_something_else_are_refused(options, message, elastic, exported, data, tmp_path, capsys):
    output = tmp_path / "results.json"
    run(elastic, data, output, "--tasks", "copa", "--latency", "false")
    before = output.read_bytes()
    command = ["evaluate", "--model", str(elastic), "--data_dir", str(data), "--output", str(output), "--tasks", "copa"]
    changed = [option.format(exported=exported) for option in options]
    assert main([*command, *changed]) == 2
    assert message in capsys.readouterr().err and output.read_bytes() == before
    assert main([*command, *changed, "--overwrite", "true", "--latency", "false"]) == 0


def test_other_data_is_refused(elastic, data, tmp_path, capsys):
    run(elastic, data, tmp_path / "results.json", "--tasks", "copa", "--latency", "false")
    write_all(tmp_path, seed=1)
    command = ["evaluate", "--model", str(elastic), "--data_dir", str(tmp_path), "--output", str(tmp_path / "results.json")]
    assert main([*command, "--tasks", "copa", "--latency", "false"]) == 2
    assert "holds other results (digest was" in capsys.readouterr().err


def test_help_and_recipe(data, tmp_path, capsys):
    assert main(["--help"]) == 0
    assert "evaluate" in capsys.readouterr().out
    output = tmp_path / "out.json"
    assert main(["evaluate", str(RECIPE), "--data_dir", str(data), "--dry_run", "true", "--output", str(output)]) == 0
    assert not output.exists()


@needs_data
def test_real_data(elastic, tmp_path, capsys):
    """Every file is what its task expects; a random model is somewhere near chance."""
    options = ["--limit", "4", "--num_fewshot", "1", "--subnets", "largest", "smallest", "--latency", "false"]
    results = run(elastic, DATA_DIR, tmp_path / "results.json", *options)
    for size in results["sizes"].values():
        assert sorted(size["scores"]) == task_names() and 0 <= size["average"]["value"] <= 1
    chances = {name: task["chance"] for name, task in results["tasks"].items()}
    assert {name for name, value in chances.items() if value == 0.5} == {"boolq", "copa", "piqa", "siqa", "winogrande", "wsc273"}
    assert {name for name, value in chances.items() if value == 0} == {"lambada_openai", "triviaqa"}
    assert {name for name, value in chances.items() if value == 0.25} == {
        "arc_challenge", "arc_easy", "commonsense_qa", "hellaswag", "logiqa", "openbookqa",
    }  # fmt: skip

"""Several processes train what one trains: real processes on CPU, weights compared after twenty steps."""

import json
from pathlib import Path

import pytest
import torch
from launching import record, run_cases
from worker import make_arguments, make_model, run_case

from hf_elastic import ElasticTrainer
from hf_elastic.training.distributed import check_arguments
from hf_elastic.training.lora import add_lora

FSDP = {"fsdp": "full_shard", "fsdp_config": {"version": 2}}
SHARDED = {"fsdp": "full_shard", "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}}
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-3}
ACCUMULATE = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
TOLERANCE = 1e-5
ALONE: dict[str, Path] = {}

# What both ways of spreading a model have to get right.
SHARED = {
    "plain": {"evaluate": True, "save": True, "args": {"eval_strategy": "steps", "eval_steps": 8}},
    "masked": {"kind": "masked", "args": ACCUMULATE},
    "causal": {"kind": "causal", "args": ACCUMULATE},
    "dealt": {"kind": "masked", "args": {**ACCUMULATE, "num_random_subnets": 2, "split_random_rows": 2}},
    "relation": {"args": {"distillation": {"relation": 0.5, "hidden": 0.5}, "relation_heads": 4}},
    "teacher": {"teacher": True, "args": {"distillation": {"logits": 0.5, "hidden": 0.5}}},
    "single_path": {"args": {"sampling": "single_path", **ACCUMULATE}},
    "lora": {"lora": {"r": 4, "init_lora_weights": False}},
}
DDP_ONLY = {
    "chain": {"args": {"sampling": "single_path", "train_subnets": ["half"]}},
    "progressive": {"args": {"sampling": "progressive"}},
    "checkpointing": {"args": {"gradient_checkpointing": True}},
    "one size, checkpointing": {"args": {"gradient_checkpointing": True, "sampling": "single_path"}},
    "few labels": {"kind": "masked", "unlabelled": True},
    "blocks": {"kind": "blocks", "args": {"sampling": "single_path"}},
    "projected": {
        "kind": "blocks",
        "all_labelled": True,
        "teacher": {"model_type": "bert", "hidden_size": 24},
        "args": {"sampling": "single_path", "distillation": {"hidden": 0.5}, **ACCUMULATE},
    },
}
STOPPED = {
    "unused": {"args": {"sampling": "single_path", "ddp_find_unused_parameters": False}},
    "not finite": {"poison": True},
    "surgery": {"args": {"gradient_surgery": "pcgrad"}},
    "on CPU": {"args": FSDP, "plain_cpu": True},
    "blocks of all": {"kind": "blocks"},
}
REFUSED = {
    "version 1": ({"fsdp": "full_shard", "fsdp_config": {"version": 1}}, "FSDP version 1 flattens weights"),
    "layers": (
        {"fsdp": "full_shard", "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]}},
        "a smaller size never calls; FSDP version 2 over the whole model works",
    ),
    "policy": (
        {"fsdp": "full_shard", "fsdp_config": {"version": 2, "auto_wrap_policy": "SIZE_BASED_WRAP"}},
        "FSDP that wraps single layers",
    ),
    "one loads": (
        {"fsdp": "full_shard", "fsdp_config": {"version": 2, "cpu_ram_efficient_loading": True}},
        "every process needs the weights",
    ),
    "activations": (
        {"fsdp": "full_shard", "fsdp_config": {"version": 2, "activation_checkpointing": True}},
        "use gradient_checkpointing",
    ),
}


def in_one_process(case: dict, folder: Path) -> Path:
    """Train a case here with the whole batch; the folder of its results."""
    args = {key: value for key, value in case.get("args", {}).items() if key not in FSDP}
    args["per_device_train_batch_size"] = 2 * args.get("per_device_train_batch_size", 4)
    args["per_device_train_batch_size"] *= args.pop("gradient_accumulation_steps", 1)
    case = {**case, "args": args, "save": False}
    key = json.dumps(case, sort_keys=True)
    if key not in ALONE:  # both ways of spreading a model are compared with it
        run_case(case, folder)
        ALONE[key] = folder
    return ALONE[key]


def assert_same(ours: dict, theirs: dict, tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    differences = {name: float((ours[name] - theirs[name]).abs().max()) for name in ours}
    assert max(differences.values()) <= tolerance, max(differences, key=differences.get)


def check_case(name: str, case: dict, folder: Path, once: int) -> None:
    """Two processes against one: weights, sizes drawn, reductions, metrics, logs."""
    first, second = record(folder / name, 0), record(folder / name, 1)
    assert "error" not in first, f"{name}: {first['error']}"
    one = in_one_process(case, folder / "one" / name)
    assert_same(torch.load(folder / name / "weights.pt"), torch.load(one / "weights.pt"), TOLERANCE)
    alone = record(one)
    assert first["drawn"] == second["drawn"]
    # Alone the largest comes first; everything else is in the same order.
    steps = case.get("args", {}).get("gradient_accumulation_steps", 1)
    assert [sorted(map(str, sizes)) for sizes in first["drawn"][::steps]] == [sorted(map(str, x)) for x in alone["drawn"]]
    assert first["reduced"] == [once] * 20
    for key, value in alone.get("metrics", {}).items():
        if key.endswith(("loss", "accuracy")):
            assert first["metrics"][key] == pytest.approx(value, abs=1e-5), key
    for entry, theirs in zip(first["log"], alone["log"]):
        for key in [key for key in theirs if key.startswith("loss_") or key.endswith("_loss")]:
            assert entry[key] == pytest.approx(theirs[key], abs=2e-4), key  # logs have four digits


def check_ddp(names, cases: dict[str, dict], folder: Path) -> None:
    """Train cases with DDP, and compare those named with one process."""
    status, printed = run_cases(folder, cases)
    assert status == 0, printed[-4000:]
    for name in names:
        model = make_model(cases[name].get("kind", "classifier"))
        if "lora" in cases[name]:
            model = add_lora(model, cases[name]["lora"])
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        check_case(name, cases[name], folder, once=trained)


def test_two_processes_equal_one_or_stop(tmp_path):
    check_ddp(["plain"], {"plain": SHARED["plain"], **STOPPED}, tmp_path)
    largest_last = [[role for role, _ in sizes] for sizes in record(tmp_path / "plain")["drawn"]]
    assert all(roles == ["random", "smallest", "largest"] for roles in largest_last)
    for rank in (0, 1):
        errors = {name: record(tmp_path / name, rank)["error"] for name in STOPPED}
        assert "leaves the parameters outside its size without a gradient" in errors["unused"]
        assert "the loss is nan at step" in errors["not finite"] and "{'num_hidden_layers'" in errors["not finite"]
        assert "run them in one process" in errors["surgery"]
        assert "accelerate would silently use MULTI_CPU" in errors["on CPU"]
        assert "which has one block_type in each layer, and those of the others would stay apart" in errors["blocks of all"]
    assert record(tmp_path / "not finite", 0)["error"] == record(tmp_path / "not finite", 1)["error"]


@pytest.mark.slow
def test_ddp_equals_one_process(tmp_path):
    cases = {name: case for name, case in {**SHARED, **DDP_ONLY}.items() if name != "plain"}
    check_ddp(cases, cases, tmp_path)


@pytest.mark.slow
def test_fsdp_equals_one_process(tmp_path):
    sharded = {name: {**case, "args": {**case.get("args", {}), **FSDP}} for name, case in SHARED.items()}
    saves = {"save_strategy": "steps", "save_steps": 10}
    resumed = {}
    for name, kind, fsdp in (("full", "causal", FSDP), ("parts", "masked", SHARDED)):
        args = {**ADAM, **fsdp}
        resumed[name] = {"kind": kind, "dropout": 0.1, "save": True, "args": {**args, **saves}}
        checkpoint = str(tmp_path / name / "run" / "checkpoint-10")
        resumed[f"{name} again"] = {"kind": kind, "dropout": 0.1, "resume": checkpoint, "args": args}
    refused = {name: {"args": args} for name, (args, _) in REFUSED.items()}
    status, printed = run_cases(tmp_path, {**sharded, **resumed, **refused})
    assert status == 0, printed[-4000:]
    for name, case in sharded.items():
        check_case(name, case, tmp_path, once=1)
    for name in ("full", "parts"):
        weights = torch.load(tmp_path / name / "weights.pt")
        assert_same(weights, torch.load(tmp_path / f"{name} again" / "weights.pt"), 0.0)
        kind = resumed[name]["kind"]
        loaded = type(make_model(kind)).from_pretrained(tmp_path / name / "saved")
        assert_same(loaded.state_dict(), weights, 0.0)
        auto_map = json.loads((tmp_path / name / "saved" / "config.json").read_text())["auto_map"]
        assert f"modeling_elastic.{type(loaded).__name__}" in auto_map.values()
        assert (tmp_path / name / "saved" / "modeling_elastic.py").is_file()
    for name, (_, message) in REFUSED.items():
        assert all(message in record(tmp_path / name, rank)["error"] for rank in (0, 1)), name


def test_refused_without_processes(tmp_path):
    args = make_arguments(tmp_path, {})
    args._n_gpu = 2
    with pytest.raises(ValueError, match="2 GPUs in one process"):
        check_arguments(args)
    args = make_arguments(tmp_path, {})
    args.deepspeed = {"zero_optimization": {"stage": 2}}
    with pytest.raises(ValueError, match="its engine steps once per backward"):
        ElasticTrainer(model=make_model("classifier"), args=args)


def test_no_view_of_sharded_weights():
    model = make_model("classifier")
    model.is_sharded = True
    with pytest.raises(ValueError, match="sharded over processes"):
        model.view("half")
    before = [parameter.data_ptr() for parameter in model.parameters()]
    model.set_memory_layout("prefix")
    # FSDP gathers into the storage that it knows.
    assert [parameter.data_ptr() for parameter in model.parameters()] == before

"""Growth is saved and resumed, after kill -9 and in several processes too."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from growing import CAP, GROWTH, SINGLE, SPACE, Stop, grow, supernet, trainer_of
from launching import record, run_cases
from worker import run_case

from hf_elastic.core.errors import UserError


def test_the_best_checkpoint_has_its_widths(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 10, "eval_strategy": "steps", "eval_steps": 10}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = trainer_of(supernet(), tmp_path, **saving, **best)
    trainer.train()
    folder = Path(trainer.state.best_model_checkpoint)
    assert folder.name != "checkpoint-60"
    config = json.loads((folder / "config.json").read_text())
    assert trainer.elastic.config.grown == config["grown"]
    assert trainer.sampler.growth.mean_size() < CAP


def test_another_recipe_is_not_resumed(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 10}
    trainer = trainer_of(supernet(), tmp_path, **saving)
    trainer.add_callback(Stop(10))
    trainer.train()
    for changes, message in (
        ({"growth_cap": 24_000}, r"checkpoint-10 was trained with growth_cap 23000, not 24000"),
        ({"growth_width": 4}, "was trained with growth_width 8, not 4"),
        ({"growth_variance": 0.9}, r"was trained with growth_variance 0\.99, not 0\.9"),
        ({"growth_need": "share"}, "was trained with growth_need components, not share"),
        ({name: None for name in ("growth_cap", "growth_width", "growth_steps", "growth_pairs")}, "growth_cap 23000; the same"),
    ):
        with pytest.raises(UserError, match=message):
            grow(supernet(), tmp_path, resume=True, **changes)
    again = grow(supernet(), tmp_path, resume=True)
    assert again.sampler.growth.is_done


KILLED = {"kind": "blocks", "model": {"space": SPACE, "subnets": {}}, "dropout": 0.1}


def case_in(folder: Path, **changes) -> dict:
    adam = {"optim": "adamw_torch", "learning_rate": 1e-3, "max_steps": 40}
    args = {**SINGLE, **GROWTH, **adam, "growth_cap": CAP, "save_strategy": "steps", "save_steps": 5}
    return {**KILLED, "args": {**args, "output_dir": str(folder / "run"), **changes.pop("args", {})}, **changes}


def difference(one: Path, other: Path) -> float:
    ours, theirs = torch.load(one / "weights.pt"), torch.load(other / "weights.pt")
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


@pytest.mark.slow
def test_killed_and_resumed(tmp_path):
    """Killed between two rounds; measurements since the last one are in the checkpoint, too."""
    killed = case_in(tmp_path, kill={"step": 23, "where": "step"})
    status, printed = run_cases(tmp_path, {"killed": killed}, processes=1)
    assert status == -signal.SIGKILL, printed[-4000:]
    state = json.loads((tmp_path / "run" / "checkpoint-20" / "sampler.json").read_text())["growth"]
    assert 0 < state["rounds"] < 6 and sum(count for _, count in state["measured"]) > 0
    run_case(case_in(tmp_path, resume=True), tmp_path / "resumed")
    run_case(case_in(tmp_path / "other"), tmp_path / "uninterrupted")
    resumed, whole = record(tmp_path / "resumed"), record(tmp_path / "uninterrupted")
    assert resumed["drawn"] == whole["drawn"][20:]
    assert resumed["grown"] == whole["grown"] and state["grown"] != whole["grown"]
    assert difference(tmp_path / "resumed", tmp_path / "uninterrupted") == 0.0


@pytest.mark.slow
def test_two_processes_grow_alike(tmp_path):
    """What both have measured decides, and a checkpoint holds the sum."""
    cases = {"whole": case_in(tmp_path, args={"save_steps": 3})}
    if transformers.__version__ >= "5":  # transformers 4.57 cannot load an optimizer in several processes on CPU: 'cpu:0'
        cases["resumed"] = case_in(tmp_path, resume=str(tmp_path / "run" / "checkpoint-21"), args={"save_steps": 3})
    status, printed = run_cases(tmp_path, cases)
    assert status == 0, printed[-4000:]
    first, second = (record(tmp_path / "whole", rank) for rank in (0, 1))
    assert "error" not in first
    assert first["grown"] == second["grown"] and first["drawn"] == second["drawn"]
    # Before the first round, at step 4, one checkpoint was written: it has what both had measured until then.
    own = [np.array(one["gathered"][0]) for one in (first, second)]
    assert not np.array_equal(*own)
    state = json.loads((tmp_path / "run" / "checkpoint-3" / "sampler.json").read_text())["growth"]
    assert np.array_equal(state["measured"], own[0] + own[1])
    if "resumed" in cases:
        assert record(tmp_path / "resumed")["grown"] == first["grown"]
        assert difference(tmp_path / "resumed", tmp_path / "whole") <= 1e-6

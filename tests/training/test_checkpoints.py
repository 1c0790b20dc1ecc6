"""Training that is killed with SIGKILL goes on as if nothing had happened."""

import signal
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import transformers
from launching import record, run_cases
from test_trainer import arguments, classifier, rows, train
from worker import make_arguments, make_model, make_rows, run_case

from hf_elastic import ElasticTrainer, Space
from hf_elastic.cli.train import TrainArguments, run
from hf_elastic.core.errors import UserError
from hf_elastic.training.checkpoints import SAMPLER_FILE, checkpoints, delete_old, is_complete, last_checkpoint

# Dropout and Adam: random numbers and the optimizer's state have to come back, too.
RUN = {"dropout": 0.1, "args": {"optim": "adamw_torch", "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 5}}


def case_in(folder: Path, **changes) -> dict:
    args = {**RUN["args"], "output_dir": str(folder / "run"), **changes.pop("args", {})}
    return {**RUN, "args": args, **changes}


def difference(one: Path, other: Path) -> float:
    ours, theirs = torch.load(one / "weights.pt"), torch.load(other / "weights.pt")
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(str(folder))]


@pytest.mark.parametrize("where", ["step", pytest.param("mark", marks=pytest.mark.slow)])
def test_killed_in_one_process(where, tmp_path):
    """Killed in the middle of the first epoch of 16 steps, after step 13 or while checkpoint 10 is written."""
    kill = {"step": 13 if where == "step" else 10, "where": where}
    limited = {"args": {"save_total_limit": 1}}
    status, printed = run_cases(tmp_path, {"killed": case_in(tmp_path, kill=kill, **limited)}, processes=1)
    assert status == -signal.SIGKILL, printed[-4000:]
    whole = [path.name for path in checkpoints(str(tmp_path / "run")) if is_complete(path)]
    # The one before is only deleted when the next one is whole.
    assert whole == (["checkpoint-10"] if where == "step" else ["checkpoint-5"])
    assert (where == "mark") == ("checkpoint-10" in names(tmp_path / "run") and "checkpoint-10" not in whole)
    run_case(case_in(tmp_path, resume=True, **limited), tmp_path / "resumed")
    assert record(tmp_path / "resumed")["log"][-1]["step"] == 20
    run_case(case_in(tmp_path / "other"), tmp_path / "uninterrupted")
    assert difference(tmp_path / "resumed", tmp_path / "uninterrupted") == 0.0
    assert names(tmp_path / "run") == ["checkpoint-20"]


@pytest.mark.slow
@pytest.mark.skipif(
    transformers.__version__ < "5", reason="transformers 4.57 cannot load an optimizer in several processes on CPU: 'cpu:0'"
)
def test_killed_in_two_processes(tmp_path):
    """The second dies before it has written its random numbers of step 15; an epoch has 8 steps."""
    killed = case_in(tmp_path, kill={"step": 15, "where": "save"})
    status, printed = run_cases(tmp_path, {"killed": killed})
    assert status != 0 and "SIGKILL" in printed
    assert Path(last_checkpoint(str(tmp_path / "run"))).name == "checkpoint-10"
    assert "checkpoint-15" in names(tmp_path / "run")
    cases = {"resumed": case_in(tmp_path, resume=True), "uninterrupted": case_in(tmp_path / "other")}
    status, printed = run_cases(tmp_path, cases)
    assert status == 0, printed[-4000:]
    assert record(tmp_path / "resumed", 1)["drawn"] == record(tmp_path / "uninterrupted", 1)["drawn"][10:]
    assert difference(tmp_path / "resumed", tmp_path / "uninterrupted") <= 1e-6


def test_checkpoints_come_and_go(tmp_path):
    for step in (5, 10, 15, 20, 25):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step not in (10, 25):
            (tmp_path / f"checkpoint-{step}" / SAMPLER_FILE).write_text("{}")
    (tmp_path / "checkpoint-best").mkdir()  # not one of ours
    assert Path(last_checkpoint(str(tmp_path))).name == "checkpoint-20"
    delete_old(str(tmp_path), None, None)
    assert len(names(tmp_path)) == 5
    delete_old(str(tmp_path), 2, str(tmp_path / "checkpoint-5"))
    # The best stays, the interrupted one before the last two goes, and the newest may still be in the making.
    assert names(tmp_path) == ["checkpoint-5", "checkpoint-15", "checkpoint-20", "checkpoint-25"]
    for path in checkpoints(str(tmp_path)):
        (path / SAMPLER_FILE).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="has no complete checkpoint"):
        last_checkpoint(str(tmp_path))


def test_a_checkpoint_that_is_written_again_is_not_whole(tmp_path):
    """A second run into the same folder must not trust what the first one marked."""
    args = make_arguments(tmp_path, {"max_steps": 2, "save_strategy": "steps", "save_steps": 2})
    trainer = ElasticTrainer(model=make_model("classifier"), args=args, train_dataset=make_rows("classifier"))
    trainer.train()
    folder = tmp_path / "run" / "checkpoint-2"
    assert is_complete(folder)

    def interrupted(output_dir):
        raise KeyboardInterrupt

    again = ElasticTrainer(model=make_model("classifier"), args=args, train_dataset=make_rows("classifier"))
    again._save_rng_state = interrupted
    with pytest.raises(KeyboardInterrupt):
        again.train()
    assert not is_complete(folder)


def test_a_checkpoint_of_another_space_or_none(tmp_path):
    model = classifier()
    train(model, arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=2))
    other = classifier()
    other.space = Space({"num_hidden_layers": [2, 4]})
    with pytest.raises(ValueError, match="was trained in another space"):
        train(other, arguments(tmp_path, max_steps=4), resume=str(tmp_path / "checkpoint-2"))
    (tmp_path / "checkpoint-2" / "sampler.json").write_text("{")
    with pytest.raises(UserError, match=r"sampler\.json is damaged"):
        train(classifier(), arguments(tmp_path, max_steps=4), resume=True)
    (tmp_path / "checkpoint-2" / "sampler.json").unlink()
    with pytest.raises(ValueError, match="is not a complete checkpoint"):
        train(classifier(), arguments(tmp_path, max_steps=4), resume=str(tmp_path / "checkpoint-2"))
    with pytest.raises(ValueError, match="has no complete checkpoint"):
        train(classifier(), arguments(tmp_path, max_steps=4), resume=True)


def test_the_seed_of_the_draws_is_the_checkpoints(tmp_path):
    train(classifier(), arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=2))
    trainer = train(classifier(), arguments(tmp_path, max_steps=4, seed=9), dataset=rows(), resume=True)
    assert trainer.sampler.seed == 3


def test_not_to_resume_needs_an_empty_folder(tmp_path):
    (tmp_path / "file").touch()
    for given, refused in ((None, True), ("false", True), ("true", False)):
        args = arguments(tmp_path, resume_from_checkpoint=given)
        with pytest.raises(UserError, match="is not empty; add --overwrite to start again") if refused else nullcontext():
            run(TrainArguments(model="unused", dry_run=True), args)
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / SAMPLER_FILE).touch()
    with pytest.raises(UserError, match="is not empty; add --resume_from_checkpoint true to go on, or --overwrite"):
        run(TrainArguments(model="unused", dry_run=True), arguments(tmp_path))

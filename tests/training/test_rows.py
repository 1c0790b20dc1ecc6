"""`split_random_rows`: the rows of a step are dealt out to its random sizes."""

import copy

import pytest
import torch
from datasets import Dataset
from test_losses import TASKS, task
from test_trainer import arguments, assert_same, classifier, descend, language_rows, train, weights
from worker import make_model

from hf_elastic.training.losses import DISTILLATION
from hf_elastic.training.rows import Part

DESCENT = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
DEALT = {"split_random_rows": 2, "max_steps": 1, **DESCENT}
NAMED = {
    "half": {"num_hidden_layers": 2, "intermediate_size": 16},
    "heads": {"num_attention_heads": 2},
    "narrow": {"intermediate_size": 16},
    "tiny": {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
}


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("size_weights", ["uniform", {"heads": 3.0}])
def test_a_step_by_hand(size_weights, parts, tmp_path):
    """Of three parts, rows 0, 3, ... go to the first random size, 1, 4, ... to the second; of two, the third gets the first's."""
    model = classifier(subnets=NAMED)
    twin = copy.deepcopy(model)
    options = {"train_subnets": list(NAMED), "num_random_subnets": 3, "per_device_train_batch_size": 8}
    trainer = train(model, arguments(tmp_path, size_weights=size_weights, **options, **{**DEALT, "split_random_rows": parts}))
    batch = next(iter(trainer.get_train_dataloader()))
    twin.train()
    middle = sorted(("half", "heads", "narrow"), key=twin.flops_of, reverse=True)
    given = dict.fromkeys(("largest", *middle, "tiny"), 1.0) | ({} if size_weights == "uniform" else size_weights)
    whole = given["largest"] + sum(given[name] for name in middle) / parts + given["tiny"]
    total, teacher = 0, None
    for name in ("largest", *middle, "tiny"):
        mine = slice(middle.index(name) % parts, None, parts) if name in middle else slice(None)
        twin.select(name)
        output = twin(**{key: value[mine] for key, value in batch.items()})
        if name == "largest":
            teacher, loss = output.logits.detach(), output.loss
        else:
            ours, theirs = (logits.div(2.0).log_softmax(-1) for logits in (output.logits, teacher[mine]))
            loss = 0.5 * output.loss + 0.5 * 4.0 * (theirs.exp() * (theirs - ours)).sum(-1).mean()
        total = total + loss * given[name] / whole * len(output.logits) / 8
    descend(twin, total)
    assert_same(weights(model), weights(twin), 1e-6)


def test_accumulation_changes_nothing(tmp_path):
    """Two micro-batches of four give the step of one batch of eight, however many labels each part holds."""
    states = []
    for size, accumulate in ((8, 1), (4, 2)):
        torch.manual_seed(0)
        model, dataset = make_model("masked"), language_rows()
        labels = [[-100] * (index * 3 % 13) + row[index * 3 % 13 :] for index, row in enumerate(dataset["labels"][:])]
        dataset = dataset.remove_columns("labels").add_column("labels", labels)
        options = {**DEALT, "max_steps": 3, "num_random_subnets": 2}
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulate}
        trainer = train(model, arguments(tmp_path, **sizes, **options), dataset)
        logged = [entry["loss_random"] for entry in trainer.state.log_history if "loss_random" in entry]
        states.append((weights(model), logged))
    assert_same(states[0][0], states[1][0], 1e-5)
    assert states[0][1] == pytest.approx(states[1][1], abs=2e-4)  # logs have four digits
    assert len(states[0][1]) == 3


def test_fewer_rows_than_sizes(tmp_path):
    """With one row per step each of three sizes gets it in one step of three; what no size has learned is not logged."""
    model = classifier(subnets=NAMED)
    options = {**DEALT, "split_random_rows": 3, "max_steps": 6, "num_random_subnets": 3, "per_device_train_batch_size": 1}
    trainer = train(model, arguments(tmp_path, train_subnets=list(NAMED), **options))
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    trained = [[name for name in ("half", "heads", "narrow") if f"loss_{name}" in entry] for entry in logs]
    assert [len(names) for names in trained] == [1] * 6
    assert {name for names in trained[:3] for name in names} == {"half", "heads", "narrow"}
    assert all("loss_largest" in entry and "loss_tiny" in entry for entry in logs)
    assert all(torch.isfinite(tensor).all() for tensor in weights(model).values())


@pytest.mark.parametrize("kind", TASKS)
def test_every_term_on_every_task(kind, tmp_path):
    model, inputs = task(kind)
    before = weights(model)
    terms = {"distillation": dict.fromkeys(DISTILLATION, 0.5), "relation_heads": 4, "num_random_subnets": 2}
    dataset = Dataset.from_dict({key: value.tolist() for key, value in inputs.items()})
    train(model, arguments(tmp_path, remove_unused_columns=False, **terms, **DEALT), dataset)
    after = weights(model)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in after)


def test_rows_of_several_sequences_stay_together():
    """In multiple choice a row is several sequences: logits are [rows, choices], hidden states [rows * choices, ...]."""
    part = Part(slice(1, None, 2), batch=4, share=0.5, counts=True)
    sequences = torch.arange(12)[:, None].expand(12, 2)
    taken = part.of({"logits": torch.arange(4), "hidden_states": (sequences,), "scale": torch.tensor(2.0), "flag": True})
    assert taken["logits"].tolist() == [1, 3]
    assert taken["hidden_states"][0][:, 0].tolist() == [3, 4, 5, 9, 10, 11]
    assert taken["scale"] == 2.0 and taken["flag"] is True


def test_only_where_sizes_are_random(tmp_path):
    with pytest.raises(ValueError, match="split_random_rows: sampling 'all' has no random sizes beside others; use sandwich"):
        arguments(tmp_path, sampling="all", split_random_rows=2)


@pytest.mark.parametrize("parts", [0, True])
def test_parts_are_counted(parts, tmp_path):
    with pytest.raises(ValueError, match=f"split_random_rows must be an integer of at least 1, got {parts}"):
        arguments(tmp_path, split_random_rows=parts)

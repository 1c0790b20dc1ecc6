"""`subnet_dropout`: whether sizes below the largest are trained with dropout."""

import copy
from contextlib import nullcontext

import pytest
from test_rows import DESCENT
from test_trainer import arguments, assert_same, classifier, descend, train, weights

ONLY = {"largest": {"largest": 1.0, "half": 0.0}, "half": {"largest": 0.0, "half": 1.0}}


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(
    ("size", "subnet_dropout", "drops"), [("half", False, False), ("half", True, True), ("largest", False, True)]
)
def test_one_size_counts(size, subnet_dropout, drops, steps, tmp_path):
    """Both sizes run, but the weights move with one alone: as without dropout, or not."""
    model = classifier(dropout=0.5)
    twin = copy.deepcopy(model)
    options = {"train_subnets": ["half"], "size_weights": ONLY[size], "distillation": {}, "task_weight": 1.0, **DESCENT}
    trainer = train(model, arguments(tmp_path, subnet_dropout=subnet_dropout, max_steps=steps, **options))
    assert model.training
    twin.eval()
    twin.select(size)
    for _, batch in zip(range(steps), trainer.get_train_dataloader()):
        descend(twin, twin(**batch).loss)
        twin.zero_grad()
    with pytest.raises(AssertionError) if drops else nullcontext():
        assert_same(weights(model), weights(twin), 1e-6)


def test_gradient_checkpointing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="subnet_dropout: false does not go with gradient_checkpointing"):
        arguments(tmp_path, subnet_dropout=False, gradient_checkpointing=True)

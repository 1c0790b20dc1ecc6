"""What the gradients of sizes say of each other, PCGrad, and gradients of embeddings that are added in place."""

import random

import pytest
import torch
from test_trainer import arguments, assert_same, classifier, language_rows, train, weights
from worker import SPACE, make_model

from hf_elastic.training import gradients
from hf_elastic.training import trainer as trainer_module
from hf_elastic.training.gradients import SizeGradients, pcgrad


def trained(kind, tmp_path, monkeypatch, in_place):
    """Weights after a few steps of plain descent, and how often an embedding was told to give rows only."""
    told = []
    original = gradients.add_rows_in_place

    def watched(skeleton):
        if in_place:
            original(skeleton)
        told.extend(embedding.sparse for embedding, _ in skeleton.whole_embeddings)

    monkeypatch.setattr(trainer_module, "add_rows_in_place", watched)
    torch.manual_seed(0)
    options = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 4, "gradient_accumulation_steps": 2}
    if kind == "gpt2":
        model, dataset = make_model("causal"), language_rows(32, 8)
    else:
        cut = {"hidden_size": [16, 32], "num_attention_heads": [2]} if kind == "hidden" else {}
        model, dataset = classifier(space={**SPACE, **cut}), None
    train(model, arguments(tmp_path, **options), dataset)
    assert all(p.grad is None or p.grad.layout == torch.strided for p in model.parameters())
    return weights(model), told


@pytest.mark.parametrize("kind", ["bert", "gpt2", "hidden"])
def test_rows_added_in_place_change_nothing(kind, tmp_path, monkeypatch):
    """Tied embeddings (GPT-2) and cut ones too."""
    plain, _ = trained(kind, tmp_path, monkeypatch, in_place=False)
    in_place, told = trained(kind, tmp_path, monkeypatch, in_place=True)
    assert any(told)
    assert_same(in_place, plain, 1e-6)


def test_cosines_of_gradients(tmp_path):
    """Logged for each pair at the steps asked for, equal to what two separate backward passes give."""
    model = classifier()
    args = arguments(tmp_path, gradient_cosine_steps=2, num_random_subnets=2, max_steps=4, distillation={}, task_weight=1.0)
    trainer = train(model, args)
    logged = [{key for key in entry if key.startswith("cosine")} for entry in trainer.state.log_history if "loss" in entry]
    pairs = {f"cosine_{pair}" for pair in ("largest_random", "largest_random_2", "largest_smallest")}
    assert not logged[0] and not logged[2] and len(logged[1]) == len(logged[3]) == 6 and pairs < logged[1]

    model = classifier()
    args = arguments(tmp_path, gradient_cosine_steps=1, num_random_subnets=0, max_steps=1, distillation={}, task_weight=1.0)
    twin = classifier()
    twin.load_state_dict(model.state_dict())
    trainer = train(model, args)
    batch = next(iter(trainer.get_train_dataloader()))
    gradients = []
    twin.train()
    for name in ("largest", "smallest"):
        twin.zero_grad(set_to_none=True)
        twin.select(name)
        twin(**batch).loss.backward()
        gradients.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in twin.parameters()]))
    expected = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    found = next(entry for entry in trainer.state.log_history if "loss" in entry)["cosine_largest_smallest"]
    assert found == pytest.approx(float(expected), abs=1e-3)


def test_watching_changes_nothing(tmp_path):
    """Gradients kept apart add up to what they would have been, with accumulation too."""
    states = []
    for every in (0, 1):
        torch.manual_seed(0)
        model = classifier()
        options = {"gradient_accumulation_steps": 2, "optim": "sgd", "learning_rate": 0.1}
        train(model, arguments(tmp_path, gradient_cosine_steps=every, max_steps=3, **options))
        states.append(weights(model))
    assert_same(*states, 1e-6)


def test_pcgrad_by_hand():
    one, other = [torch.tensor([1.0, 0.0]), None], [torch.tensor([-1.0, 1.0]), torch.tensor([2.0])]
    first, second = pcgrad([one, other], random.Random(0))
    # one . other = -1: one + 1/6 other, and other + 1 one.
    torch.testing.assert_close(torch.cat(first), torch.tensor([1 - 1 / 6, 1 / 6, 2 / 6]))
    torch.testing.assert_close(torch.cat(second), torch.tensor([0.0, 1.0, 2.0]))
    friends = [[torch.tensor([1.0, 0.5])], [torch.tensor([0.5, 1.0])]]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(pcgrad(friends, random.Random(0)), friends))


def test_gradients_are_put_back():
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([5.0, 5.0])  # an earlier micro-batch
    kept = SizeGradients([weight])
    for role, gradient in (("largest", [1.0, 0.0]), ("smallest", [-1.0, 1.0])):
        weight.grad = torch.tensor(gradient)
        kept.add(role)
    assert kept.cosines() == {"cosine_largest_smallest": pytest.approx(-(0.5**0.5), abs=1e-6)}
    kept.finish(surgery="pcgrad", seed="0")
    torch.testing.assert_close(weight.grad, torch.tensor([5.0 + 0.5 + 0.0, 5.0 + 0.5 + 1.0]))


def test_pcgrad_trains(tmp_path):
    trainer = train(classifier(), arguments(tmp_path, gradient_surgery="pcgrad", max_steps=30, learning_rate=3e-3))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < sum(losses[:5])

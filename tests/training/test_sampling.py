"""Which sizes are drawn, how much they count, and what their gradients say of each other."""

import json

import pytest
import torch
from test_trainer import arguments, assert_same, classifier, rows, train, weights

from hf_elastic import ElasticTrainer, Space
from hf_elastic.training.gradients import SizeGradients, pcgrad
from hf_elastic.training.sampling import Sampler

SPACE = Space({"num_hidden_layers": [1, 2, 4], "num_attention_heads": [2, 4], "intermediate_size": [16, 48]})
SCHEDULE = {"intermediate_size": 0.0, "num_attention_heads": 0.25, "num_hidden_layers": 0.5}


def test_progressive_opens_axis_by_axis():
    sampler = Sampler(SPACE, "progressive", num_random=3, schedule=SCHEDULE)
    smallest = [dict(sampler.draw(step, 100))["smallest"] for step in range(100)]
    assert all(s["intermediate_size"] == 16 for s in smallest)
    assert [s["num_attention_heads"] for s in smallest] == [4] * 25 + [2] * 75
    assert [s["num_hidden_layers"] for s in smallest] == [4] * 50 + [1] * 50
    for step in (0, 30, 80):
        opened = sampler.space_at(step, 100)
        assert all(subnet[axis] in opened[axis] for _, subnet in sampler.draw(step, 100) for axis in SPACE)
    assert sampler.draw(99, 100)[-1][1] == SPACE.smallest


def test_progressive_has_a_schedule_of_its_own():
    sampler = Sampler(SPACE, "progressive")
    assert list(sampler.schedule) == ["num_attention_heads", "intermediate_size", "num_hidden_layers"]
    assert sampler.draw(0, 100) == [("largest", SPACE.largest)]
    assert sampler.draw(99, 100)[-1][1] == SPACE.smallest


def test_progressive_with_grouped_heads():
    space = Space({"num_attention_heads": [2, 4], "num_key_value_heads": [1, 2]}, max_group=2)
    sampler = Sampler(space, "progressive", schedule={"num_attention_heads": 0.0, "num_key_value_heads": 0.5}, max_group=2)
    assert sampler.draw(0, 10)[-1][1].to_dict() == {"num_attention_heads": 2, "num_key_value_heads": 2}
    assert sampler.draw(9, 10)[-1][1].to_dict() == {"num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"intermediate_size": 0.1, "num_attention_heads": 0.2}, "num_hidden_layers never opens, so the smallest size is never"),
        ({**SCHEDULE, "num_hidden_layers": 1.0}, "num_hidden_layers: 1.0 is not a share of the training"),
        ({**SCHEDULE, "hidden_size": 0.1}, "'hidden_size' is no elastic axis of the space; these are: num_attention_heads"),
    ],
)
def test_bad_schedules(schedule, message):
    with pytest.raises(ValueError, match=message):
        Sampler(SPACE, "progressive", schedule=schedule)


def test_schedule_longer_than_the_training(tmp_path):
    args = arguments(
        tmp_path, sampling="progressive", max_steps=3, progressive_schedule=json.dumps({**SCHEDULE, "num_hidden_layers": 0.9})
    )
    with pytest.raises(ValueError, match=r"num_hidden_layers opens at 0\.9 of 3 steps, so the smallest size is never reached"):
        train(classifier(), args)
    with pytest.raises(ValueError, match="only for sampling 'progressive', not 'sandwich'"):
        ElasticTrainer(model=classifier(), args=arguments(tmp_path, progressive_schedule={"num_hidden_layers": 0.5}))


def with_names():
    model = classifier()
    model.config.subnets = {
        "tiny": {"num_hidden_layers": 1, "intermediate_size": 16, "num_attention_heads": 2},
        "half": {"num_hidden_layers": 2, "intermediate_size": 16},
        "deep": {"num_hidden_layers": 4, "intermediate_size": 16, "num_attention_heads": 2},
    }
    return model


def test_named_sizes_only(tmp_path):
    """Names come in the order of their cost; only they are trained, and logged under their names."""
    model = with_names()
    args = arguments(tmp_path, train_subnets=["tiny", "deep", "half"], num_random_subnets=1, max_steps=12)
    trainer = train(model, args)
    drawn = [trainer.sampler.draw(step, 12) for step in range(12)]
    assert all([role for role, _ in sizes][::2] == ["largest", "tiny"] for sizes in drawn)
    assert {sizes[1][0] for sizes in drawn} == {"deep", "half"}
    assert any("loss_half" in entry and "loss_tiny" in entry for entry in trainer.state.log_history) or any(
        "loss_deep" in entry for entry in trainer.state.log_history
    )
    assert trainer.eval_subnets == ["tiny", "deep", "half"]
    everything = ElasticTrainer(model=model, args=arguments(tmp_path, sampling="all")).sampler.draw(0, 1)
    assert [role for role, _ in everything] == ["largest", "deep", "half", "tiny"]
    single = Sampler(model.space, "single_path", named={"tiny": model.subnet("tiny")}, only_named=True)
    assert {role for step in range(30) for role, _ in single.draw(step, 30)} == {"largest", "tiny"}
    with pytest.raises(ValueError, match="unknown subnet 'huge'; known: full, largest, smallest, tiny, half, deep"):
        ElasticTrainer(model=model, args=arguments(tmp_path, train_subnets=["huge"]))
    with pytest.raises(ValueError, match="does not go with train_subnets"):
        ElasticTrainer(model=model, args=arguments(tmp_path, train_subnets=["half"], sampling="progressive"))


def test_chain_is_nested():
    model = with_names()
    assert model.chain(["tiny", "largest", "half"]) == ["largest", "half", "tiny"]
    assert model.chain(["deep", "tiny"]) == ["deep", "tiny"]
    with pytest.raises(ValueError, match="half is not nested in deep"):
        model.chain()


def test_size_weights(tmp_path):
    """Given weights are normalised; by FLOPs, a size counts as much as it costs. A weight of 0 leaves a size out."""
    model = classifier()
    flops = {name: model.flops_of(name) for name in ("largest", "smallest")}
    expected = {
        "uniform": [0.5, 0.5],
        "flops": [flops[name] / sum(flops.values()) for name in ("largest", "smallest")],
        '{"smallest": 3}': [0.25, 0.75],
    }
    for rule, shares in expected.items():
        trainer = ElasticTrainer(model=model, args=arguments(tmp_path, size_weights=rule, num_random_subnets=0))
        assert [size.weight for size in trainer._sizes(model)] == pytest.approx(shares)
    torch.manual_seed(0)
    only_largest = classifier()
    torch.manual_seed(0)
    largest = classifier()
    options = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "num_random_subnets": 0}
    train(only_largest, arguments(tmp_path, size_weights={"smallest": 0}, **options))
    largest.space = Space({"num_hidden_layers": [4]})
    train(largest, arguments(tmp_path, **options))
    assert_same(weights(only_largest), weights(largest), 1e-6)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({"huge": 1}, {}, "'huge' is no size that is trained; known: largest, random, smallest$"),
        ({"random": 1}, {"num_random_subnets": 0}, "'random' is no size that is trained; known: largest, smallest$"),
        ({"smallest": 2}, {"train_subnets": ["half"]}, "'smallest' is no size that is trained; known: largest, half$"),
        ({"half": 2}, {}, "'half' is no size that is trained; known: largest, random, smallest$"),
        ({"random": 1}, {"sampling": "all"}, "'random' is no size that is trained; known: largest, half$"),
        ({"smallest": -1}, {}, "smallest: -1 is not a weight"),
        ({"largest": 0, "smallest": 0, "random": 0}, {}, "with largest at 0 every other size needs a weight"),
    ],
)
def test_bad_size_weights(given, options, message, tmp_path):
    """A weight of a role that this sampling never draws would have no effect: refused, with the roles that it draws."""
    with pytest.raises(ValueError, match=f"size_weights: .*{message}"):
        ElasticTrainer(model=classifier(), args=arguments(tmp_path, size_weights=given, **options))


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
    import random

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


def test_a_checkpoint_of_another_space_or_none(tmp_path):
    model = classifier()
    train(model, arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=2))
    other = classifier()
    other.space = Space({"num_hidden_layers": [2, 4]})
    with pytest.raises(ValueError, match="was trained in another space"):
        train(other, arguments(tmp_path, max_steps=4), resume=str(tmp_path / "checkpoint-2"))
    (tmp_path / "checkpoint-2" / "sampler.json").unlink()
    with pytest.raises(ValueError, match="is not a complete checkpoint"):
        train(classifier(), arguments(tmp_path, max_steps=4), resume=str(tmp_path / "checkpoint-2"))
    with pytest.raises(ValueError, match="has no complete checkpoint"):
        train(classifier(), arguments(tmp_path, max_steps=4), resume=True)


def test_the_seed_of_the_draws_is_the_checkpoints(tmp_path):
    train(classifier(), arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=2))
    trainer = train(classifier(), arguments(tmp_path, max_steps=4, seed=9), dataset=rows(), resume=True)
    assert trainer.sampler.seed == 3

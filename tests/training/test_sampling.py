"""Which sizes are drawn, and how much they count."""

import json

import pytest
import torch
from test_trainer import arguments, assert_same, classifier, train, weights

from hf_elastic import ElasticTrainer, Space
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


def test_progressive_starts_with_the_first_name():
    space = Space({"block_type": ["bert", "mobilebert"], "intermediate_size": [16, 48]})
    sampler = Sampler(space, "progressive", num_random=8, schedule={"intermediate_size": 0.0, "block_type": 0.5})
    blocks = [{subnet["block_type"] for _, subnet in sampler.draw(step, 10)} for step in (0, 4, 5, 9)]
    assert blocks == [{"bert"}, {"bert"}, {"bert", "mobilebert"}, {"bert", "mobilebert"}]


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
        ({"smallest": 2}, {"train_subnets": ["half"]}, "'smallest' is no size that is trained; known: largest, half$"),
        ({"random": 1}, {"sampling": "all"}, "'random' is no size that is trained; known: largest, half$"),
        ({"largest": 0, "smallest": 0, "random": 0}, {}, "with largest at 0 every other size needs a weight"),
    ],
)
def test_bad_size_weights(given, options, message, tmp_path):
    """A weight of a role that this sampling never draws would have no effect: refused, with the roles that it draws."""
    with pytest.raises(ValueError, match=f"size_weights: .*{message}"):
        ElasticTrainer(model=classifier(), args=arguments(tmp_path, size_weights=given, **options))


def test_every_process_and_step_draws_the_same():
    sampler = Sampler(SPACE, "sandwich", seed=1)
    drawn = [sampler.draw(step, 40) for step in range(40)]
    assert drawn == [Sampler(SPACE, "sandwich", seed=1).draw(step, 40) for step in range(40)]
    assert drawn != [Sampler(SPACE, "sandwich", seed=2).draw(step, 40) for step in range(40)]
    assert all(sizes[0][1] == SPACE.largest and sizes[-1][1] == SPACE.smallest for sizes in drawn)
    assert len({sizes[1][1] for sizes in drawn}) > 5
    assert len(Sampler(SPACE, "all").draw(0, 1)) == len(SPACE)

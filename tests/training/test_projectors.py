"""A teacher of another width and depth: what is compared, the learned maps, checkpoints; what attention and FFN write."""

import signal

import pytest
import torch
from launching import run_cases
from test_checkpoints import difference
from test_losses import MASK, inputs_of, pearson
from tiny import DECODERS, backbones, batch, config_of, randomize
from worker import BLOCKS, make_arguments, make_model, make_rows, run_case

from hf_elastic import ElasticForCausalLM, ElasticForMaskedLM, ElasticTrainer, Space
from hf_elastic.core.errors import UserError
from hf_elastic.core.layout import Layout
from hf_elastic.core.spec import spec_for
from hf_elastic.training.losses import DISTILLATION, DistillationInputs
from hf_elastic.training.parts import Parts
from hf_elastic.training.projectors import FILE, Projectors

TEACHER = {"model_type": "bert", "hidden_size": 24, "num_hidden_layers": 8}
ARGS = {
    "sampling": "single_path",
    "distillation": {"pkd_parts": 1.0, "hidden": 0.1},
    "optim": "adamw_torch",
    "learning_rate": 1e-2,
}


def teacher_of(model_type="bert", elastic=ElasticForMaskedLM, **changes):
    config = config_of(model_type, **{"num_labels": 3, **changes})
    torch.manual_seed(7)
    return randomize(elastic.stock_class(config)(config))


def trainer_of(folder, *, kind="blocks", model=None, teacher=None, **changes):
    model = make_model(kind) if model is None else model
    return ElasticTrainer(
        model=model, args=make_arguments(folder, {**ARGS, **changes}), teacher=teacher, train_dataset=make_rows(kind)
    )


def test_pkd_parts_by_hand():
    """Two layers follow the second and the fourth of four; one of two axes is mapped to the teacher's channels."""
    student = [{"attention": ("inner", torch.randn(2, 4, 2)), "feed_forward": ("hidden", torch.randn(2, 4, 3))} for _ in range(2)]
    teacher = [{role: ("hidden", torch.randn(2, 4, 5)) for role in ("attention", "feed_forward")} for _ in range(4)]
    states = [torch.randn(2, 4, 3)], [torch.randn(2, 4, 5)]
    projectors = Projectors({"inner": (2, 5)}, seed=0)
    marked = [(row, token) for row in range(2) for token in range(4) if MASK[row, token]]

    def unlike(ours, theirs):
        columns = [[[x[r, t, c].item() for r, t in marked] for c in range(ours.shape[-1])] for x in (ours, theirs)]
        return sum(2 * (1 - pearson(s, t)) for s, t in zip(*columns)) / ours.shape[-1]

    expected = [unlike(states[0][0], states[1][0])]
    for ours, theirs in ((0, 1), (1, 3)):
        expected.append(unlike(projectors["inner"](student[ours]["attention"][1]), teacher[theirs]["attention"][1]))
        expected.append(unlike(student[ours]["feed_forward"][1], teacher[theirs]["feed_forward"][1]))
    observed = ({"hidden_states": hidden, "parts": parts} for hidden, parts in zip(states, (student, teacher)))
    inputs = DistillationInputs({"attention_mask": MASK}, *observed, False, 2.0, 2, projectors)
    assert DISTILLATION["pkd_parts"](inputs).item() == pytest.approx(sum(expected) / 5, abs=1e-5)


def test_hidden_states_are_mapped_and_layers_follow_their_last_one():
    """Three layers of width 4 follow layers 2, 4 and 6 of width 6: ELM's `(l + 1) * interval - 1`, counted from 0."""
    student, teacher = [torch.randn(2, 4, 4) for _ in range(4)], [torch.randn(2, 4, 6) for _ in range(7)]
    projectors = Projectors({"hidden": (4, 6)}, seed=0)
    squares = [
        ((projectors["hidden"](student[layer + 1]) - teacher[(layer + 1) * 2]) ** 2)[MASK.bool()].mean() for layer in range(3)
    ]
    inputs = inputs_of({"hidden_states": student}, {"hidden_states": teacher})
    inputs = DistillationInputs(inputs.batch, inputs.student, inputs.teacher, False, 2.0, 2, projectors)
    torch.testing.assert_close(DISTILLATION["hidden"](inputs), torch.stack(squares).mean())


@pytest.mark.parametrize("model_type", backbones())
def test_parts_of_every_family(model_type):
    """Both are found in each layer of a size, as wide as the hidden states."""
    elastic = ElasticForCausalLM if model_type in DECODERS else ElasticForMaskedLM
    config = config_of(model_type)
    stock = randomize(elastic.stock_class(config)(config))
    model = elastic.from_base(stock, space={"num_hidden_layers": [2, 4]}, importance="none")
    cut = model.resolve({"num_hidden_layers": 2})
    view = model.view({"num_hidden_layers": 2})
    with Parts(model.layout, stock).record(view, cut) as found, torch.no_grad():
        view(**batch())
    assert [set(layer) for layer in found] == [{"attention", "feed_forward"}] * 2
    for layer in found:
        for axis, output in layer.values():
            assert output.shape[-1] == (8 if axis == "inner" else 32) and output[..., 0].numel() == 27  # OPT joins the rows


def test_parts_that_a_layer_skips_have_no_term():
    stock = teacher_of("llama", ElasticForCausalLM)
    axes = {"attention": ["full", "skip"], "mlp": ["full", "skip"]}
    model = ElasticForCausalLM.from_base(
        stock, Space({"num_hidden_layers": [stock.config.num_hidden_layers], **axes, "per_layer": [*axes]}), importance="none"
    )
    layers = range(stock.config.num_hidden_layers)
    size = {
        "attention": ["full" if layer else "skip" for layer in layers],
        "mlp": ["skip" if layer == 1 else "full" for layer in layers],
    }
    found = {}
    for name, subnet in (("student", size), ("teacher", None)):
        view, cut = model.view(subnet), model.resolve(subnet)
        with Parts(model.layout, model.base).record(view, cut) as parts, torch.no_grad():
            states = view(**batch(), output_hidden_states=True).hidden_states
        found[name] = {"hidden_states": states, "parts": parts}
    assert [set(layer) for layer in found["student"]["parts"]][:2] == [{"feed_forward"}, {"attention"}]
    assert DISTILLATION["pkd_parts"](DistillationInputs(batch(), **found, shifted=True, temperature=2.0, relation_heads=2)) > 0


def test_parts_are_what_is_added_to_the_residual():
    config = config_of("llama")
    stock = teacher_of("llama", ElasticForCausalLM)
    layout = Layout(spec_for(config.model_type), stock)
    with Parts(layout, stock).record(stock, layout.resolve(None)) as found, torch.no_grad():
        states = stock(**batch(), output_hidden_states=True).hidden_states
    for layer, parts in enumerate(found[:-1]):  # the last state is normalised
        torch.testing.assert_close(states[layer] + sum(output for _, output in parts.values()), states[layer + 1])


def test_blocks_write_in_widths_of_their_own():
    model = make_model("blocks")
    cut = model.resolve({"num_hidden_layers": 2, "block_type": BLOCKS[::-1]})
    with Parts(model.layout, model.base).record(model.view(model.layout.subnet_of(cut)), cut) as found, torch.no_grad():
        model.view(model.layout.subnet_of(cut))(**batch())
    assert [[(axis, output.shape[-1]) for axis, output in layer.values()] for layer in found] == [
        [("inner", 8)] * 2,
        [("hidden", 32)] * 2,
    ]


def test_a_supernet_learns_from_a_teacher_of_another_width_and_depth(tmp_path):
    teacher = teacher_of(**{**TEACHER})
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    trainer = trainer_of(tmp_path, teacher=teacher, task_weight=0.0, max_steps=60)
    assert {axis: tuple(map.weight.shape) for axis, map in trainer.projectors.items()} == {"hidden": (24, 32), "inner": (24, 8)}
    start = {name: weight.detach().clone() for name, weight in trainer.projectors.named_parameters()}
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())
    for name, weight in trainer.projectors.named_parameters():
        assert not torch.equal(weight, start[name]), name
    trainer.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / FILE).exists()
    saved = ElasticForMaskedLM.from_pretrained(tmp_path / "saved")
    assert saved.num_parameters() == trainer.elastic.num_parameters()
    assert saved.state_dict().keys() == trainer.elastic.state_dict().keys()


def test_gradients_of_maps_are_forgotten_after_each_step(tmp_path):
    """Two steps of SGD on four rows are two trainings of one step: a gradient that stayed would count twice."""
    states = []
    for runs, steps in ((1, 2), (2, 1)):
        teacher = teacher_of(**TEACHER)
        model, maps = make_model("blocks", space=None, subnets=None), None
        for _ in range(runs):
            plain = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_steps": steps}
            trainer = trainer_of(tmp_path, model=model, teacher=teacher, **plain)
            trainer.train_dataset = trainer.train_dataset.select(range(4))
            trainer.projectors.load_state_dict(maps or trainer.projectors.state_dict())
            trainer.train()
            maps = trainer.projectors.state_dict()
        states.append({**model.state_dict(), **{f"map.{name}": weight for name, weight in maps.items()}})
    for name, weight in states[0].items():
        torch.testing.assert_close(states[1][name], weight, atol=1e-6, rtol=0, msg=name)


def test_an_elastic_hidden_size_is_mapped_by_its_first_channels(tmp_path):
    space = {"num_hidden_layers": [2, 4], "hidden_size": [16, 32], "block_type": BLOCKS, "per_layer": ["block_type"]}
    model = make_model("blocks", space=space, subnets=None)
    trainer = trainer_of(tmp_path, model=model, teacher=teacher_of(hidden_size=32), max_steps=4)
    trainer.train()  # a stock teacher of the same width has its channels in an order of its own
    assert trainer.projectors["hidden"].weight.shape == (32, 32) and trainer.projectors["inner"].weight.shape == (32, 8)
    assert make_model("classifier").space.get("hidden_size") is None
    same = trainer_of(tmp_path, kind="masked", teacher=teacher_of(hidden_size=32, num_hidden_layers=2), max_steps=1)
    assert len(same.projectors) == 0


@pytest.mark.slow
def test_killed_and_resumed(tmp_path):
    """After kill -9 the maps, and their moments in the optimizer, go on as they were."""

    def case(folder, **changes):
        args = {**ARGS, "output_dir": str(folder / "run"), "save_strategy": "steps", "save_steps": 5}
        return {"kind": "blocks", "teacher": dict(TEACHER), "dropout": 0.1, "args": args, **changes}

    status, printed = run_cases(tmp_path, {"killed": case(tmp_path, kill={"step": 13, "where": "step"})}, processes=1)
    assert status == -signal.SIGKILL, printed[-4000:]
    assert (tmp_path / "run" / "checkpoint-10" / FILE).is_file()
    run_case(case(tmp_path, resume=True), tmp_path / "resumed")
    run_case(case(tmp_path / "other"), tmp_path / "uninterrupted")
    assert difference(tmp_path / "resumed", tmp_path / "uninterrupted") == 0.0


def test_maps_of_another_teacher_are_not_taken(tmp_path):
    """Nor maps where there are none now, or none where there are some."""
    Projectors({"hidden": (32, 24), "inner": (8, 24)}, seed=0).save(tmp_path)
    trainer_of(tmp_path, teacher=teacher_of(**TEACHER)).projectors.load(tmp_path)
    wide, plain = teacher_of(**{**TEACHER, "hidden_size": 40}), {"distillation": {"logits": 1.0}}
    for trainer in (trainer_of(tmp_path, teacher=wide), trainer_of(tmp_path, teacher=teacher_of(**TEACHER), **plain)):
        with pytest.raises(UserError, match="was trained with other maps to the teacher's channels"):
            trainer.projectors.load(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(UserError, match=r"other maps to the teacher's channels \(none\) than these"):
        trainer_of(tmp_path, teacher=wide).projectors.load(tmp_path)


def test_what_cannot_teach_parts(tmp_path):
    with pytest.raises(UserError, match="pkd_parts: layers with another block_type write in other channels; give a teacher"):
        trainer_of(tmp_path)
    mixed = teacher_of("elm", block_type=[*BLOCKS, *BLOCKS])
    with pytest.raises(UserError, match="pkd_parts: layers of the teacher write in the widths 8, 32; one is needed"):
        trainer_of(tmp_path, teacher=mixed)
    with pytest.raises(UserError, match="the teacher's vocab_size is 50, the model's is 99"):
        trainer_of(tmp_path, teacher=teacher_of(vocab_size=50))

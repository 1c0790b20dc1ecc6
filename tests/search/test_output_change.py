"""What skipping a part of a layer changes, measured one by one on text without labels, and searches for sizes that skip."""

import numpy as np
import pytest
import torch
from tiny import batch, config_of, randomize
from torch.nn.functional import softmax
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_elastic import ElasticForCausalLM, ElasticForSequenceClassification, ElasticModel
from hf_elastic.core.errors import UserError
from hf_elastic.measure import removals
from hf_elastic.measure.removals import measure_removals
from hf_elastic.search import search_subnets

SPACE = {
    "num_hidden_layers": [2, 3, 4],
    "attention": ["full", "skip"],
    "mlp": ["full", "skip"],
    "per_layer": ["attention", "mlp"],
}
ROWS = [{"input_ids": [7, 8, 9 + index, 10]} for index in range(6)]


def elastic(auto=AutoModelForCausalLM, kind=ElasticForCausalLM, name="llama", space=SPACE):
    return kind.from_base(randomize(auto.from_config(config_of(name))), space=space, importance="none")


def without(axis, layer):
    return {axis: ["skip" if index == layer else "full" for index in range(4)]}


@torch.no_grad()
def test_changes_are_divergences_of_what_is_no_padding():
    model, inputs = elastic(), batch(rows=6)
    found = measure_removals(model, [{**inputs, "labels": inputs["input_ids"]}])
    assert {axis: len(changes) for axis, changes in found.changes.items()} == {"attention": 4, "mlp": 4}
    mask = inputs["attention_mask"].bool()
    assert not mask.all()
    expected = softmax(model.view()(**inputs).logits[mask].double(), -1)
    for axis, changes in found.changes.items():
        for layer, change in enumerate(changes):
            other = softmax(model.view(without(axis, layer))(**inputs).logits[mask].double(), -1)
            assert change == pytest.approx((expected * (expected / other).log()).sum(-1).mean().item(), rel=1e-4)
    again = measure_removals(
        model, [{key: rows[:3] for key, rows in inputs.items()}, {key: rows[3:] for key, rows in inputs.items()}]
    )
    np.testing.assert_allclose(again.changes["mlp"], found.changes["mlp"], rtol=1e-4)


@torch.no_grad()
def test_changes_of_other_outputs_are_relative():
    model = elastic(AutoModel, ElasticModel, "bert")
    inputs = batch(rows=2)
    found = measure_removals(model, [inputs])
    mask = inputs["attention_mask"].bool()
    expected, other = (model.view(size)(**inputs)[0][mask] for size in (None, without("mlp", 2)))
    relative = (other - expected).square().sum(1) / expected.square().sum(1)
    assert found.changes["mlp"][2] == pytest.approx(relative.mean().item(), rel=1e-4)


def test_a_pass_is_run_once(monkeypatch):
    model, runs = elastic(AutoModelForSequenceClassification, ElasticForSequenceClassification, "bert"), []
    measure = removals._measure
    monkeypatch.setattr(removals, "_measure", lambda *args: runs.append(1) or measure(*args))
    first = measure_removals(model, [batch()])
    assert measure_removals(model, [batch()]) is first and len(runs) == 1
    with torch.no_grad():
        model.classifier.weight.add_(1)
    assert measure_removals(model, [batch()]).changes != first.changes
    measure_removals(model, [batch(seed=1)])
    assert len(runs) == 3


def test_what_a_size_leaves_out_adds_up():
    model = elastic()
    found = measure_removals(model, [batch()])
    attention, mlp = found.changes["attention"], found.changes["mlp"]
    assert found.of(model, None) == 0
    assert found.of(model, without("attention", 1)) == attention[1] > 0
    size = {"layers": [0, 2, 3], "attention": ["full", "skip", "full"], "mlp": ["full", "full", "skip"]}
    assert found.of(model, size) == pytest.approx(attention[1] + mlp[1] + attention[2] + mlp[3])


@pytest.mark.parametrize("algorithm", ["surrogate", "nsga2"])
def test_a_search_skips_what_changes_least(algorithm):
    model = elastic()
    options = {"n_trials": 40, "population_size": 10, "algorithm": algorithm, "progress": False}
    frontier = search_subnets(model, ["output_change", "flops"], eval_dataset=ROWS, **options)
    found = measure_removals(model, [batch()]).changes
    assert found.keys() == {"attention", "mlp"}
    for point in frontier.evaluated:
        assert point.values["flops"] == model.flops_of(point.subnet, 1, 4)
    best = [point.subnet for point in frontier.points]
    assert any("skip" in (*subnet["attention"], *subnet["mlp"]) for subnet in best)
    values = [point.values["output_change"] for point in frontier.points]
    assert min(values) == 0 and max(values) > 0


def test_a_study_goes_on_where_it_was(tmp_path):
    model = elastic()
    options = {"eval_dataset": ROWS, "n_trials": 4, "progress": False, "population_size": 2, "storage": str(tmp_path)}
    frontier = search_subnets(model, ["output_change", "flops"], **options)
    assert search_subnets(model, ["output_change", "flops"], **options).points == frontier.points
    with pytest.raises(UserError, match="storage"):
        search_subnets(model, ["output_change", "flops"], **{**options, "eval_dataset": ROWS[1:]})


def test_standard_sizes_skip_nothing():
    model = elastic(space={**SPACE, "intermediate_size": [16, 48], "per_layer": ["attention", "mlp", "intermediate_size"]})
    options = {"eval_dataset": ROWS, "n_trials": 6, "progress": False, "population_size": 2}
    frontier = search_subnets(model, ["output_change", "flops"], portability="standard", **options)
    assert all("skip" not in (point.subnet["attention"], point.subnet["mlp"]) for point in frontier.points)
    assert {point.subnet["intermediate_size"] for point in frontier.evaluated} == {16, 48}


def test_with_latency():
    frontier = search_subnets(
        elastic(),
        ["output_change", "latency"],
        eval_dataset=ROWS,
        n_trials=4,
        sequence_length=8,
        progress=False,
        population_size=2,
    )
    assert all({"output_change", "latency_ms"} <= point.values.keys() for point in frontier.points)


@pytest.mark.parametrize(
    ("space", "rows", "message"),
    [
        ({"num_hidden_layers": [2, 4]}, ROWS, "output_change: the space has no axis to skip, such as {'attention': "),
        (SPACE, None, "output_change needs eval_dataset$"),
    ],
)
def test_bad_input(space, rows, message):
    with pytest.raises(UserError, match=message):
        search_subnets(elastic(space=space), ["output_change", "flops"], eval_dataset=rows, progress=False)
    with pytest.raises(UserError, match="output_change: needs at least one batch of text"):
        measure_removals(elastic(), [])

"""Searches with a device profile, and with peak memory."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from searching import classifier

from hf_elastic.measure.digests import architecture_digest
from hf_elastic.measure.memory import PeakMemory
from hf_elastic.measure.profile import Measured, measure_profile
from hf_elastic.search import Latency, search_subnets

pytestmark = pytest.mark.one_lane
linux = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")


SPACE = {"num_hidden_layers": [1, 2, 3, 4], "intermediate_size": [16, 48], "num_attention_heads": [2, 4]}


@pytest.fixture(scope="module")
def model():
    return classifier(SPACE)


@pytest.fixture(scope="module")
def profile(model):
    """Of this machine, with costs that are a sum over layers and widths, as those of real ones nearly are."""
    real = measure_profile(model, sequence_length=8, threads=1, memory=False, repeats=1)
    measured = []
    for subnet in model.space.enumerate():
        cost = 0.5 + 1e-6 * model.flops_of(subnet)
        latency = Latency.from_samples([cost * (1 + step / 100) for step in range(-3, 4)])
        measured.append(Measured(model.subnet(subnet), latency, PeakMemory(10 * cost, 5 * cost)))
    return replace(real, model=architecture_digest(model), measured=measured)


@pytest.fixture(scope="module")
def timed_only(profile):
    """Without peak memory."""
    return replace(profile, measured=[replace(one, memory=None) for one in profile.measured])


def quality(view):
    return {"accuracy": sum(parameter.numel() for parameter in view.parameters()) / 1e5}


def test_search_predicts_and_measures_the_frontier(model, profile):
    """Sizes over a limit are refused before they are evaluated; the frontier's costs are of this machine."""
    median = float(np.median([one.latency.median_ms for one in profile.measured]))
    seen = []
    frontier = search_subnets(
        model,
        ["accuracy", "latency"],
        compute_quality=lambda view: seen.append(view) or quality(view),
        latency_profile=profile,
        threads=1,
        sequence_length=8,
        constraints=[f"latency_ms<={median}"],
        progress=False,
    )
    assert len(seen) < len(model.space)
    assert all(point.details["latency_ms_is"] == "measured" for point in frontier.points)
    assert any(point.details["latency_ms_is"] == "predicted" for point in frontier.evaluated)


@pytest.mark.parametrize("most", [0, 2])
def test_only_some_of_the_predicted_frontier_are_measured(model, timed_only, most):
    """What is not measured leaves the frontier and says why; the constraints still hold."""
    options = {"compute_quality": quality, "latency_profile": timed_only, "progress": False}
    whole = search_subnets(model, ["accuracy", "latency"], measure_at_most=0, **options)
    assert {point.details["latency_ms_is"] for point in whole.evaluated} == {"predicted"}
    assert len(whole.points) > 2
    frontier = search_subnets(model, ["accuracy", "latency"], measure_at_most=most, **options)
    measured = [point for point in frontier.evaluated if point.details["latency_ms_is"] == "measured"]
    assert len([point for point in measured if point.feasible]) == most
    assert {point.details["latency_ms_is"] for point in frontier.points} == {"measured" if most else "predicted"}
    if most:
        left_out = [point for point in frontier.evaluated if not point.feasible]
        assert len(left_out) == len(model.space) - most
        assert all("not among the 2 that were chosen to be measured" in point.details["infeasible"][0] for point in left_out)


def test_how_many_to_measure_is_for_predictions(model):
    with pytest.raises(ValueError, match="measure_at_most is for a search with latency_profile"):
        search_subnets(model, compute_quality=quality, measure_at_most=3)


@pytest.mark.parametrize(
    ("option", "ours", "theirs"),
    [
        ("threads", 2, 1),
        ("sequence_length", 128, 8),
        ("latency_batch_size", 3, 1),
        ("runtime", "openvino", "torch"),
        ("phase", "forward", "prefill"),  # a default counts where it is given
    ],
)
def test_options_that_contradict_the_profile(model, timed_only, option, ours, theirs):
    if ours == "openvino":
        pytest.importorskip("openvino")
    profile = timed_only
    if option == "phase":
        profile = replace(profile, workload=replace(profile.workload, phase=theirs))
    with pytest.raises(ValueError, match=f"{option}: {ours!r} is asked for, and the profile was measured with {theirs!r}"):
        search_subnets(model, compute_quality=quality, latency_profile=profile, progress=False, **{option: ours})


def test_a_profile_of_another_machine_is_refused_or_stays_predicted(model, profile, tmp_path):
    elsewhere = replace(profile, machine={**profile.machine, "processor": "Other", "torch_threads": 7})
    elsewhere.save(tmp_path / "profile.json")
    options = {"compute_quality": quality, "latency_profile": tmp_path / "profile.json", "progress": False}
    with pytest.raises(ValueError, match=r"processor is .* here, 'Other' in the profile.*torch_threads.*--force"):
        search_subnets(model, **options)
    frontier = search_subnets(model, ["accuracy", "latency", "peak_memory"], force=True, **options)
    assert len(frontier.facts["warnings"]) == 2 and frontier.facts["machine"]["processor"] == "Other"
    assert all(point.details["peak_memory_mb_is"] == "predicted" for point in frontier.points)
    with pytest.raises(ValueError, match="another model"):
        search_subnets(classifier(SPACE, num_hidden_layers=5), force=True, **options)


@pytest.mark.slow
@linux
def test_peak_memory_as_an_objective():
    smaller = classifier({"num_hidden_layers": [1, 4]})
    options = {"compute_quality": quality, "sequence_length": 4, "progress": False}
    frontier = search_subnets(smaller, ["accuracy", "peak_memory"], **options)
    assert {point.details["peak_memory_mb_is"] for point in frontier.evaluated} == {"measured"}

"""Serving profiles in files, and what is predicted from them."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from served_profiles import BATCH_SIZES, LENGTHS, costs, profile

from hf_elastic.core.errors import UserError
from hf_elastic.serving.costs import LARGEST_CORRECTION, CostModel, ServingProfile, SizeProfile

pytestmark = pytest.mark.one_lane


def test_a_file_gives_the_same_profile(tmp_path):
    profile().save(tmp_path / "profile.json")
    assert ServingProfile.load(tmp_path / "profile.json") == profile()
    assert profile().names == ["full", "half", "tiny"]


def change(path, **changes):
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, **changes}))


SIZE = {"name": "a", "quality": None, "flops": 1, "seconds": [[1.0] * 3] * 6}
DAMAGED = {
    "missing": (None, "cannot read the serving profile"),
    "no JSON": ("{", "is not a serving profile"),
    "a list": ("[]", "is not a serving profile"),
    "another kind": ('{"machine": {}}', "its keys must be model, backend"),
    "no size": ({"sizes": []}, "sizes must be one or more"),
    "twice": ({"sizes": [SIZE, SIZE]}, "sizes must be one or more with different names, got ['a', 'a']"),
    "order": ({"sizes": [SIZE, {**SIZE, "name": "b", "flops": 2}]}, "from the largest to the smallest by flops, got ['a', 'b']"),
    "shape": ({"sizes": [{**SIZE, "seconds": [[1.0] * 3] * 5}]}, "seconds of a must have the shape [6, 3]"),
    "ragged": ({"sizes": [{**SIZE, "seconds": [[1.0] * 3] * 5 + [[1.0]]}]}, "seconds of a must have the shape [6, 3]"),
    "zero": ({"sizes": [{**SIZE, "seconds": [[0.0] * 3] * 6}]}, "seconds of a must be positive numbers"),
    "text": ({"sizes": [{**SIZE, "seconds": [["1"] * 3] * 6}]}, "seconds of a must be positive numbers"),
    "infinite": ({"sizes": [{**SIZE, "seconds": [[float("inf")] * 3] * 6}]}, "seconds of a must be positive numbers"),
    "quality": ({"sizes": [{**SIZE, "quality": "high"}]}, "quality of a must be a number or null, got 'high'"),
    "key of a size": ({"sizes": [{**SIZE, "speed": 1}]}, "is not a serving profile"),
    "descending": ({"lengths": [20, 10, 40]}, "lengths must be one or more ascending numbers, got [20, 10, 40]"),
    "empty": ({"batch_sizes": []}, "batch_sizes must be one or more ascending numbers, got []"),
    "half a token": ({"lengths": [0.5, 1, 2]}, "value 0.5 of lengths must be an integer"),
    "threads": ({"threads": 0}, "threads must be an integer of at least 1, got 0"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_line(name, tmp_path):
    content, message = DAMAGED[name]
    path = tmp_path / "profile.json"
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        profile().save(path)
        change(path, **content)
    with pytest.raises(UserError) as raised:
        ServingProfile.load(path)
    assert message in str(raised.value) and str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_foreign_profile_is_refused_with_both():
    profile().check(model="0123", backend="torch", threads=1)
    with pytest.raises(UserError, match="measured with backend 'torch', here it is 'onnx'"):
        profile().check(model="0123", backend="onnx")


def test_exact_on_the_grid_between_and_beyond():
    model = costs()
    for size in model.profile.sizes:
        for row, batch in zip(size.seconds, BATCH_SIZES):
            for seconds, length in zip(row, LENGTHS):
                assert model.seconds(size.name, batch, length) == pytest.approx(seconds)
    # Linear in the batch and in the length: 1 ms + 10 ms for ten tokens.
    assert model.seconds("full", 3, 10) == pytest.approx(0.031)
    assert model.seconds("full", 1, 15) == pytest.approx(0.016)
    assert model.seconds("full", 3, 30) == pytest.approx(0.091)
    # Beyond the grid in proportion to its last value, below it the first.
    assert model.seconds("full", 64, 10) == pytest.approx(2 * 0.321)
    assert model.seconds("full", 1, 80) == pytest.approx(2 * 0.041)
    assert model.seconds("full", 64, 80) == pytest.approx(4 * 1.281)
    assert model.seconds("full", 1, 3) == pytest.approx(0.011)


def test_one_point_is_enough():
    model = CostModel(ServingProfile("", "torch", "cpu", 1, [2], [8], [SizeProfile("a", None, 1, [[0.5]])]))
    assert [model.seconds("a", *call) for call in ((1, 4), (2, 8), (4, 8), (4, 16))] == [0.5, 0.5, 1.0, 2.0]


def test_the_least_share_of_a_sequence():
    model = costs()
    assert model.least_seconds("full", 10) == pytest.approx(0.321 / 32)
    model.observe("full", 8, 10, 0.162)
    assert model.correction["full"] > 1
    assert model.least_seconds("full", 10) == pytest.approx(0.321 / 32 * model.correction["full"])


@given(st.lists(st.lists(st.floats(1e-6, 10.0), min_size=3, max_size=3), min_size=6, max_size=6), st.data())
def test_a_prediction_never_falls_with_batch_or_length(seconds, data):
    """Whatever was measured, noise too."""
    measured = dataclasses.replace(profile(), sizes=[SizeProfile("a", None, 1, seconds)])
    model = CostModel(measured)
    (batch, more), (length, longer) = (sorted(data.draw(st.tuples(*[st.integers(1, 100)] * 2))) for _ in range(2))
    assert model.seconds("a", batch, length) <= model.seconds("a", more, longer) * (1 + 1e-9)
    assert model.least_seconds("a", length) <= model.seconds("a", batch, length) / batch * (1 + 1e-9)


def test_what_is_observed_corrects_the_size_and_a_little_the_others():
    model = costs()
    for _ in range(20):
        model.observe("full", 1, 10, 0.022)  # twice as long as measured
    assert 1.8 < model.correction["full"] < 2.0
    assert model.seconds("full", 4, 20) == pytest.approx(0.081 * model.correction["full"])
    assert 1.2 < model.correction["tiny"] == model.correction["half"] < model.correction["full"]
    for _ in range(100):
        model.observe("tiny", 1, 10, 0.002)  # as measured
    assert model.correction["tiny"] == pytest.approx(1.0, abs=0.01)
    assert model.correction["full"] < 1.3  # it is tried again, though nothing was seen of it


@given(st.lists(st.tuples(st.sampled_from(["full", "half", "tiny"]), st.floats(0, 1e6)), max_size=50))
def test_a_correction_stays_within_bounds(observed):
    model = costs()
    for name, seconds in observed:
        model.observe(name, 2, 12, seconds)
    assert all(1 / LARGEST_CORRECTION <= factor <= LARGEST_CORRECTION for factor in model.correction.values())

import json
import math

import numpy as np
import pytest

from hf_elastic.export.format import is_installed
from hf_elastic.export.parity import (
    FLOAT32,
    INT8,
    ParityError,
    Tolerance,
    check_parity,
    compare,
    installed_versions,
    write_parity,
)

REFERENCE = np.array([[4.0, 1.0, -8.0], [0.0, 2.0, 1.0]], np.float32)


def test_compare_equal():
    assert compare(REFERENCE, REFERENCE.copy()) == {
        "max_abs_difference": 0.0,
        "mean_abs_difference": 0.0,
        "largest_reference": 8.0,
        "max_relative_difference": 0.0,
        "argmax_agreement": 1.0,
        "near_argmax_agreement": 1.0,
        "rows": 2,
    }


def test_compare_reports_differences_relative_to_the_largest_value():
    candidate = REFERENCE + np.array([[0.0, 0.0, 0.0], [0.0, -0.4, 0.8]], np.float32)
    result = compare(REFERENCE, candidate)
    assert result["max_abs_difference"] == pytest.approx(0.8)
    assert result["mean_abs_difference"] == pytest.approx(1.2 / 6)
    assert result["max_relative_difference"] == pytest.approx(0.1)
    assert result["argmax_agreement"] == 0.5


def test_compare_counts_only_what_the_mask_keeps():
    candidate = REFERENCE.copy()
    candidate[1] = np.nan
    result = compare(REFERENCE, candidate, mask=np.array([1, 0]))
    assert (result["max_abs_difference"], result["argmax_agreement"], result["rows"]) == (0.0, 1.0, 1)


def test_mask_may_cover_the_last_axis():
    """Start logits of question answering: padding must not win the argmax."""
    candidate = REFERENCE.copy()
    candidate[0, 1] = 100.0
    result = compare(REFERENCE, candidate, mask=np.array([[1, 0, 1], [0, 0, 0]]))
    assert (result["max_abs_difference"], result["argmax_agreement"], result["rows"]) == (0.0, 1.0, 1)


def test_zero_reference_is_compared_absolutely():
    assert compare(np.zeros((1, 2)), np.full((1, 2), 0.5))["max_relative_difference"] == 0.5


@pytest.mark.parametrize(
    ("candidate", "mask", "message"),
    [
        (REFERENCE[:1], None, r"\(2, 3\).*\(1, 3\)"),
        (REFERENCE, np.ones(3), r"mask has shape \(3,\)"),
        (REFERENCE, np.zeros(2), "nothing to compare"),
    ],
)
def test_compare_rejects(candidate, mask, message):
    with pytest.raises(ValueError, match=message):
        compare(REFERENCE, candidate, mask)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_never_pass(value):
    candidate = REFERENCE.copy()
    candidate[0, 0] = value
    with pytest.raises(ParityError, match="not finite: 0 of the reference, 1 of the candidate"):
        compare(REFERENCE, candidate)


def test_check_parity():
    result = compare(REFERENCE, REFERENCE + np.float32(0.01) * np.array([[0, 1, 0], [0, 0, 0]]))
    check_parity(result, INT8)
    check_parity(result, Tolerance(max_relative_difference=0.01))
    with pytest.raises(ParityError, match=r"largest difference is 0\.0012 of the largest value, allowed 0\.0001"):
        check_parity(result, FLOAT32)


def test_check_parity_of_decisions():
    result = compare(REFERENCE, -REFERENCE)
    check_parity(result, Tolerance())
    with pytest.raises(ParityError, match=r"agrees in 0.000 of 2 rows, needed 0.9"):
        check_parity(result, INT8)


@pytest.mark.parametrize(("below", "passed"), [(0.5, True), (0.7, False)])  # of a range of 12, of which 5% are 0.6
def test_a_near_tie_is_not_held_against_a_candidate(below, passed):
    reference = np.array([[4.0, 4.0 - below, -8.0]])
    result = compare(reference, np.array([[3.9, 4.0, -8.0]]))
    assert (result["argmax_agreement"], result["near_argmax_agreement"]) == (0.0, float(passed))
    if passed:
        check_parity(result, INT8)
    else:
        with pytest.raises(ParityError, match=r"agrees in 0\.000 of 1 rows"):
            check_parity(result, INT8)


@pytest.mark.parametrize(("shift", "passed"), [(0.0, True), (1.0, False)])
def test_write_parity(tmp_path, shift, passed):
    path = tmp_path / "parity.json"
    result = compare(REFERENCE, REFERENCE + np.float32(shift))
    record = write_parity(path, "onnx", result, ["a text", "another"], FLOAT32)
    assert json.loads(path.read_text()) == record
    assert record["passed"] is passed
    assert record["tolerance"] == {"max_relative_difference": 1e-4}
    assert record["max_abs_difference"] == pytest.approx(shift)
    assert record["inputs"] == ["a text", "another"]
    assert record["versions"] == installed_versions()
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "parity.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_parity(path, "onnx", {**compare(REFERENCE, REFERENCE), "max_abs_difference": math.nan}, [], FLOAT32)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_installed_versions_names_the_libraries():
    assert {"hf-elastic", "torch", "transformers"} <= set(installed_versions())
    assert ("optimum" in installed_versions()) == is_installed("optimum.onnxruntime")


def test_several_labels_agree_one_by_one():
    """Two rows of three labels, one of which is decided the other way; the largest entry is the same throughout."""
    reference = np.array([[4.0, 1.0, -2.0], [3.0, -1.0, -4.0]])
    candidate = np.array([[4.0, -1.0, -2.0], [3.0, -1.0, -4.0]])
    assert compare(reference, candidate)["argmax_agreement"] == 1
    found = compare(reference, candidate, several=True)
    assert found["argmax_agreement"] == pytest.approx(5 / 6) == found["near_argmax_agreement"] and found["rows"] == 2


def test_one_value_a_row_agrees_where_it_hardly_moves():
    reference = np.array([[4.0], [1.0], [-2.0], [0.0]])
    found = compare(reference, reference + np.array([[0.1], [-0.1], [0.0], [0.3]]))
    assert found["argmax_agreement"] == found["near_argmax_agreement"] == 0.75

"""Which layers of a quantized graph have to stay in float32 for it to keep its accuracy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from ...utils.progress import Bar
from ..parity import ParityError

Outputs = Sequence[np.ndarray]


def mean_error(reference: Outputs, outputs: Outputs) -> float:
    """Mean absolute difference over all values, in the units of the output."""
    total = sum(float(np.abs(np.asarray(a, np.float64) - b).sum()) for a, b in zip(reference, outputs))
    return total / sum(array.size for array in reference)


def rank_by_harm(
    layers: Sequence[str], outputs_without: Callable[[Collection[str]], Outputs], reference: Outputs, bar: Bar
) -> list[tuple[str, float]]:
    """Layers, the most harmful first, each with the error that is left when it alone stays in float32.

    Args:
        layers: names.
        outputs_without: names that stay in float32 -> outputs of the rest quantized, on the calibration rows.
        reference: outputs of the float32 model on them.
        bar: shows how far it is.
    """
    bar.start("sensitivity of layers", 0, len(layers))
    errors = []
    for layer in layers:
        errors.append((layer, mean_error(reference, outputs_without([layer]))))
        bar.advance()
    return sorted(errors, key=lambda one: one[1])


def keep_in_float(ranked: Sequence[tuple[str, float]], is_good: Callable[[Collection[str]], bool], bar: Bar) -> list[str]:
    """The shortest prefix of `ranked` which, kept in float32, is good enough; tried one by one.

    The order is that of each layer alone (what two layers do together is not looked at), so the set is small, not the smallest.

    Raises:
        ParityError: not even all of them are.
    """
    kept: list[str] = []
    bar.start("layers kept in float", 0, len(ranked))
    for layer, _ in ranked:
        kept.append(layer)
        bar.advance()
        if is_good(kept):
            return kept
    raise ParityError(f"even with all {len(ranked)} layers in float the accuracy drop is above max_accuracy_drop")

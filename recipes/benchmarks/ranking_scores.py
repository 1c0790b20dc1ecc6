"""Rank correlations of what is known before training with what training gave, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from proxies import concordance
from scipy.stats import kendalltau, spearmanr

DRAWS = 2000
LEVEL = 0.95
Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], float]


def spearman(proxy: np.ndarray, quality: np.ndarray, parameters: np.ndarray) -> float:
    """Spearman's rho."""
    return float(spearmanr(proxy, quality)[0])


def kendall(proxy: np.ndarray, quality: np.ndarray, parameters: np.ndarray) -> float:
    """Kendall's tau-b."""
    return float(kendalltau(proxy, quality)[0])


def near(proxy: np.ndarray, quality: np.ndarray, parameters: np.ndarray) -> float:
    """Share of the pairs within 10% decoder parameters that are ordered rightly; NaN if there are none."""
    return concordance(proxy, quality, parameters)[0]


STATISTICS: dict[str, Statistic] = {"Spearman": spearman, "Kendall": kendall, "concordance within 10%": near}


def with_interval(
    statistic: Statistic, proxy: np.ndarray, quality: np.ndarray, parameters: np.ndarray, seed: int = 0
) -> tuple[float, float, float]:
    """A statistic and its 95% interval: percentiles over architectures drawn with replacement (Efron, 1979).

    An architecture that is drawn twice is no pair with itself: `concordance` leaves pairs of equal quality out, and Kendall's
    tau-b takes them for ties. What is not defined for a draw is left out.

    Args:
        statistic: one of `STATISTICS`.
        proxy: larger is better, `[N]`.
        quality: larger is better, `[N]`.
        parameters: `[N]`.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(DRAWS):
        rows = generator.integers(0, len(quality), size=len(quality))
        if len(np.unique(proxy[rows])) > 1 and len(np.unique(quality[rows])) > 1:
            drawn.append(statistic(proxy[rows], quality[rows], parameters[rows]))
    value = statistic(proxy, quality, parameters)
    if not np.isfinite(drawn).any():
        return value, float("nan"), float("nan")
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return value, float(low), float(high)


def score(records: list[dict]) -> tuple[dict[str, dict[str, tuple[float, float, float]]], int]:
    """Every proxy's statistics, and the number of pairs within 10% decoder parameters.

    Args:
        records: with "before" and "perplexity".

    Returns:
        proxy -> statistic -> value and interval; and the number of pairs.
    """
    quality = -np.array([record["perplexity"] for record in records])
    before = {name: np.array([record["before"][name] for record in records]) for name in records[0]["before"]}
    parameters = before["decoder_parameters"]
    scores = {
        name: {label: with_interval(one, values, quality, parameters) for label, one in STATISTICS.items()}
        for name, values in before.items()
    }
    return scores, concordance(quality, quality, parameters)[1]

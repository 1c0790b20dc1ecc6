"""Metrics as local `evaluate` modules, loaded without the Hub."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from transformers import PretrainedConfig

from ..core.errors import UserError
from ..data.head import MULTI, REGRESSION, Head


def load_metric(name: str):
    """One of this folder's metrics.

    Args:
        name: "accuracy", "f1" or "matthews_correlation".

    Raises:
        UserError: no such metric.
    """
    import evaluate

    folder = Path(__file__).parent
    known = sorted(path.name for path in folder.iterdir() if (path / f"{path.name}.py").exists())
    if name not in known:
        raise UserError(f"unknown metric {name!r}; known: {', '.join(known)}")
    return evaluate.load(str(folder / name))


def metrics_for(config: PretrainedConfig) -> Callable[..., dict[str, float]]:
    """`compute_metrics` of a Trainer for a head that classifies sequences, or gives each a number."""
    kinds = {MULTI: compute_multi_label, REGRESSION: compute_regression}
    return kinds.get(Head.of(config).problem_type, compute_classification)


def compute_accuracy(prediction) -> dict[str, float]:
    """`compute_metrics` of a Trainer: accuracy of the largest logit, labels of -100 left out."""
    return _compute(prediction, ["accuracy"])


def compute_classification(prediction) -> dict[str, float]:
    """`compute_metrics` of a Trainer: accuracy, F1 (of class 1 where there are two, else macro) and Matthews correlation."""
    return _compute(prediction, ["accuracy", "f1", "matthews_correlation"])


def compute_multi_label(prediction) -> dict[str, float]:
    """`compute_metrics` of a Trainer: accuracy (share of rows whose labels are all right) and F1 over all rows and labels.

    A label is predicted where its logit is above 0, a probability of a half.
    """
    from sklearn.metrics import accuracy_score, f1_score

    logits, labels = _arrays(prediction)
    pair = (labels > 0.5).astype(int), (logits > 0).astype(int)
    return {"accuracy": float(accuracy_score(*pair)), "f1": float(f1_score(*pair, average="micro", zero_division=0))}


def compute_regression(prediction) -> dict[str, float]:
    """`compute_metrics` of a Trainer: Pearson's and Spearman's correlation (0 where one side is constant), mean squared error."""
    from scipy.stats import pearsonr, spearmanr

    values, wanted = (array.reshape(-1).astype(np.float64) for array in _arrays(prediction))
    varies = len(values) > 1 and np.ptp(values) > 0 and np.ptp(wanted) > 0
    correlations = {"pearson": pearsonr, "spearmanr": spearmanr}
    found = {name: float(of(values, wanted)[0]) if varies else 0.0 for name, of in correlations.items()}
    return {**found, "mse": float(np.mean((values - wanted) ** 2))}


def _arrays(prediction) -> tuple[np.ndarray, np.ndarray]:
    predictions, labels = prediction
    return np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions), np.asarray(labels)


def _compute(prediction, names: list[str]) -> dict[str, float]:
    logits, labels = _arrays(prediction)
    pairs = {"predictions": logits.argmax(-1).ravel(), "references": labels.ravel()}
    return {key: value for name in names for key, value in load_metric(name).compute(**pairs).items()}

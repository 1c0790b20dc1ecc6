"""Metrics as local `evaluate` modules, loaded without the Hub."""

from pathlib import Path

from ..core.errors import UserError


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


def compute_accuracy(prediction) -> dict[str, float]:
    """`compute_metrics` of a Trainer: accuracy of the largest logit, labels of -100 left out."""
    return _compute(prediction, ["accuracy"])


def compute_classification(prediction) -> dict[str, float]:
    """`compute_metrics` of a Trainer: accuracy, F1 (of class 1 where there are two, else macro) and Matthews correlation."""
    return _compute(prediction, ["accuracy", "f1", "matthews_correlation"])


def _compute(prediction, names: list[str]) -> dict[str, float]:
    predictions, labels = prediction
    logits = predictions[0] if isinstance(predictions, tuple) else predictions
    pairs = {"predictions": logits.argmax(-1).ravel(), "references": labels.ravel()}
    return {key: value for name in names for key, value in load_metric(name).compute(**pairs).items()}

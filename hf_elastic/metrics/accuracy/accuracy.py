"""Accuracy as a local `evaluate` module, since `evaluate.load("accuracy")` downloads its code from the Hub."""

import datasets
import evaluate
from sklearn.metrics import accuracy_score

_DESCRIPTION = "Share of predictions that equal the reference; positions labelled -100 do not count."


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION)
class Accuracy(evaluate.Metric):
    """Accuracy between 0 and 1."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        counted = [(p, r) for p, r in zip(predictions, references) if r != -100]
        return {"accuracy": float(accuracy_score([r for _, r in counted], [p for p, _ in counted]))}

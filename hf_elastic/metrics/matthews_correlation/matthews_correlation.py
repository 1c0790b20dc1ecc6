"""Matthews correlation as a local `evaluate` module, since `evaluate.load` downloads the code of its own from the Hub."""

import datasets
import evaluate
from sklearn.metrics import matthews_corrcoef

_DESCRIPTION = "Matthews correlation of predictions and references, the metric of CoLA; positions labelled -100 do not count."


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION)
class MatthewsCorrelation(evaluate.Metric):
    """Matthews correlation between -1 and 1."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        counted = [(p, r) for p, r in zip(predictions, references) if r != -100]
        return {"matthews_correlation": float(matthews_corrcoef([r for _, r in counted], [p for p, _ in counted]))}

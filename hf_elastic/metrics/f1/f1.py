"""F1 as a local `evaluate` module, since `evaluate.load("f1")` downloads its code from the Hub."""

import datasets
import evaluate
from sklearn.metrics import f1_score

_DESCRIPTION = "F1 of class 1 where there are two classes, else the mean over the classes; positions labelled -100 do not count."


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION)
class F1(evaluate.Metric):
    """F1 between 0 and 1."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        counted = [(p, r) for p, r in zip(predictions, references) if r != -100]
        average = "binary" if {int(x) for pair in counted for x in pair} <= {0, 1} else "macro"
        return {"f1": float(f1_score([r for _, r in counted], [p for p, _ in counted], average=average, zero_division=0))}

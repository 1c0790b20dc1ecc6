"""A small classifier to search, its rows, and a quality that counts."""

import tiny
import torch
from transformers import BertForSequenceClassification

from hf_elastic import ElasticForSequenceClassification

SMALL = {"num_hidden_layers": [2, 4], "intermediate_size": [16, 48], "num_attention_heads": [2, 4]}
PER_LAYER = tiny.space_of("bert")


def classifier(space=SMALL, **changes):
    torch.manual_seed(0)
    base = tiny.randomize(BertForSequenceClassification(tiny.config_of("bert", num_labels=3, **changes)))
    return ElasticForSequenceClassification.from_base(base, space=space)


def classification_rows(count=17):
    generator = torch.Generator().manual_seed(1)
    lengths = [3 + index % 6 for index in range(count)]
    ids = [torch.randint(5, tiny.VOCAB, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": row, "label": index % 3, "text": "kept out"} for index, row in enumerate(ids)]


class Quality:
    """Counts the views that it is asked about; small ones are better, so that no axis is useless."""

    def __init__(self, value=None):
        self.views = []
        self.value = value or (lambda parameters: parameters / 1e5)

    def __call__(self, view):
        self.views.append(view)
        return {"accuracy": self.value(sum(parameter.numel() for parameter in view.parameters()))}


def subnets_of(points):
    return [str(point.subnet) for point in points]

"""Small elastic models with every head, and what their tests compare."""

import re

import torch
from tiny import batch, config_of, randomize
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from hf_elastic import (
    ElasticForCausalLM,
    ElasticForMaskedLM,
    ElasticForMultipleChoice,
    ElasticForQuestionAnswering,
    ElasticForSequenceClassification,
    ElasticForTokenClassification,
    ElasticModel,
)

TOLERANCE = 1e-5
SPACE = {"num_hidden_layers": [2, 4], "num_attention_heads": [2, 4], "intermediate_size": [16, 48]}
SMALL = {"num_hidden_layers": 2, "intermediate_size": 16}
SUBNETS = {"small": SMALL}
PER_LAYER = {"layers": [0, 2], "num_attention_heads": [2, 4], "intermediate_size": [16, 33]}
HEADS = [
    (ElasticModel, AutoModel),
    (ElasticForMaskedLM, AutoModelForMaskedLM),
    (ElasticForCausalLM, AutoModelForCausalLM),
    (ElasticForSequenceClassification, AutoModelForSequenceClassification),
    (ElasticForTokenClassification, AutoModelForTokenClassification),
    (ElasticForQuestionAnswering, AutoModelForQuestionAnswering),
    (ElasticForMultipleChoice, AutoModelForMultipleChoice),
]


def classifier(model_type="bert", **changes):
    torch.manual_seed(0)
    config = config_of(model_type, **{"num_labels": 3, **changes})
    base = randomize(AutoModelForSequenceClassification.from_config(config))
    return ElasticForSequenceClassification.from_base(base, space=SPACE, subnets=SUBNETS, importance="none")


def masked_lm():
    base = randomize(AutoModelForMaskedLM.from_config(config_of("bert")))
    return ElasticForMaskedLM.from_base(base, space=SPACE, subnets=SUBNETS)


def causal_lm(model_type="gpt2", **changes):
    base = randomize(AutoModelForCausalLM.from_config(config_of(model_type, **changes)))
    space = {key: SPACE[key] for key in ("num_hidden_layers", "intermediate_size")}
    return ElasticForCausalLM.from_base(base, space=space, subnets=SUBNETS, importance="none")


def inputs_of(elastic_class):
    inputs = batch()
    if elastic_class is ElasticForMultipleChoice:
        inputs = {key: torch.stack([value, value.flip(0)], 1) for key, value in inputs.items()}
    return inputs


def labels_of(elastic_class, inputs):
    if elastic_class is ElasticModel:
        return {}
    if elastic_class in (ElasticForMaskedLM, ElasticForCausalLM):
        return {"labels": inputs["input_ids"]}
    if elastic_class is ElasticForQuestionAnswering:
        return {"start_positions": torch.tensor([0, 1, 2]), "end_positions": torch.tensor([1, 2, 3])}
    return {"labels": inputs["input_ids"] % 2 if elastic_class is ElasticForTokenClassification else torch.tensor([0, 1, 0])}


def assert_same(ours, theirs, tolerance=TOLERANCE):
    for key, value in theirs.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(ours[key], value, atol=tolerance, rtol=0, msg=lambda text, key=key: f"{key}: {text}")


def train_step(model, **inputs):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(**inputs).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


def says(*parts):
    """A pattern that finds the parts in this order."""
    return "(?s)" + ".*".join(re.escape(str(part)) for part in parts)

"""Train many sizes at once."""

from .arguments import ElasticTrainingArguments
from .trainer import ElasticTrainer

__all__ = ["ElasticTrainer", "ElasticTrainingArguments"]

"""An exported folder as an elastic model without weights, which knows its sizes and counts."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig

from ..configuration_elastic import ElasticConfig
from ..modeling_elastic import ELASTIC_CLASSES, ElasticPreTrainedModel


def folder_config(folder: str | Path) -> PretrainedConfig:
    """The config of an exported folder, whose checkpoint may be missing: then of one of the formats in it.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = Path(folder)
    path = next((path for path in [folder, *sorted(folder.glob("*/"))] if (path / "config.json").is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} holds no model: there is no config.json in it")
    return AutoConfig.from_pretrained(path)


def shell_of(config: PretrainedConfig) -> ElasticPreTrainedModel:
    """A model of a config, stock or elastic, with shapes and no weights.

    Raises:
        ValueError: the config does not say with which head it was saved, or there is no elastic class with this head.
    """
    architecture = (config.architectures or ["none"])[0]
    fitting = [cls for cls in ELASTIC_CLASSES if architecture.endswith(_head(cls))]
    elastic_class = max(fitting, key=lambda cls: len(_head(cls)), default=None)
    if elastic_class is None or (not _head(elastic_class) and "For" in architecture):
        known = ", ".join(_head(cls) for cls in ELASTIC_CLASSES if _head(cls))
        raise ValueError(f"architectures: {architecture} has no head that is known here; known: {known}")
    with torch.device("meta"):
        return elastic_class(config if isinstance(config, ElasticConfig) else ElasticConfig(config))


def check_size(model: ElasticPreTrainedModel, name: str, folder: Path) -> None:
    """Raise ValueError if a folder is no export of the named size of a model."""
    found = shell_of(folder_config(folder))
    theirs, ours = found.num_parameters_of(None), model.num_parameters_of(name)
    if found.config.base_config.model_type != model.config.base_config.model_type or theirs != ours:
        raise ValueError(f"exports: {folder} is not {name}: it has {theirs:,} parameters, {name} has {ours:,}")


def _head(elastic_class: type[ElasticPreTrainedModel]) -> str:
    """ "ForSequenceClassification"; "" of the model without a head. GPT-2 calls its causal head differently."""
    return elastic_class.__name__.removeprefix("ElasticModel").removeprefix("Elastic")

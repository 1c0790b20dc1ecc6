"""An exported folder as an elastic model without weights, which knows its sizes and counts."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig

from ..core.configuration_elastic import ElasticConfig
from ..core.errors import UserError
from ..core.modeling_elastic import ELASTIC_CLASSES, ElasticPreTrainedModel


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


def meta_model(config: PretrainedConfig) -> ElasticPreTrainedModel:
    """A model of a config, stock or elastic, with shapes and no weights.

    Raises:
        UserError: the config does not say with which head it was saved, there is no elastic class with this head, or no Spec.
    """
    architecture = (config.architectures or ["none"])[0]
    fitting = [cls for cls in ELASTIC_CLASSES if _class_name(cls, config) == architecture]
    if not fitting:
        raise UserError(f"architectures: {config.model_type} as {architecture} is not known here")
    with torch.device("meta"):
        return fitting[0](config if isinstance(config, ElasticConfig) else ElasticConfig(config))


def check_size(model: ElasticPreTrainedModel, name: str, folder: Path) -> None:
    """Raise UserError if a folder is no export of the named size of a model."""
    found = meta_model(folder_config(folder))
    theirs, ours = found.num_parameters_of(None), model.num_parameters_of(name)
    if found.config.base_config.model_type != model.config.base_config.model_type or theirs != ours:
        raise UserError(f"exports: {folder} is not {name}: it has {theirs:,} parameters, {name} has {ours:,}")


def _class_name(elastic_class: type[ElasticPreTrainedModel], config: PretrainedConfig) -> str | None:
    """What a checkpoint of this config with this head calls its class; None if there is no such head."""
    if isinstance(config, ElasticConfig):
        return elastic_class.__name__
    try:
        return elastic_class.stock_class(config).__name__
    except ValueError:
        return None

"""A size as a config alone, to be trained from new weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from transformers import PretrainedConfig

from ..core.configuration_elastic import ElasticConfig
from ..core.errors import UserError
from ..core.modeling_elastic import ElasticPreTrainedModel
from ..core.partition import partition_heads
from ..core.portable import portable_config
from ..core.space import DEPTH_AXES, is_choice
from ..core.spec import spec_for
from ..utils.files import write_atomically


def architecture_config(model: ElasticPreTrainedModel, subnet: str | Mapping | None = None) -> PretrainedConfig:
    """The config that the Auto classes build a subnet from, with new weights.

    Args:
        model: the supernet; its weights play no part.
        subnet: a name, a subnet or None for the full model.

    Returns:
        A config of the stock class where that can say the size. Else an `ElasticConfig` that is frozen at it, whose base is no
        larger than the largest layer, so that nothing larger is ever built.

    Raises:
        ValueError: a subnet that the model does not have, or adapters that are not merged.
    """
    config = model.standalone(subnet)[1]
    cut = model.resolve(subnet)
    if not isinstance(config, ElasticConfig) or model.frozen_cut is not None:
        return config
    sizes = {axis: value for axis, value in model.subnet(subnet).items() if axis not in DEPTH_AXES}
    largest = {axis: max(value) if isinstance(value, tuple) and not is_choice(axis) else value for axis, value in sizes.items()}
    around = {"layers": cut.layers, **largest}
    if model.portability_of(around) != "standard":
        return config
    frozen = {"num_hidden_layers": len(cut.layers), **{a: list(v) if isinstance(v, tuple) else v for a, v in sizes.items()}}
    config = ElasticConfig(model.standalone(around)[1], model.config.spec, frozen=frozen)
    config.architectures = [type(model).__name__]
    return config


def save_architecture(model: ElasticPreTrainedModel, subnet: str | Mapping | None, folder: str | os.PathLike) -> None:
    """Write `architecture_config` as `config.json`, for transformers 4.57 and 5.x where both can say it.

    Raises:
        ValueError: as `architecture_config`; or only one of the two has words for a stock config.
    """
    config = architecture_config(model, subnet)
    values = config.to_diff_dict() if isinstance(config, ElasticConfig) else portable_config(config)
    values["model_type"] = config.model_type
    write_atomically(Path(folder) / "config.json", json.dumps(values, indent=2, sort_keys=True) + "\n")


def frozen_config(config: PretrainedConfig) -> ElasticConfig | None:
    """The elastic config that is frozen at the layers of a stock config that lists them; None if its layers are all alike.

    A layout knows one full size of all layers, so its base is as large as the largest layer in every field.

    Raises:
        ValueError: heads of different sizes that do not partition the hidden size.
    """
    spec = spec_for(config.model_type)
    values = {field: getattr(config, field, None) for field in spec.layered_config if spec.config[field] not in spec.choices}
    listed = {field: list(value) for field, value in values.items() if isinstance(value, (list, tuple))}
    unequal = {field: value for field, value in listed.items() if len(set(value)) > 1}
    if not unequal:
        return None
    field_of = {axis: field for field, axis in spec.config.items()}
    heads, head = field_of["heads"], field_of.get("head")
    changes = {field: max(value) for field, value in listed.items()}
    if head is not None and (head in unequal or (values[head] is None and heads in unequal)):
        counts = listed.get(heads, [values[heads]] * config.num_hidden_layers)
        sizes = listed.get(head, [config.hidden_size // count for count in counts])
        if any(count * size != config.hidden_size for count, size in zip(counts, sizes, strict=True)):
            raise UserError(
                f"{head}: {sizes} differ from layer to layer, and {heads} {counts} times that is not always the hidden size "
                f"{config.hidden_size}"
            )
        spec = partition_heads(spec)
        changes[head] = config.hidden_size // max(counts)
    frozen = {name: unequal[field_of[axis]] for name, axis in spec.axes().items() if field_of[axis] in unequal}
    kept = {key: value for key, value in config.to_dict().items() if key != "model_type"}
    base = type(config).from_dict({**kept, **changes})
    return ElasticConfig(base, spec.to_dict(), frozen={"num_hidden_layers": config.num_hidden_layers, **frozen})

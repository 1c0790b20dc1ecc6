"""`ElasticConfig`: the stock config of the full model, and what is elastic about it."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .errors import UserError
from .following import ModelsFollow
from .portable import portable_config

# What an ElasticConfig keeps itself; everything else is read from and written to `base_config`.
PARTS = (
    "base_config", "spec", "space", "subnets", "subnet", "layer_order", "grown", "frozen", "own", "architectures", "auto_map"
)  # fmt: skip
# Sizes that every model has: all of the supernet, and the ends of its space (of which the largest is usually all of it, too).
FULL = "full"  # the name of the whole supernet in every elastic model
RESERVED_NAMES = (FULL, "largest", "smallest")
OWN = (*PARTS, "full", "model_type", "transformers_version", "name_or_path", "_name_or_path", "_commit_hash")


# What config classes say of themselves, such as how to shard their models.
FACTS = {name for name, value in vars(PretrainedConfig).items() if not (name.startswith("_") or hasattr(value, "__get__"))}
FACTS -= {"model_type", "has_no_defaults_at_init"}
# What differs from layer to layer, as transformers says it since 5.14: `{"3": {"skip": ["attention"]}}`.
PER_LAYER = "per_layer_config"
# Properties in which a config of transformers since 5.14 says what differs from layer to layer.
FACTS |= {"is_heterogeneous", PER_LAYER, "per_layer_attributes"} & {*dir(PretrainedConfig)}


class ElasticConfig(ModelsFollow, PretrainedConfig):
    """Configuration of an elastic model.

    Any attribute that is not listed here (`num_labels`, `hidden_size`, `pad_token_id`, ...) is the base config's, for reading
    and for writing.

    Args:
        base_config: the stock config of the full-size model, or its dict with `model_type`.
        spec: the Spec as a dict, as `Spec.to_dict` gives it.
        space: axis -> allowed values, and `per_layer`, as `Space.to_dict` gives it.
        subnets: name -> subnet, the named sizes; `full`, `largest` and `smallest` are there in any case.
        subnet: which size `forward` runs: a name, a subnet, or None for the full model.
        layer_order: all layer indices, the one to keep longest first; None is their own order.
        grown: axis -> for each layer what it has of this axis where a subnet does not say: a size, or one for each choice; as
            growth in training leaves it (see `ElasticPreTrainedModel.grow`). None: all of it.
        frozen: the subnet that the weights are cut to, or None for a supernet.
        own: of a frozen one: what its sizes are, where they are not the full model's. `base_config` is given as the full model's,
            gets these, and `full` is what it was.

    Raises:
        UserError: `base_config` has no known model type, a part is not of the type above, or a name of `subnets` is reserved.
    """

    model_type = "elastic"
    has_no_defaults_at_init = True

    def __init__(
        self,
        base_config: PretrainedConfig | Mapping | None = None,
        spec: Mapping | None = None,
        space: Mapping | None = None,
        subnets: Mapping | None = None,
        subnet: str | Mapping | None = None,
        layer_order: list[int] | None = None,
        grown: Mapping | None = None,
        frozen: Mapping | None = None,
        own: Mapping | None = None,
        **kwargs,
    ):
        super().__init__(**{key: kwargs.pop(key) for key in ("architectures",) if key in kwargs})
        self.auto_map = kwargs.pop("auto_map", None) or {}  # the Auto classes look names up in it
        self.spec = spec
        self.space = space
        self.subnets = dict(subnets or {})
        self.subnet = subnet
        self.layer_order = layer_order
        self.grown = grown
        self.frozen = frozen
        self.own = own
        self.full: PretrainedConfig | None = None
        for key in ("model_type", "transformers_version", "_commit_hash", "name_or_path", "_name_or_path"):
            kwargs.pop(key, None)
        self.base_config = _as_config(base_config)
        if own:
            self.full, self.base_config = self.base_config, copy.deepcopy(self.base_config)
            for key, value in own.items():
                setattr(self.base_config, key, value)
        if "attn_implementation" in kwargs:
            self._attn_implementation = kwargs.pop("attn_implementation")
        if isinstance(kwargs.get("dtype"), str):
            kwargs["dtype"] = getattr(torch, kwargs["dtype"])
        for key, value in kwargs.items():
            setattr(self, key, value)

    def __getattribute__(self, key: str):
        if key not in OWN and not key.startswith("__"):
            base = super().__getattribute__("__dict__").get("base_config")
            if base is not None and (key in vars(base) or key in base.attribute_map or key in FACTS):
                return getattr(base, key)
        return super().__getattribute__(key)

    def __getattr__(self, key: str):
        base = self.__dict__.get("base_config")
        if key.startswith("__") or base is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {key!r}")
        return getattr(base, key)

    def __setattr__(self, key: str, value):
        if key == "subnets":
            check_names(value)
        base = self.__dict__.get("base_config")
        if base is None or key in OWN or key.startswith("__"):
            super().__setattr__(key, value)
        else:
            setattr(base, key, value)

    def full_config(self) -> PretrainedConfig:
        """The stock config of the full model; what is no size is as it is now."""
        config = copy.deepcopy(self.base_config)
        for key in self.own or ():
            setattr(config, key, None if key == PER_LAYER else getattr(self.full, key))
        vars(config).pop(PER_LAYER, None)  # where it is no property
        return config

    def to_dict(self) -> dict:
        """All of it as JSON-able data, with the base config's fields and its model type where libraries such as peft look."""
        own = self._serialize(PretrainedConfig.to_dict)
        return own if self.base_config is None else {**own, **self.base_config.to_dict()}

    def to_json_string(self, use_diff: bool = True) -> str:
        """What `config.json` holds; it is the same with and without `use_diff`, and has its own model type."""
        return super().to_json_string()

    def to_diff_dict(self) -> dict:
        """What `config.json` holds: the base config without its defaults, and the elastic parts that are set."""
        return self._serialize(_for_both_versions)

    def _serialize(self, serialize) -> dict:
        output = {"model_type": self.model_type}
        for key in PARTS:
            value = getattr(self, key, None)
            if key == "base_config" and value is not None:
                value = self.full_config()
                value = {**serialize(value), "model_type": value.model_type}
                output["transformers_version"] = value.pop("transformers_version", None)
                output["dtype"] = value.pop("dtype", None)
                value.pop("architectures", None)
            if value not in (None, {}):
                output[key] = value
        return {key: value for key, value in output.items() if value is not None}


def check_names(subnets: Mapping) -> None:
    """Raise UserError if a user's size has a name that every model has."""
    for name in RESERVED_NAMES:
        if name in subnets:
            raise UserError(
                f"subnets: the name {name!r} is reserved: full is the whole supernet, largest and smallest are the ends of its "
                "space; choose another name"
            )


def _for_both_versions(config: PretrainedConfig) -> dict:
    try:
        return portable_config(config)
    except ValueError:  # one version has no words for it: an elastic checkpoint may still be for the other alone
        return config.to_diff_dict()


def _as_config(base: PretrainedConfig | Mapping | None) -> PretrainedConfig | None:
    if base is None or isinstance(base, PretrainedConfig):
        return base
    if not isinstance(base, Mapping):
        raise UserError(f"base_config must be a config or a mapping, got {type(base).__name__}")
    model_type = base.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise UserError(f"base_config: transformers knows no model type {model_type!r}")
    return CONFIG_MAPPING[model_type].from_dict({key: value for key, value in base.items() if key != "model_type"})

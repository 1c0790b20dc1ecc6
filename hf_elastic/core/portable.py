"""A stock config as JSON that transformers 4.57 and 5.x both read, and read alike.

transformers 5 keeps rotary parameters in `rope_parameters` and ModernBERT's pattern of layers in `layer_types`; 4.57 has a
field for each, and takes its defaults without a word where they are missing. The old spelling is read by both, so files
carry both.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
import transformers
from transformers import PretrainedConfig

from .errors import UserError

# What `forward` calls a key-value cache, by the versions of transformers; 5.24 takes the old name as well, and warns.
CACHE_NAMES = ("cache", "past_key_values")

IS_OLD = int(transformers.__version__.partition(".")[0]) < 5

# Field of 4.57 -> where transformers 5 keeps it in `rope_parameters`; a field without a value there is left out.
ROPE_FIELDS = {"rope_theta": ("rope_theta",), "partial_rotary_factor": ("partial_rotary_factor",)}
OTHER_ROPE_FIELDS = {
    "gpt_neox": {"rotary_emb_base": ("rope_theta",), "rotary_pct": ("partial_rotary_factor",)},
    "gemma3_text": {
        "rope_theta": ("full_attention", "rope_theta"),
        "rope_local_base_freq": ("sliding_attention", "rope_theta"),
    },
    "modernbert": {
        "global_rope_theta": ("full_attention", "rope_theta"),
        "local_rope_theta": ("sliding_attention", "rope_theta"),
    },
}
# Where one set of rotary parameters for each type of layer exists: the type that 4.57's `rope_scaling` is about, if any.
SCALED_LAYER_TYPE = {"gemma3_text": "full_attention", "modernbert": None}
# What 4.57 calls the type of scaling where it does not take `rope_type`.
SCALING_TYPE_FIELD = {"phi3": "type"}
# Field of 4.57 -> every how many layers, counted from the first, one has full attention.
FULL_ATTENTION_INTERVAL = {"modernbert": "global_attn_every_n_layers"}
# Fields that 4.57 does not have, and the values that mean what it does.
ONLY_NEW = {"gemma2": {"use_bidirectional_attention": (None, False)}}


def portable_config(config: PretrainedConfig) -> dict:
    """What `config.json` has to hold for both major versions.

    Args:
        config: a stock config.

    Raises:
        ValueError: the other major version has no words for it; the message says for what.
    """
    values = config.to_diff_dict()
    # The default of this one changed between the versions for some architectures.
    values["tie_word_embeddings"] = config.tie_word_embeddings
    if IS_OLD:  # transformers 5 reads this spelling; a copy of its own may be out of date
        values.pop("rope_parameters", None)
        return values
    for field, allowed in ONLY_NEW.get(config.model_type, {}).items():
        if values.get(field) not in allowed:
            raise UserError(f"transformers 4.57 has no {field}, which is {values[field]!r}")
    rope = values.get("rope_parameters")
    if rope:
        values.update(_old_rope(config, rope))
    if config.model_type in FULL_ATTENTION_INTERVAL:
        values[FULL_ATTENTION_INTERVAL[config.model_type]] = _interval(config.layer_types)
    return values


def _old_rope(config: PretrainedConfig, rope: Mapping) -> dict:
    """Rotary parameters in the fields of 4.57."""
    fields = OTHER_ROPE_FIELDS.get(config.model_type, ROPE_FIELDS)
    old = {field: _lookup(rope, path) for field, path in fields.items()}
    scaled = rope
    if config.model_type in SCALED_LAYER_TYPE:
        kind = SCALED_LAYER_TYPE[config.model_type]
        scaled = rope.get(kind, {})
        others = {name: own for name, own in rope.items() if name != kind and own["rope_type"] != "default"}
        if others:
            raise UserError(f"transformers 4.57 has no rotary scaling for {', '.join(others)} layers")
    elif any(isinstance(value, Mapping) for value in rope.values()):
        raise UserError(f"transformers 4.57 has one set of rotary parameters for all layers of {config.model_type}")
    old["rope_scaling"] = _old_scaling(config, scaled)
    return {field: value for field, value in old.items() if value is not None}


def _old_scaling(config: PretrainedConfig, rope: Mapping) -> dict | None:
    """The kind of rotary scaling and its factors; what has a field of its own in the config is left out."""
    if rope.get("rope_type", "default") == "default":
        return None
    own = {"type", "rope_type", "rope_theta", "partial_rotary_factor", *vars(config)}
    name = SCALING_TYPE_FIELD.get(config.model_type, "rope_type")
    return {name: rope["rope_type"], **{key: value for key, value in rope.items() if key not in own}}


def _lookup(values: Mapping, path: tuple[str, ...]) -> object:
    for key in path:
        values = values.get(key)
        if values is None:
            return None
    return values


def _interval(layer_types: list[str]) -> int:
    """The interval at which layers, counted from the first, have full attention.

    Raises:
        ValueError: there is none.
    """
    for interval in range(1, len(layer_types) + 1):
        if all((kind == "full_attention") == (i % interval == 0) for i, kind in enumerate(layer_types)):
            return interval
    kinds = ", ".join(kind.removesuffix("_attention") for kind in layer_types)
    raise UserError(f"transformers 4.57 needs full attention at a fixed interval from the first layer, not {kinds}")


def cache_argument(model: torch.nn.Module) -> str | None:
    """Name of the argument of a model's `forward` that takes a key-value cache; None if it has none."""
    takes = inspect.signature(getattr(model, "_orig_mod", model).forward).parameters  # compiled models have another signature
    return next((name for name in CACHE_NAMES if name in takes), None)

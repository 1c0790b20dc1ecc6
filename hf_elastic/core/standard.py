"""Whether a subnet is a stock model: the stock class itself is asked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import nn

try:
    from transformers.initialization import no_init_weights
except ImportError:  # transformers 4.57
    from transformers.modeling_utils import no_init_weights

from .errors import UserError
from .portable import portable_config
from .skeleton import Skeleton
from .skips import Skipped

# Set while training or by what was run before, never by a constructor: not part of what an architecture is.
TRANSIENT = ("training", "gradient_checkpointing", "name_or_path", "p", "max_seq_len_cached")


def stock_config(skeleton: Skeleton):
    """The stock config of a subnet, built by the stock config class.

    Raises:
        ValueError: layers differ, or the class rejects the sizes.
    """
    if skeleton.layout.unsayable(skeleton.cut):
        raise UserError("its layers have different sizes, and a stock config has one value for all of them")
    config = skeleton.module.config
    try:
        return type(config).from_dict(config.to_dict())
    except Exception as error:  # the config classes raise their own types; whatever it is, the answer is no
        raise UserError(" ".join(str(error).split())) from error


def first_difference(skeleton: Skeleton) -> str | None:
    """Why a subnet is not a stock model, or None where it is.

    The stock class itself is asked: built on the meta device from the stock config, it must have the same modules, the same
    parameter shapes and the same plain attributes (window sizes, attention types, ...) as the skeleton; and both supported
    major versions of transformers must have words for its config. An attribute that no stock module has makes no difference.
    """
    try:
        config = stock_config(skeleton)
        portable_config(config)
        with torch.device("meta"), no_init_weights():
            stock = type(skeleton.module)(config)
    except ValueError as error:
        return str(error)
    nothing = (("the tree", "at its end"), {})
    if _builds_what_is_skipped(stock, skeleton.module):
        position, axes = next(iter(skeleton.layout.skipped(skeleton.cut).items()))
        what = f"its layer {position} skips {' and '.join(axes)}"
        return f"{what}, and {type(stock).__name__} of this transformers builds all of it, whatever per_layer_config says"
    pairs = itertools.zip_longest(_describe(skeleton.module), _describe(stock), fillvalue=nothing)
    for ((name, kind), values), ((stock_name, stock_kind), stock_values) in pairs:
        if (name, kind) != (stock_name, stock_kind):
            where = "" if name == stock_name else f"{stock_name} "
            return f"{name} is {kind} where the stock model has {where}{stock_kind}"
        for key, expected in stock_values.items():
            if values.get(key) != expected:
                return f"{name}.{key} is {values.get(key)} where the stock model has {expected}"
    return None


def _builds_what_is_skipped(stock: nn.Module, module: nn.Module) -> bool:
    """Whether a stock model has any of what a size skips, though its config says that it does."""
    built = dict(stock.named_modules())
    return any(isinstance(skipped, Skipped) and name in built for name, skipped in module.named_modules())


def _describe(model: nn.Module) -> Iterator[tuple[tuple, dict]]:
    """For each module its path and class, and its shapes and plain attributes, in a fixed order."""
    plain = (bool, int, float, str, tuple, type(None))
    for name, module in model.named_modules():
        if isinstance(module, Skipped):
            continue
        shapes = {key: None if parameter is None else tuple(parameter.shape) for key, parameter in module._parameters.items()}
        values = {
            key: value
            for key, value in sorted(vars(module).items())
            if not key.startswith("_") and key not in TRANSIENT and isinstance(value, plain)
        }
        yield (name or "model", type(module).__name__), {**shapes, **values}

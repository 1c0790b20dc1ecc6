"""Adapters in the module tree: how peft's parameters are called, what shapes they have, and which of them run.

peft replaces a layer `X` in place by a wrapper. Its weights become `X.base_layer.*`, the factors of an adapter
`X.lora_A.NAME.weight` and `X.lora_B.NAME.weight` (of an embedding `X.lora_embedding_A.NAME` and `_B`); a module that is trained
as a whole becomes `X.original_module.*` with one copy `X.modules_to_save.NAME.*` for each adapter. Factors have the axes of
the weight that they adapt, so they are cut along with it. peft itself is never imported here: as long as nobody else has
imported it there is nothing to find.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from .errors import UserError
from .shapes import Dim, SpecError

SUPPORTED = "plain LoRA on linear, Conv1D and embedding layers, and modules_to_save, as add_lora makes them"

_INSERTED = re.compile(r"\.(?:base_layer|original_module|modules_to_save\.[^.]+)(?=\.|$)")
_FACTOR = re.compile(r"(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B)\.[^.]+(?:\.(?P<key>weight|bias))?")


def plain_name(name: str) -> str:
    """The name that a parameter or module has without adapters; that of an adapter's own factor is only shortened."""
    return _INSERTED.sub("", name)


def is_table(name: str) -> bool:
    """Whether a parameter is the factor of an embedding in which tokens are looked up, `[rank, vocab]`."""
    return "lora_embedding_A" in name.split(".")


def is_factor(name: str) -> bool:
    """Whether a parameter is a factor of an adapter."""
    return any(part.startswith("lora_") for part in name.split("."))


def find_wrappers(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> wrapper of every layer that an adapter has replaced."""
    layers, utils = sys.modules.get("peft.tuners.tuners_utils"), sys.modules.get("peft.utils.other")
    if layers is None or utils is None:
        return {}
    kinds = (layers.BaseTunerLayer, utils.AuxiliaryTrainingWrapper)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def describe_parameter(
    name: str, tensor: torch.Tensor, wrappers: dict[str, nn.Module], dims_of: Callable[[str], tuple[Dim, ...]]
) -> tuple[str, tuple[Dim, ...]]:
    """What a parameter belongs to, and its dimensions.

    Args:
        name: as in `named_parameters`.
        tensor: the parameter; the rank of a factor is read off its shape.
        wrappers: as from `find_wrappers`.
        dims_of: name of a parameter of the stock model -> its dimensions, `[out, in]` for a linear layer.

    Returns:
        The stock model's parameter (of a factor: the weight that it adapts), and the dimensions: those of that parameter,
        or `[rank, in]` and `[out, rank]`, or `[out]` for the bias of a second factor.

    Raises:
        SpecError: the parameter is part of an adapter that cannot be cut.
    """
    parts = name.split(".")
    path = next((p for p in (".".join(parts[:i]) for i in range(len(parts))) if p in wrappers), None)
    rest = None if path is None else name[len(path) + 1 :]
    if rest is None or rest.startswith(("base_layer.", "original_module.", "modules_to_save.")):
        return plain_name(name), dims_of(plain_name(name))
    wrapper = wrappers[path]
    factor = _FACTOR.fullmatch(rest)
    if factor is None or not _is_plain_lora(wrapper):
        kinds = [type(wrapper), *map(type, _variants(wrapper))]
        kind = ", ".join(f"{kind.__module__}.{kind.__name__}" for kind in kinds)
        raise SpecError(f"the adapter parameter {name!r} ({kind}) cannot be cut to a size; supported: {SUPPORTED}")
    first, second = dims_of(f"{path}.weight")
    into, out = (first, second) if isinstance(wrapper.get_base_layer(), (nn.Embedding, Conv1D)) else (second, first)
    if factor["key"] == "bias":
        return f"{path}.weight", (out,)
    if factor["kind"].endswith("_A"):
        return f"{path}.weight", (((tensor.shape[0],),), into)
    return f"{path}.weight", (out, ((tensor.shape[1],),))


def _is_plain_lora(wrapper: nn.Module) -> bool:
    """Whether a layer adds `B A x`, and nothing that depends on the whole weight, such as its norm, to its output."""
    layer = sys.modules["peft.tuners.lora.layer"]
    return type(wrapper) in (layer.Linear, layer.Embedding) and not _variants(wrapper)


def _variants(wrapper: nn.Module) -> list:
    """What replaces the plain forward of a LoRA layer's adapters; peft before 0.16 knew only DoRA, with a magnitude vector."""
    return list(vars(wrapper).get("lora_variant", {}).values())


def idle_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters that a forward pass does not touch now: adapters that are switched off or merged, and modules
    that run as an adapter's copy instead."""
    idle = set()
    for path, wrapper in find_wrappers(model).items():
        running = set() if wrapper.disable_adapters or wrapper.merged_adapters else set(wrapper.active_adapters)
        copies = wrapper._modules.get("modules_to_save")
        if copies is not None and not running <= set(copies):
            running = set()
        for name, _ in wrapper.named_parameters(remove_duplicate=False):
            owner, adapter = name.split(".")[:2]
            if owner == "base_layer":
                continue
            if running if owner == "original_module" else adapter not in running:
                idle.add(f"{path}.{name}")
    return idle


def check_merged(model: nn.Module) -> None:
    """Raise ValueError, naming the adapters, if a model still has any that are not merged into its weights."""
    wrappers = find_wrappers(model).values()
    if not wrappers:
        return
    names = [name.split(".")[:2] for wrapper in wrappers for name, _ in wrapper.named_parameters()]
    adapters = sorted({adapter for owner, adapter in names if owner not in ("base_layer", "original_module")})
    raise UserError(
        f"the model has live adapters ({', '.join(adapters)}): merge them into the weights first, with merge_and_unload() of "
        "the PeftModel"
    )


def unmerge_disabled(wrappers: Iterable[nn.Module]) -> None:
    """Unmerge the adapters of disabled layers, as the layers would in their own forward: a view's must not, it has only a
    slice."""
    for wrapper in wrappers:
        if wrapper.disable_adapters and wrapper.merged_adapters:
            wrapper.unmerge()

"""A subnet as a real stock module: a copy of the module tree whose parameters are slices of the supernet's.

The tree is copied without its tensors, so every skeleton keeps the classes, the attention implementation and the hooks of
the model that it came from, and costs kilobytes. Nothing here knows an architecture: sizes come from the Layout.
"""

from __future__ import annotations

import copy
import fnmatch
import itertools
import types
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

try:
    from transformers.initialization import no_init_weights
except ImportError:  # transformers 4.57
    from transformers.modeling_utils import no_init_weights

from .adapters import SWITCHES, find_wrappers, plain_name
from .errors import UserError
from .layout import Cut, Layout
from .portable import portable_config
from .shapes import CutStep, evaluate
from .shapes import cut as cut_tensor

# Set while training or by the user, never by a constructor: not part of what an architecture is.
TRANSIENT = ("training", "gradient_checkpointing", "name_or_path")


@runtime_checkable
class FollowsSizes(Protocol):
    """A module of our own that has buffers which follow from the sizes that it remembers."""

    def follow_sizes(self) -> None:
        """Make the buffers again; replaces them, since another size may share them."""


def copy_tree(module: nn.Module, memo: dict[int, nn.Module] | None = None) -> nn.Module:
    """Copy a module tree, sharing every tensor and attribute; the dicts that hold them are new."""
    memo = {} if memo is None else memo
    if id(module) in memo:
        return memo[id(module)]
    twin = object.__new__(type(module))
    memo[id(module)] = twin
    for key, value in module.__dict__.items():
        # Parameters, buffers, submodules and hooks are changed in place later on, which must not reach the original.
        if key.startswith("_") and isinstance(value, dict):
            value = copy.copy(value)
        elif isinstance(value, types.MethodType) and value.__self__ is module:
            # transformers 4.57 leaves each layer its own bound `forward` after recording hidden states.
            value = types.MethodType(value.__func__, twin)
        twin.__dict__[key] = value
    for name, child in module._modules.items():
        twin._modules[name] = child if child is None else copy_tree(child, memo)
    return twin


class Skeleton:
    """The stock module of one subnet, and how to fill it.

    Args:
        model: the full stock model.
        layout: its layout.
        cut: the subnet.

    Attributes:
        module: an instance of `type(model)` with its own config, without weights until `fill`.
    """

    def __init__(self, model: PreTrainedModel, layout: Layout, cut: Cut):
        self.layout = layout
        self.cut = cut
        memo: dict[int, nn.Module] = {}
        self.module = copy_tree(model, memo)
        twins = self.module.get_submodule(layout.container)
        twins._modules = {str(i): twins._modules[str(layer)] for i, layer in enumerate(cut.layers)}
        self._number_layers(twins)
        self._set_config(model.config, twins)
        self._set_attributes()
        self._targets = self._find_targets(model)
        self._wrappers = self._pair_wrappers(model, memo)
        self._copied: list[tuple[nn.Parameter, int]] = []
        self._is_filled = False

    @staticmethod
    def _number_layers(layers: nn.ModuleList) -> None:
        """Number the kept layers from zero: the index is their place in the key-value cache."""
        for position, layer in enumerate(layers):
            for module in layer.modules():
                for attribute in ("layer_idx", "layer_id"):
                    if isinstance(vars(module).get(attribute), int):
                        vars(module)[attribute] = position

    def _set_config(self, full, layers: nn.ModuleList) -> None:
        """Give the tree a config of the cut sizes; where layers differ, each gets its own."""
        config = cut_config(full, self.layout, self.cut)
        for module in self.module.modules():
            # Buffers (rotary frequencies) follow the head size, which is never cut: their owner keeps the full config.
            if vars(module).get("config") is full and not (module._buffers and not module._parameters):
                vars(module)["config"] = config
        if not self.cut.is_uniform:
            for position, layer in enumerate(layers):
                own = copy.copy(config)
                for field, value in self.layout.config_values(self.cut, position).items():
                    setattr(own, field, value)
                for module in layer.modules():
                    if vars(module).get("config") is config:
                        vars(module)["config"] = own

    def _set_attributes(self) -> None:
        """Update what modules remember of their sizes, as the Spec declares it."""
        for name, module in self.module.named_modules():
            inside = self.layout.spec.layer_of(name)
            sizes = self.layout.sizes(self.cut, inside[1] if inside else None)
            for pattern, attributes in self.layout.spec.attributes.items():
                if not fnmatch.fnmatchcase(plain_name(name), pattern):
                    continue
                for attribute, expression in attributes.items():
                    if attribute in module._buffers:
                        value = evaluate(expression, sizes)
                        buffer = module._buffers[attribute]
                        module._buffers[attribute] = torch.full_like(buffer, value)
                    elif attribute in vars(module):
                        vars(module)[attribute] = evaluate(expression, sizes)

                if isinstance(module, FollowsSizes):
                    module.follow_sizes()

    def _find_targets(self, model: nn.Module) -> list[tuple]:
        """For each parameter: the owner of its full-size source, the skeleton's module, their keys, and the cut."""
        targets = []
        for name, (source, steps) in self.layout.plan(self.cut).items():
            source_path, _, source_key = source.rpartition(".")
            path, _, key = name.rpartition(".")
            targets.append((model.get_submodule(source_path), source_key, self.module.get_submodule(path), key, steps))
        return targets

    def _pair_wrappers(self, model: nn.Module, twins: dict[int, nn.Module]) -> list[tuple[nn.Module, nn.Module]]:
        """Each wrapper of an adapter in the kept layers: the supernet's and its twin here."""
        kept = set(self.module.modules())
        pairs = [(wrapper, twins[id(wrapper)]) for wrapper in find_wrappers(model).values()]
        return [(wrapper, twin) for wrapper, twin in pairs if twin in kept]

    def follow_switches(self) -> None:
        """Make the adapters active that are active in the supernet."""
        for wrapper, twin in self._wrappers:
            for key in SWITCHES:
                twin.__dict__[key] = copy.copy(getattr(wrapper, key))

    def fill(self, *, differentiable: bool) -> nn.Module:
        """Slice the supernet's current parameters into the module.

        Args:
            differentiable: True gives plain tensors through which gradients reach the supernet (call before every
                training forward); False gives frozen Parameters that share the supernet's storage.
        """
        tied: dict[tuple, torch.Tensor] = {}
        copied: list[tuple[nn.Parameter, int]] = []
        for owner, source_key, module, key, steps in self._targets:
            source = owner._parameters[source_key]
            # The outermost size of a cut is enough to tell two uses of one tied tensor apart.
            identity = (id(source), tuple(id(s) if isinstance(s, torch.Tensor) else s for _, s in steps))
            if identity not in tied:
                version = source._version
                tied[identity] = _slice(source, steps, differentiable)
                if not differentiable and any(isinstance(selection, torch.Tensor) for _, selection in steps):
                    copied.append((source, version))
            module._parameters[key] = tied[identity]
        if not self._is_filled:
            for _, _, module, _, _ in self._targets:
                _sync_sizes(module)
            self._is_filled = True
        self._copied = copied  # last: until now another thread has to find it stale
        return self.module

    @property
    def whole_embeddings(self) -> list[tuple[nn.Embedding, nn.Parameter]]:
        """The embeddings whose weight is the supernet's own, uncut, with that weight."""
        uncut = [(module, owner._parameters[source]) for owner, source, module, _, steps in self._targets if not steps]
        return [(module, weight) for module, weight in uncut if isinstance(module, nn.Embedding)]

    @property
    def is_stale(self) -> bool:
        """Whether a slice that had to be copied (the heads of a fused matrix) is older than its source."""
        return any(source._version != version for source, version in self._copied)


def _slice(source: torch.Tensor, steps: tuple[CutStep, ...], differentiable: bool) -> torch.Tensor:
    if differentiable:
        return cut_tensor(source, steps)
    return nn.Parameter(cut_tensor(source.detach(), steps), requires_grad=False)


def _sync_sizes(module: nn.Module) -> None:
    """Make the sizes that torch's own layers remember agree with their weight."""
    weight = module._parameters.get("weight")
    if weight is None:
        return
    shape = tuple(weight.shape)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = shape
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = shape
    elif isinstance(module, Conv1D):
        module.nx, module.nf = shape


def cut_config(full, layout: Layout, cut: Cut):
    """A copy of a stock config with the sizes of a cut; where layers differ, the values of the first one."""
    config = copy.deepcopy(full)
    for field in layout.spec.per_layer_config:
        values = vars(config).get(field)
        if isinstance(values, (list, tuple)) and len(values) == layout.num_layers:
            setattr(config, field, [values[layer] for layer in cut.layers])
    config.num_hidden_layers = len(cut.layers)
    rows = [layout.config_values(cut, position) for position in range(len(cut.layers))]
    for field, value in rows[0].items():
        values = [row[field] for row in rows]
        setattr(config, field, values if field in layout.spec.layered_config and len(set(values)) > 1 else value)
    return config


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
    major versions of transformers must have words for its config.
    """
    try:
        config = stock_config(skeleton)
        portable_config(config)
        with torch.device("meta"), no_init_weights():
            stock = type(skeleton.module)(config)
    except ValueError as error:
        return str(error)
    nothing = ("the tree", "at its end")
    pairs = itertools.zip_longest(_describe(skeleton.module), _describe(stock), fillvalue=nothing)
    for (name, value), (stock_name, stock_value) in pairs:
        if (name, value) != (stock_name, stock_value):
            where = "" if name == stock_name else f"{stock_name} "
            return f"{name} is {value} where the stock model has {where}{stock_value}"
    return None


def _describe(model: nn.Module) -> Iterator[tuple]:
    """Module tree, shapes and plain attributes, in a fixed order."""
    for name, module in model.named_modules():
        yield name or "model", type(module).__name__
        for key, parameter in module._parameters.items():
            yield f"{name}.{key}", None if parameter is None else tuple(parameter.shape)
        for key, value in sorted(vars(module).items()):
            if not key.startswith("_") and key not in TRANSIENT and isinstance(value, (bool, int, float, str, tuple, type(None))):
                yield f"{name}.{key}", value


MEMORY_LAYOUTS = ("prefix", "standard")


def set_memory_layout(model: nn.Module, layout: Layout, axes: set[str], name: str) -> None:
    """Store weights so that the prefixes that `axes` cut are contiguous in memory, or as usual; shapes and values stay.

    A prefix of a matrix's second dimension is strided, and strided operands cost a CPU 1.1x to 1.5x at small batches.
    Storing just those matrices transposed makes the prefix contiguous. Training is faster with the usual layout, in which
    autograd makes gradients.
    """
    for entry in layout.entries:
        if len(entry.dims) != 2 or not entry.use:
            continue
        cuts = [any(axis in segment for segment in dim for axis in axes) for dim in entry.dims]
        owner, _, key = entry.name.rpartition(".")
        parameter = model.get_submodule(owner)._parameters[key]
        # Sharded and meta tensors stay as they are.
        if cuts == [False, True] and type(parameter.data) is torch.Tensor and not parameter.is_meta:
            data = parameter.data
            parameter.data = data.t().contiguous().t() if name == "prefix" else data.contiguous()

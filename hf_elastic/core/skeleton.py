"""A subnet as a real stock module: twins of the kept modules whose parameters are slices of the supernet's.

Every twin keeps the class of the module that it follows, and costs kilobytes. Nothing here knows an architecture: sizes come
from the Layout.
"""

from __future__ import annotations

import functools
import gc
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

try:
    from transformers.initialization import no_init_weights
except ImportError:  # transformers 4.57
    from transformers.modeling_utils import no_init_weights

from .errors import UserError
from .layout import Cut, Layout
from .portable import portable_config
from .shapes import cut as cut_tensor
from .shapes import evaluate
from .twins import Twin, Watch, offloading_hook, weight_of

# Set while training or by what was run before, never by a constructor: not part of what an architecture is.
TRANSIENT = ("training", "gradient_checkpointing", "name_or_path", "p", "max_seq_len_cached")
# Where a layer has its place in the key-value cache.
POSITIONS = ("layer_idx", "layer_id")
# What torch's own layers remember of the shape of their weight.
SHAPES = {
    nn.Linear: ("out_features", "in_features"),
    nn.Embedding: ("num_embeddings", "embedding_dim"),
    nn.LayerNorm: ("normalized_shape",),
    Conv1D: ("nx", "nf"),
}
# Skeletons are built rarely and used often: one lock for all models keeps models copyable.
BUILD_LOCK = threading.RLock()
SAMPLES = 64


class ConfigTwin:
    """A config that follows another one, but for what a size changes.

    Args:
        original: whom to follow.
        sizes: gives the fields that the size decides, as the original is now.
    """

    def __init__(self, original: PretrainedConfig, sizes: Callable[[], dict]):
        self.original, self._sizes = original, sizes
        self.config = object.__new__(type(original))
        self.known: dict = {}

    def follow(self) -> None:
        """Take over what has changed since the last time."""
        now, known = dict(vars(self.original)), self.known
        if changed := {key: value for key, value in now.items() if known.get(key, self) is not value}:
            vars(self.config).update(changed)
            for field, value in self._sizes().items():
                setattr(self.config, field, value)
        for key in known.keys() - now.keys():
            vars(self.config).pop(key, None)
        self.known = now


class Configs:
    """The configs of a size: one that follows the full model's, and where layers differ one for each, which follows that one.

    Args:
        full: the full model's.
        layout: decides the sizes, together with `cut`; None where nothing is cut.
        cut: the size.
    """

    def __init__(self, full: PretrainedConfig, layout: Layout | None, cut: Cut | None):
        self._full, self._layout, self._cut = full, layout, cut
        self.twins: dict[int | None, ConfigTwin] = {}
        self.main = self.at().config

    def at(self, position: int | None = None) -> ConfigTwin:
        """That of the kept layer at `position`, or of what is outside the layers."""
        position = None if self._cut is None or self._cut.is_uniform else position
        if position not in self.twins:
            original = self._full if position is None else self.main
            self.twins[position] = ConfigTwin(original, functools.partial(self._sizes, position))
        return self.twins[position]

    def _sizes(self, position: int | None) -> dict:
        return {} if self._layout is None else cut_values(self._full, self._layout, self._cut, position)

    def follow(self) -> None:
        """Take over what has changed since the last time."""
        for twin in self.twins.values():
            twin.follow()


class FreshCall:
    """A call of a view that somebody holds: what was done to the supernet since is taken over first."""

    def __init__(self, skeleton: Skeleton):
        self.skeleton = skeleton

    def __call__(self, *args, **kwargs):
        """As `nn.Module.__call__`."""
        # A traced view takes it over when `view` is asked for it again.
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            self.skeleton._refresh(self.skeleton)
        module = self.skeleton.module
        return type(module)._call_impl(module, *args, **kwargs)

    def __reduce__(self):
        """A copy of a view stands on its own."""
        return getattr, (self.skeleton.module, "_call_impl")


class Skeleton:
    """The stock module of one subnet, and how to fill it.

    Args:
        model: the full stock model.
        layout: its layout; None where the model is cut already.
        cut: the subnet.
        evaluating: whether the module is for evaluation, whatever the model is in.
        refresh: called with this before the module is called; None where whoever calls it prepares it.

    Attributes:
        module: an instance of `type(model)` with its own config, without weights until `prepare`. It stays the same object.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layout: Layout | None,
        cut: Cut | None,
        *,
        evaluating: bool = False,
        refresh: Callable[[Skeleton], object] | None = None,
    ):
        self.model = model
        self.layout = layout
        self.cut = cut
        self._evaluating = evaluating
        self._refresh = refresh
        self.module: nn.Module | None = None
        self._build()

    def prepare(self, layout: Layout | None, *, differentiable: bool) -> nn.Module:
        """The module, as the supernet is now.

        Args:
            layout: of the supernet as it is now.
            differentiable: True gives plain tensors through which gradients reach the supernet (call before every training
                forward); False gives frozen Parameters that share the supernet's storage.

        Raises:
            UserError: a replaced `forward` would run the full size's weights.
        """
        with BUILD_LOCK:
            if layout is not self.layout or not self._is_built:
                self.layout = layout
                self._build()
            elif self._watch.has_changed:
                self._build() if any(twin.is_outdated for twin in self._twins) else self._follow()
            if differentiable:
                self._fill(differentiable=True)
            elif not self.is_ready(layout):  # else another thread was faster
                with torch.inference_mode(False):  # what is made here is used elsewhere, too
                    self._fill(differentiable=False)
        return self.module

    def is_ready(self, layout: Layout | None) -> bool:
        """Whether frozen slices are in place and nothing has changed since."""
        if layout is not self.layout or not self._is_frozen or self._watch.has_changed:
            return False
        if _pointers(self._sources) != self._known_pointers:
            return False
        return all(source._version == version and torch.equal(sample, seen) for source, version, sample, seen in self._copied)

    def _build(self) -> None:
        """Make the twins."""
        self._is_built = False
        self._twins: list[Twin] = []
        self._targets: list[tuple] = []
        self._values: dict[tuple, float] = {}
        self.configs = Configs(self.model.config, self.layout, self.cut)
        self._is_frozen = False
        self._copied: list[tuple] = []
        plan = None if self.layout is None else self.layout.plan(self.cut)
        collects = gc.isenabled()
        gc.disable()  # thousands of dicts at once would set it off several times, for nothing
        try:
            self.module = self._twin_of(self.model, "", None, plan, {})
            self._follow()
        finally:
            if collects:
                gc.enable()
        self._is_built = True

    def _twin_of(self, original: nn.Module, name: str, position: int | None, plan: Mapping | None, found: dict) -> nn.Module:
        """Make twins of a module and of what is in it, but for the layers that are not kept; note their weights."""
        if id(original) in found:
            return found[id(original)]
        twin = Twin(original, self._own(original, name, position), self.module if original is self.model else None)
        module = found[id(original)] = twin.module
        self._twins.append(twin)
        if self.layout is not None:
            self._set_sizes(twin, name, position)
        for key in twin.weights:
            path = f"{name}.{key}" if name else key
            self._targets.append((original, key, module, () if plan is None else plan[path][1]))
        is_container = self.layout is not None and name == self.layout.container
        kept = enumerate(self.cut.layers) if is_container else ()
        children = [(str(i), original._modules[str(layer)]) for i, layer in kept] if is_container else original._modules.items()
        for key, child in children:
            if key != "parametrizations":
                inside = int(key) if is_container else position
                path = f"{name}.{key}" if name else key
                module._modules[key] = child if child is None else self._twin_of(child, path, inside, plan, found)
        return module

    def _own(self, original: nn.Module, name: str, position: int | None) -> dict:
        """Attributes that the size decides."""
        values = vars(original)
        own = {} if position is None else {key: position for key in POSITIONS if isinstance(values.get(key), int)}
        if original is self.model and self._refresh is not None:
            own["_call_impl"] = FreshCall(self)
        if original is self.model and self.cut is not None and not self.cut.is_uniform:
            own["_get_static_cache_init_shape"] = _nothing
        if self._evaluating:
            own["training"] = False
        # Buffers (rotary frequencies) follow the head size, which is never cut: their owner keeps the full config.
        if values.get("config") is self.model.config and not (original._buffers and not original._parameters):
            own["config"] = self.configs.at(position).config
        return own

    def _set_sizes(self, twin: Twin, name: str, position: int | None) -> None:
        """Set what a module remembers of its sizes, as the Spec declares it."""
        for attribute, expression in self.layout.attributes_of(name):
            value = self._value(expression, None if position is None else self.cut.per_layer[position], position)
            if attribute in twin.original._buffers:
                twin.own_buffers[attribute] = value
            elif attribute in vars(twin.original):
                twin.own.add(attribute)
                vars(twin.module)[attribute] = value

    def _value(self, expression: str, sizes: tuple | None, position: int | None) -> float:
        key = (expression, sizes)  # layers that are alike are worked out once
        if key not in self._values:
            self._values[key] = evaluate(expression, self.layout.sizes(self.cut, position))
        return self._values[key]

    def _follow(self) -> None:
        """Take over what has changed in the modules and in the config."""
        self._is_frozen = False
        for twin in self._twins:
            twin.follow()
            if hasattr(type(twin.module), "follow_sizes"):  # of our own: makes buffers anew that follow from attributes
                twin.module.follow_sizes()
        self.configs.follow()
        self._watch = Watch(self._twins, [twin.original for twin in self.configs.twins.values()])

    def _fill(self, *, differentiable: bool) -> None:
        """Slice the supernet's current weights into the twins."""
        tied: dict[tuple, torch.Tensor] = {}
        sources, copied = [], []
        for owner, source_key, module, steps in self._targets:
            source = weight_of(owner, source_key)
            if source.is_meta and (hook := offloading_hook(owner)) is not None:
                source = hook.weights_map[source_key].to(hook.execution_device)
            # The outermost size of a cut is enough to tell two uses of one tied tensor apart.
            identity = (id(source), tuple(id(s) if isinstance(s, torch.Tensor) else s for _, s in steps))
            if identity not in tied:
                sources.append(source)  # also keeps its id from being another's
                if differentiable:
                    tied[identity] = cut_tensor(source, steps)
                else:
                    tied[identity] = nn.Parameter(cut_tensor(source.detach(), steps), requires_grad=False)
                    is_copy = any(isinstance(selection, torch.Tensor) for _, selection in steps)
                    if is_copy and not (source.is_meta or source.is_inference()):
                        copied.append((source, source._version, *_sample(source)))
            before = module._parameters.get(source_key)
            module._parameters[source_key] = tied[identity]
            if source_key == "weight" and (before is None or before.shape != tied[identity].shape):
                _sync_sizes(module)
        if not differentiable:
            self._sources, self._copied = sources, copied
            self._known_pointers = _pointers(sources)
        self._is_frozen = not differentiable and self._known_pointers is not None

    def release(self) -> None:
        """Let go of the slices that are copies; the next `prepare` makes them again."""
        for _, key, module, steps in self._targets:
            if any(isinstance(selection, torch.Tensor) for _, selection in steps):
                module._parameters.pop(key, None)
        self._is_frozen = False
        self._copied = []

    @property
    def whole_embeddings(self) -> list[tuple[nn.Embedding, nn.Parameter]]:
        """The embeddings whose weight is the supernet's own, uncut, with that weight."""
        uncut = [(module, weight_of(owner, key)) for owner, key, module, steps in self._targets if not steps]
        return [(module, weight) for module, weight in uncut if isinstance(module, nn.Embedding)]


def _nothing() -> None:
    """`generate` would lay out a static cache ahead, with as many heads in every layer; without that, each layer does."""


def _pointers(tensors: list[torch.Tensor]) -> list[int] | None:
    """Where tensors are in memory; None where some have no storage, within transforms of functions and tracers."""
    try:
        return [tensor.data_ptr() for tensor in tensors]
    except RuntimeError:
        return None


def _sample(source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Some elements of a tensor, and what they are now: writes through `.data` leave its version as it was."""
    count = min(SAMPLES, source.numel())
    sample = source.detach().as_strided((count,), (source.numel() // count,))
    return sample, sample.clone()


def _sync_sizes(module: nn.Module) -> None:
    """Make the sizes that torch's own layers remember agree with their weight."""
    shape = tuple(module._parameters["weight"].shape)
    for kind, names in SHAPES.items():
        if isinstance(module, kind):
            vars(module).update(zip(names, shape if len(names) > 1 else (shape,)))


def cut_values(full, layout: Layout, cut: Cut, position: int | None = None) -> dict:
    """Fields of a stock config whose values a cut decides, in the kept layer at `position`; by default those of the first one,
    or of all layers where the config has a value for each."""
    values = {"num_hidden_layers": len(cut.layers)}
    for field in layout.spec.per_layer_config:
        listed = vars(full).get(field)
        if isinstance(listed, (list, tuple)) and len(listed) == layout.num_layers:
            values[field] = [listed[layer] for layer in cut.layers]
    if position is not None:
        return {**values, **layout.config_values(cut, position)}
    rows = [layout.config_values(cut, place) for place in range(len(cut.layers) if not cut.is_uniform else 1)]
    for field, value in rows[0].items():
        column = [row[field] for row in rows]
        values[field] = column if field in layout.spec.layered_config and len(set(column)) > 1 else value
    return values


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
    pairs = itertools.zip_longest(_describe(skeleton.module), _describe(stock), fillvalue=nothing)
    for ((name, kind), values), ((stock_name, stock_kind), stock_values) in pairs:
        if (name, kind) != (stock_name, stock_kind):
            where = "" if name == stock_name else f"{stock_name} "
            return f"{name} is {kind} where the stock model has {where}{stock_kind}"
        for key, expected in stock_values.items():
            if values.get(key) != expected:
                return f"{name}.{key} is {values.get(key)} where the stock model has {expected}"
    return None


def _describe(model: nn.Module) -> Iterator[tuple[tuple, dict]]:
    """For each module its path and class, and its shapes and plain attributes, in a fixed order."""
    plain = (bool, int, float, str, tuple, type(None))
    for name, module in model.named_modules():
        shapes = {key: None if parameter is None else tuple(parameter.shape) for key, parameter in module._parameters.items()}
        values = {
            key: value
            for key, value in sorted(vars(module).items())
            if not key.startswith("_") and key not in TRANSIENT and isinstance(value, plain)
        }
        yield (name or "model", type(module).__name__), {**shapes, **values}


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

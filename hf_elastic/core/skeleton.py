"""A subnet as a real stock module: twins of the kept modules whose parameters are slices of the supernet's.

Every twin keeps the class of the module that it follows, and costs kilobytes. Nothing here knows an architecture: sizes come
from the Layout.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .layout import Cut, Layout
from .shapes import cut as cut_tensor
from .shapes import evaluate
from .skips import Skipped
from .twin_configs import Configs
from .twins import Twin, Watch, offloading_hook, weight_of

# Where a layer has its place in the key-value cache.
POSITIONS = ("layer_idx", "layer_id")
# Of which kind of attention a layer is, in some: it is given the mask of this kind, though it may skip attention.
KIND = "attention_type"
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


class _OfView:
    """A method of a view in place of its class's; a copy of a view stands on its own, and has the class's."""

    name: ClassVar[str]

    def __init__(self, skeleton: Skeleton):
        self.skeleton = skeleton

    def __reduce__(self):
        return getattr, (self.skeleton.module, self.name)


class FreshCall(_OfView):
    """A call of a view that somebody holds: what was done to the supernet since is taken over first."""

    name = "_call_impl"

    def __call__(self, *args, **kwargs):
        """As `nn.Module.__call__`."""
        # A traced view takes it over when `view` is asked for it again.
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            self.skeleton._refresh(self.skeleton)
        module = self.skeleton.module
        return type(module)._call_impl(module, *args, **kwargs)


class ExtractedSave(_OfView):
    """`save_pretrained` of a view: its slices are saved as the model that they are by themselves."""

    name = "save_pretrained"

    def __call__(self, *args, **kwargs):
        """As `PreTrainedModel.save_pretrained`."""
        return self.skeleton._extract().save_pretrained(*args, **kwargs)


class Skeleton:
    """The stock module of one subnet, and how to fill it.

    Args:
        model: the full stock model.
        layout: its layout; None where the model is cut already.
        cut: the subnet.
        evaluating: whether the module is for evaluation, whatever the model is in.
        refresh: called with this before the module is called; None where whoever calls it prepares it.
        extract: with `refresh`: makes a model of its own of the subnet.

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
        extract: Callable[[], PreTrainedModel] | None = None,
    ):
        self.model = model
        self.layout = layout
        self.cut = cut
        self._evaluating = evaluating
        self._refresh = refresh
        self._extract = extract
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
            inside = int(key) if is_container else position
            path = f"{name}.{key}" if name else key
            if key == "parametrizations":
                continue
            if self.layout is None or self.layout.keeps(path, self.cut, inside):
                module._modules[key] = child if child is None else self._twin_of(child, path, inside, plan, found)
            elif gives := self.layout.choices.gives(path):
                module._modules[key] = Skipped(gives, child)
        return module

    def _own(self, original: nn.Module, name: str, position: int | None) -> dict:
        """Attributes that the size decides."""
        values = vars(original)
        place = None if position is None else self.configs.cache_layers[position]
        own = {} if place is None else {key: place for key in POSITIONS if isinstance(values.get(key), int)}
        if place is not None and isinstance(values.get(KIND), str) and position in self.configs.idle_kinds:
            own[KIND] = self.configs.idle_kinds[position]
        if original is self.model and self._refresh is not None:
            own |= {method.name: method(self) for method in (FreshCall, ExtractedSave)}
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
                is_shape = isinstance(vars(twin.original)[attribute], tuple)
                vars(twin.module)[attribute] = (value,) if is_shape else value

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

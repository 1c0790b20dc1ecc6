"""Modules that run for others: a twin does what its original does now, but for what a size changes.

A size needs a module tree of its own, since its weights are slices and its attributes other numbers. Everything else (flags,
hooks, buffers, kernels, dropout rates, a replaced `forward`) stays the original's: before a size runs, what has changed in
the originals since the last time is copied over. Finding out that nothing has takes half a microsecond a module, and
asks nothing of whoever changes a module, so there is no list of changes that have to be announced.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import operator
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .errors import UserError

# What a twin fills and builds by itself.
FILLED = ("_parameters", "_modules")
TENSORS = ("_parameters", "_buffers")
# How an instance is called if not as its class is: bound to the original, or compiled with its weights.
CALLS = ("_compiled_call_impl", "_call_impl")
# transformers puts hooks on a model that is to record hidden states or attentions, once: a twin gets its own.
RECORDED = "_output_capturing_hooks_installed"
RECORDING = "transformers.utils.output_capturing"
PLAIN = (dict, OrderedDict)
BOUND = (types.MethodType, types.FunctionType, functools.partial)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
NOTHING: dict = {}
_MISSING = object()


def is_registry(key: str, value: object) -> bool:
    """Whether an attribute is one of the dicts in which a module keeps its parts: hooks, buffers and the like."""
    return key.startswith("_") and isinstance(value, dict)


class Twin:
    """A module that follows another one.

    Args:
        original: whom to follow.
        own: attributes that a size decides, with their values; they are never copied.
        module: an object to turn into the twin; default: a new one.

    Attributes:
        original: as given.
        module: the twin, an instance of the original's class (without parametrizations), without parameters and children.
        own: names of the attributes that a size decides; more may be added before the first `follow`.
        own_buffers: buffers that a size decides, and what they are filled with.
        plain: names of the original's attributes that are no registries.
        weights: names of its weights, as `weights_in` gives them.
        registries: its registries, by name, as they were at the last `follow`.
    """

    def __init__(self, original: nn.Module, own: Mapping, module: nn.Module | None = None):
        self.original = original
        self.own = {*FILLED, *CALLS, RECORDED, *own}
        self.own_buffers: dict[str, float] = {}
        self._known: dict = {}
        self.plain: tuple[str, ...] = ()
        self.registries: dict[str, dict] = {}
        self._computed = computed_weights(original)
        self._raw = tuple(f"{name}_" for name in self._computed)
        self.weights = weights_in(original)
        self.own |= {*self._computed, *self.weights}
        self._offloading = offloading_hook(original)
        if self._offloading is not None:  # it would bring back the original's weights
            self.own |= {"forward", "_old_forward", "_hf_hook"}
        kind = type(original)
        if "parametrizations" in original._modules:
            kind = kind.__mro__[1]  # torch derives a class whose properties compute the weights
        absent = {name: None for name, parameter in original._parameters.items() if parameter is None}
        self.module = object.__new__(kind) if module is None else module
        object.__setattr__(self.module, "__class__", kind)
        attributes = {"_parameters": absent, "_modules": {}, "_compiled_call_impl": None, **own}
        object.__setattr__(self.module, "__dict__", attributes)

    @property
    def is_outdated(self) -> bool:
        """Whether the original has other children, or gets its weights in another way, than when the twin was made."""
        original = self.original
        if not _same(self.registries["_modules"], original._modules):
            return True
        return not _same(self._computed, computed_weights(original)) or offloading_hook(original) is not self._offloading

    def follow(self) -> None:
        """Take over what has changed in the original since the last time.

        Raises:
            UserError: somebody has replaced the original's `forward` by one that runs the original's weights.
        """
        twin, known, registries, own = self.module.__dict__, self._known, self.registries, self.own
        now, plain = dict(self.original.__dict__), []
        for key, value in now.items():
            if key[0] == "_" and isinstance(value, dict):
                before = registries.get(key)
                if value or (before is None and type(value) not in PLAIN) or before:
                    self._follow_registry(key, value, twin)
                elif before is None:  # most are empty, and are for all time
                    registries[key] = NOTHING
                    if key not in FILLED:
                        twin[key] = type(value)()
                continue
            plain.append(key)
            if known.get(key, _MISSING) is not value and key not in own:
                twin[key] = self._rebound(key, value) if type(value) in BOUND else value
        for key in known.keys() - now.keys() - own:
            twin.pop(key, None)
        self._known, self.plain = now, tuple(plain)

    def _follow_registry(self, key: str, value: dict, twin: dict) -> None:
        before = self.registries.get(key)
        if _same(before, value):
            return
        self.registries[key] = dict(value)
        if key in FILLED:
            return
        before = before or NOTHING
        kept = {name: item for name, item in value.items() if not self._is_left_out(key, name, item)}
        if key == "_buffers":
            kept |= {name: torch.full_like(value[name], fill) for name, fill in self.own_buffers.items()}
        own = {name: item for name, item in twin.get(key, {}).items() if name not in before}  # hooks on the twin alone
        registry = copy.copy(value)  # of the same kind
        registry.clear()
        registry.update({**kept, **own})
        twin[key] = registry

    def _is_left_out(self, key: str, name: object, item: object) -> bool:
        """Whether a hook or buffer computes a weight of the original, or records what the original does."""
        if key == "_buffers":
            return bool(self._raw) and name.startswith(self._raw)
        return getattr(item, "__module__", None) == RECORDING or any(item is computer for computer in self._computed.values())

    def _rebound(self, key: str, value: object) -> object:
        """What is bound to the original, bound to the twin: accelerate and others replace `forward` on the instance."""
        if isinstance(value, types.MethodType) and value.__self__ is self.original:
            return types.MethodType(value.__func__, self.module)
        if isinstance(value, functools.partial) and any(arg is self.original for arg in value.args):
            args = [self.module if arg is self.original else arg for arg in value.args]
            return functools.update_wrapper(functools.partial(value.func, *args, **value.keywords), type(self.module).forward)
        if key == "forward" and self._reaches(value):
            raise UserError(
                f"forward of a {type(self.original).__name__} was replaced by {getattr(value, '__qualname__', value)}, which "
                "runs the full size's weights: bind a function to the module instead (types.MethodType), or run the full size"
            )
        return value

    def _reaches(self, value: object) -> bool:
        """Whether a function holds the original, or something bound to it."""
        held = [getattr(value, "__wrapped__", None), *(getattr(value, "__defaults__", None) or ())]
        if isinstance(value, types.FunctionType):
            held += inspect.getclosurevars(value).nonlocals.values()
        return any(one is self.original or getattr(one, "__self__", None) is self.original for one in held)


def _same(known: Mapping | None, now: Mapping) -> bool:
    return known is not None and len(known) == len(now) and all(known.get(k, _MISSING) is value for k, value in now.items())


def computed_weights(module: nn.Module) -> dict[str, object]:
    """Weights that are no parameters but follow from some: name -> who computes it (a mask, a norm or a parametrization)."""
    computed = dict(module._modules["parametrizations"].items()) if "parametrizations" in module._modules else {}
    for hook in module._forward_pre_hooks.values():
        name = getattr(hook, "_tensor_name", None) or getattr(hook, "name", None)  # of pruning; of weight and spectral norm
        if isinstance(name, str) and type(hook).__module__.startswith("torch.nn.utils."):
            computed[name] = hook
    return computed


def offloading_hook(module: nn.Module) -> object | None:
    """The hook of accelerate that keeps a module's weights on the CPU or on disk, and brings them back for its forward."""
    hook = vars(module).get("_hf_hook")
    return next((one for one in getattr(hook, "hooks", [hook]) if getattr(one, "offload", False)), None)


def weight_of(module: nn.Module, name: str) -> torch.Tensor:
    """A parameter, or what takes its place: computed now where it is computed."""
    parameter = module._parameters.get(name)
    if parameter is not None:
        return parameter
    hook = computed_weights(module).get(name)
    if hook is not None and not isinstance(hook, nn.Module):
        hook(module, ())
    return getattr(module, name)


def weights_in(module: nn.Module) -> list[str]:
    """Names of the weights of a module itself: a masked, normed or parametrized one in place of what it is computed from."""
    # `nn.DataParallel` makes the weights of replicas plain attributes, and notes them.
    parameters = module.__dict__.get("_former_parameters") or module._parameters
    names = [name for name, parameter in parameters.items() if parameter is not None]
    if not (computed := computed_weights(module)):
        return names
    return [*(name for name in names if not name.startswith(tuple(f"{one}_" for one in computed))), *computed]


def named_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """All weights under the names that they have in the stock model, tied ones under each of theirs.

    As `named_parameters(remove_duplicate=False)`, but a weight that is masked, normed or parametrized comes in place of the
    parameters that it is computed from.
    """
    weights = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if "parametrizations" not in path.split("."):
            for name in weights_in(module):
                weights[f"{path}.{name}" if path else name] = weight_of(module, name)
    return weights


class Watch:
    """Whether anything that a forward pass reads has been replaced, added or taken away since.

    Args:
        twins: of whose originals attributes, hooks, buffers and parameters are watched.
        configs: whose fields are.
        trees: modules of which only the children are.
        weights: modules of which only the parameters are.
    """

    def __init__(self, twins: Iterable[Twin] = (), configs: Iterable = (), trees: Iterable = (), weights: Iterable = ()):
        twins, configs = list(twins), list(configs)
        self._attributes = [twin.original.__dict__ for twin in twins] + list(map(vars, configs))
        # Lookups of just what is compared cost half of comparing whole dicts, whose entries are mostly registries.
        self._getters = [_getter(twin.plain) for twin in twins] + [_getter(tuple(vars(config))) for config in configs]
        registries = [(key, twin.original.__dict__[key], known) for twin in twins for key, known in twin.registries.items()]
        self._empty = [live for key, live, known in registries if key in HOOKS and not known]
        self._hooks = RemovableHandle.next_id
        self._registries = [live for key, live, known in registries if known and key not in TENSORS]
        # Leaves stay leaves, but containers of adapters are empty at first.
        self._registries += [module._modules for module in trees if module._modules or isinstance(module, nn.ModuleDict)]
        self._tensors = [live for key, live, known in registries if known and key in TENSORS]
        self._tensors += [module._parameters for module in weights if module._parameters]
        self._known = [dict(each) for each in (*self._registries, *self._tensors)]  # also keeps ids from being another's
        self._ids = self._identities()
        self._lengths = list(map(len, self._attributes))
        self._values = self._current()

    def _current(self) -> list[tuple]:
        return [getter(each) for getter, each in zip(self._getters, self._attributes)]

    def _identities(self) -> list[int]:
        # Comparing tensors with each other would compute, and over processes wait.
        return list(map(id, itertools.chain.from_iterable(map(dict.values, self._tensors))))

    @property
    def has_changed(self) -> bool:
        """Whether there is anything new."""
        if self._hooks != RemovableHandle.next_id:  # torch numbers all hooks: somebody put one on somewhere
            if any(self._empty):
                return True
            self._hooks = RemovableHandle.next_id
        try:
            # Values are compared only where they are not the same object.
            if list(map(len, self._attributes)) != self._lengths or self._current() != self._values:
                return True
            return self._registries != self._known[: len(self._registries)] or self._identities() != self._ids
        except (KeyError, RuntimeError, ValueError, TypeError):  # an array in place of another has no truth value
            return True

    def __reduce__(self):
        """A copy of a model has dicts of its own: what is known of these is nothing."""
        return _watch_of_a_copy, ()


def _watch_of_a_copy() -> Watch:
    watch = Watch()
    watch._lengths = [0]
    return watch


@functools.lru_cache(maxsize=1024)
def _getter(keys: tuple[str, ...]) -> Callable[[dict], tuple]:
    return operator.itemgetter(*keys) if keys else len

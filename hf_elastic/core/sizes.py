"""What an elastic model knows of its sizes, and the views and copies that it hands out of them."""

from __future__ import annotations

import copy
import functools
import itertools
import reprlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from weakref import WeakValueDictionary

import torch
from transformers import PretrainedConfig, PreTrainedModel

from .adapters import check_merged, find_wrappers, idle_parameters, unmerge_disabled
from .configuration_elastic import FULL, RESERVED_NAMES
from .counts import Counts
from .errors import UserError
from .layout import Cut, Layout
from .skeleton import BUILD_LOCK, Skeleton
from .space import DEPTH_AXES, Subnet
from .spec import Spec
from .standard import first_difference, no_init_weights
from .twins import Watch, named_weights

# How many of each kind are kept for the next time that they are asked for.
SKELETONS, VIEWS, CUTS = 8, 8, 4096


class Recent:
    """The things that were asked for last.

    Args:
        limit: how many are kept. A skeleton that somebody else holds is found, too.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._kept: OrderedDict = OrderedDict()
        self._alive: WeakValueDictionary = WeakValueDictionary()

    def __reduce__(self):
        """A copy starts empty: views would be copied as independent weights."""
        return Recent, (self._limit,)

    def get(self, key: Hashable, make: Callable[[], object]):
        """What is known by a key, made now if nothing is."""
        try:
            self._kept.move_to_end(key)
            return self._kept[key]
        except KeyError:  # or another thread has put it out meanwhile
            pass
        with BUILD_LOCK:
            value = self._kept.get(key) or self._alive.get(key) or make()
            self._kept[key] = value
            if isinstance(value, Skeleton):
                self._alive[key] = value
            if len(self._kept) > self._limit:
                self._kept.popitem(last=False)
        return value


class SizesMixin:
    """Sizes of an elastic model: names, counts, portability, views and extracted models.

    Needs `base`, `space`, `config` and `frozen_cut` of the class that it is mixed into, and `_layout` and `_tree`,
    which it keeps up to date.
    """

    @property
    def layout(self) -> Layout:
        """Names, shapes and uses of all parameters, adapters included.

        Raises:
            SpecError: an adapter cannot be cut; the message names its parameter.
        """
        self._follow_tree(weights=True)
        if self._layout is None:
            with BUILD_LOCK:
                self._layout = self._layout or Layout(
                    Spec.from_dict(self.config.spec), self.base, self.config.layer_order, self.config.grown
                )
        return self._layout

    def _follow_tree(self, *, weights: bool = False) -> None:
        """Notice what has been done to the module tree.

        Args:
            weights: also look for weights that were replaced, tied or resized; what uses some of them notices that by itself.
        """
        unmerge_disabled(self._wrappers)
        if not (self._tree.has_changed or (weights and self._weights.has_changed)):
            return
        with BUILD_LOCK:
            shape = self._shape()
            if shape != self._known_shape:
                self._known_shape = shape
                self._start()
            self._differences = Recent(CUTS)
            if self._configs is not None:
                self._configs.follow()
                self._layout.retie(self.base)
            self._watch()  # last: until now other threads have to wait for the lock

    def _shape(self) -> list:
        """All that a Layout reads off the model: modules, and shapes of weights and which are one."""
        first: dict[int, str] = {}
        weights = named_weights(self.base)
        shapes = [(name, tuple(weight.shape), first.setdefault(id(weight), name)) for name, weight in weights.items()]
        return [*shapes, *((name, type(module)) for name, module in self.base.named_modules())]

    def _watch(self) -> None:
        modules = list(self.base.modules())
        # Processes that hold parts of the weights put whole ones in their place within each forward.
        self._weights = Watch(weights=() if self.is_sharded else modules)
        self._tree = Watch(configs=[self.base.config], trees=modules)

    def _start(self) -> None:
        """Know nothing of the base but that it is there; layout and sizes follow when they are asked for."""
        if self.frozen_cut is None:  # else the base is what is left of a larger model, and runs as it is
            self._layout: Layout | None = None
        self._wrappers = list(find_wrappers(self.base).values())
        self._cuts, self._differences = Recent(CUTS), Recent(CUTS)
        self._counts: tuple[set, Counts] | None = None

    def _full_cut(self) -> Cut:
        return self.frozen_cut or self.resolve(None)

    def resolve(self, subnet: str | Mapping | None) -> Cut:
        """The sizes that a name, a subnet or None (the full model) stands for.

        Three names are the same everywhere, and no user's size may take them: "full" is the whole supernet, as None is;
        "largest" and "smallest" are the ends of the space. A space need not reach up to the full size; usually it does.

        Raises:
            UserError: an unknown name (the message lists the known), or a subnet that this model does not have.
        """
        if not isinstance(subnet, (str, Mapping, type(None))):
            raise UserError(
                f"{reprlib.repr(subnet)} is not a subnet: give a name, a mapping of axes to values, or None for the full model"
            )
        if isinstance(subnet, str):
            subnet = self._named(subnet)
        if isinstance(subnet, Mapping) and not isinstance(subnet, Subnet):
            subnet = Subnet(subnet)
        self._follow_tree()
        return self._cuts.get(subnet, lambda: self._resolve(subnet))

    def _named(self, name: str) -> Mapping | None:
        if name == FULL:
            return None
        if name in ("largest", "smallest"):
            return getattr(self.space, name)
        if name not in self.config.subnets:
            raise UserError(f"unknown subnet {name!r}; known: {', '.join((*RESERVED_NAMES, *self.config.subnets))}")
        return self.config.subnets[name]

    def _resolve(self, subnet: Subnet | None) -> Cut:
        if self.frozen_cut is None:
            return self.layout.resolve(subnet)
        if subnet not in (None, self.space.largest) and self.layout.resolve(subnet) != self.frozen_cut:
            raise UserError(f"this checkpoint is cut to {self.config.frozen} and has no other size, such as {subnet}")
        return self.frozen_cut

    def subnet(self, subnet: str | Mapping | None) -> Subnet:
        """A name or a partial subnet with every axis spelled out."""
        return self.layout.subnet_of(self.resolve(subnet))

    def grow(self, sizes: Mapping[str, Sequence] | None) -> None:
        """Say what each layer has of an axis where a subnet does not name the axis; `config.grown` keeps it.

        Weights stay as they are, and the full model, which None selects, is as large as before.

        Args:
            sizes: axis -> one entry for each layer of the full model: a size, or for layers with choices one for each, such as
                `{"intermediate_size": [{"block_type=bert": 64, "block_type=mobilebert": 96}, ...]}`. None: all of it.

        Raises:
            UserError: an axis that layers do not have, not one entry per layer, a size that this model does not have, or a
                checkpoint that is frozen at one size.
        """
        if self.frozen_cut is not None:
            raise UserError("grown: this checkpoint is frozen at one size")
        self.layout.grow(sizes)
        self.config.grown = sizes
        self._cuts = Recent(CUTS)

    def chain(self, names: Sequence[str] | None = None) -> list[str]:
        """Names of nested sizes, the largest first: each has its layers and widths within the one before.

        Args:
            names: the sizes; default "largest" and every named one.

        Raises:
            ValueError: an unknown name, or two sizes of which neither is nested in the other.
        """
        names = ["largest", *self.config.subnets] if names is None else list(names)
        ordered = sorted(names, key=lambda name: -self.flops_of(name))
        for larger, smaller in itertools.pairwise(ordered):
            if not self.resolve(larger).contains(self.resolve(smaller)):
                raise UserError(f"{smaller} is not nested in {larger}: some of its layers or widths are not within it")
        return ordered

    def extra_repr(self) -> str:
        """What `repr` says before the stock modules: the stock class, how many sizes there are, and which one is selected."""
        sizes = "1 size" if self.space.size == 1 else f"{self.space.size:,} sizes"
        selected = "the full one" if self._selected is None else self.config.subnet
        return f"{type(self.base).__name__} of {sizes}, selected: {selected}"

    def select(self, subnet: str | Mapping | None) -> None:
        """Choose the size that `forward` and `generate` run; None is the full model.

        Raises:
            UserError: as `resolve`.
        """
        self.resolve(subnet)
        self.config.subnet = subnet.to_dict() if isinstance(subnet, Subnet) else subnet

    @property
    def _selected(self) -> Cut | None:
        """The size that `config.subnet` says, None for the full one."""
        if self.config.subnet is None:
            return None
        cut = self.resolve(self.config.subnet)
        return None if cut == self._full_cut() else cut

    @property
    def counts(self) -> Counts:
        """Closed-form counts, for populations; adapters are included, and take FLOPs as long as they are active.

        Raises:
            ValueError: a checkpoint that is frozen at a subnet has adapters that are not merged.
        """
        if self.frozen_cut is not None:
            check_merged(self.base)
        layout, idle = self.layout, idle_parameters(self.base)
        if self._counts is None or self._counts[0] != idle:
            self._counts = (idle, Counts(layout, idle))
        return self._counts[1]

    def num_parameters_of(self, subnet: str | Mapping | Sequence | None):
        """Parameters of a subnet (int), or of each of a list or tuple (array `[N]`); tied ones count once."""
        if isinstance(subnet, (list, tuple)):
            return self.counts.parameters_of([self.subnet(s) if isinstance(s, str) else s for s in subnet])
        return int(self.counts.parameters_of([self.subnet(subnet)])[0])

    def flops_of(self, subnet: str | Mapping | Sequence | None, batch_size: int = 1, sequence_length: int = 128):
        """FLOPs of one forward pass (matrix products, a multiply-add is two) of a subnet, or of each of a list or tuple."""
        if isinstance(subnet, (list, tuple)):
            subnets = [self.subnet(s) if isinstance(s, str) else s for s in subnet]
            return self.counts.flops_of(subnets, batch_size, sequence_length)
        return int(self.counts.flops_of([self.subnet(subnet)], batch_size, sequence_length)[0])

    def portability_of(self, subnet: str | Mapping | None = None) -> str:
        """ "standard" if the subnet is an instance of the stock class, "elastic" if it needs this package.

        Raises:
            ValueError: adapters are not merged yet.
        """
        return "elastic" if self.why_elastic(subnet) else "standard"

    def why_elastic(self, subnet: str | Mapping | None = None) -> str | None:
        """Why a subnet is not standard, in a sentence fragment; None if it is.

        Raises:
            ValueError: adapters are not merged yet.
        """
        cut = self.resolve(subnet)
        check_merged(self.base)
        if self.frozen_cut is not None:
            return "the checkpoint is frozen at an elastic subnet"
        return self._differences.get(cut, lambda: (first_difference(self._view(cut)),))[0]

    def nearest_standard(self, subnet: str | Mapping | None) -> Subnet:
        """The standard subnet that differs least from `subnet`: its layers made alike first, then its heads and its hidden
        size made full, for as long as that is needed."""
        cut = self.resolve(subnet)
        skips = {axis for axis in self.layout.choices if self.layout.spec.can_skip(axis)}
        sizes = {axis: value for axis, value in self.layout.subnet_of(cut).items() if axis not in (*DEPTH_AXES, *skips)}
        sizes = {axis: sorted(v)[len(v) // 2] if isinstance(v, tuple) else v for axis, v in sizes.items()}
        full_heads = {axis: self.layout.value(axis) for axis in sizes if axis.endswith("heads")}
        for changed in ({}, full_heads, {**full_heads, "hidden_size": self.layout.value("hidden_size")}):
            candidate = Subnet({"layers": cut.layers, **sizes, **changed})
            if self.portability_of(candidate) == "standard":
                return self.layout.subnet_of(self.resolve(candidate))
        return self.subnet(None)

    def forget_views(self) -> None:
        """Let go of all views made so far; those of fused matrices hold copies of what was cut in heads."""
        self._views, self._running = Recent(VIEWS), Recent(SKELETONS)
        self._filled: list[Skeleton] = []

    def _view(self, cut: Cut) -> Skeleton:
        """The skeleton of a view, prepared."""
        skeleton = self._views.get(cut, lambda: self._make_skeleton(cut, evaluating=True))
        self._prepare(skeleton, differentiable=False)
        return skeleton

    def _make_skeleton(self, cut: Cut, *, evaluating: bool) -> Skeleton:
        layout = None if self.frozen_cut is not None else self.layout  # a frozen base is cut already
        options = {"evaluating": evaluating}
        if evaluating:
            subnet = None if layout is None else layout.subnet_of(cut)
            options |= {"refresh": self._refresh, "extract": functools.partial(self.extract, subnet)}
        return Skeleton(self.base, layout, None if layout is None else cut, **options)

    def _refresh(self, skeleton: Skeleton) -> None:
        self._follow_tree()
        self._prepare(skeleton, differentiable=False)

    def _prepare(self, skeleton: Skeleton, *, differentiable: bool) -> PreTrainedModel:
        if not differentiable and skeleton.is_ready(self._layout if self.frozen_cut is None else None):
            return skeleton.module
        return skeleton.prepare(self.layout if self.frozen_cut is None else None, differentiable=differentiable)

    def view(self, subnet: str | Mapping | None = None) -> PreTrainedModel:
        """A subnet as a callable stock module, in evaluation mode, whose weights share the supernet's storage.

        Views of several sizes, or one view, may run in several threads at once. The same size gives the same object.
        """
        return self._view(self.resolve(subnet)).module

    def standalone(self, subnet: str | Mapping | None = None) -> tuple[type[PreTrainedModel], PretrainedConfig]:
        """Class and config of a subnet on its own: what `extract` gives, without its weights.

        Raises:
            ValueError: adapters are not merged yet.
        """
        check_merged(self.base)
        if self.portability_of(subnet) == "elastic":
            config = copy.deepcopy(self.config)
            config.frozen = self.subnet(subnet).to_dict()
            config.space, config.subnets, config.subnet, config.grown = None, {}, None, None
            return self._elastic_class(), config
        view = self.view(subnet)
        stock_config = view.config.from_dict(view.config.to_dict())
        stock_config._attn_implementation = view.config._attn_implementation  # not part of the dict
        if "use_cache" in vars(stock_config):  # Trainer turns it off for good
            stock_config.use_cache = True
        return type(self.base), stock_config

    def extract(self, subnet: str | Mapping | None = None) -> PreTrainedModel:
        """A standalone copy of a subnet, in evaluation mode: the stock class where it is standard, else an elastic model
        frozen at it.

        Raises:
            ValueError: adapters are not merged yet, or a part was replaced by one that the config knows nothing of.
        """
        kind, config = self.standalone(subnet)
        view = self.view(subnet)
        weights = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in view.state_dict().items()
        }
        with no_init_weights():
            model = kind(config)
        try:
            model.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"a part was replaced by one of another shape than the config says: {reason}") from error
        model.tie_weights()
        model.to(self.device)
        dtypes = {name: buffer.dtype for name, buffer in view.named_buffers()}
        for name, buffer in model.named_buffers():  # rotary frequencies may be in float32 in half precision, too
            buffer.data = buffer.to(dtypes.get(name, buffer.dtype))
        if model.can_generate():
            model.generation_config = copy.deepcopy(self.generation_config)
        return model.eval()

    def __getstate__(self) -> dict:
        """What is copied and pickled: no skeletons."""
        return {**self.__dict__, "_filled": []}

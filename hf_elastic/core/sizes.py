"""What an elastic model knows of its sizes, and the views and copies that it hands out of them."""

from __future__ import annotations

import copy
import itertools
import reprlib
import threading
from collections.abc import Mapping, Sequence

from transformers import PretrainedConfig, PreTrainedModel

from .adapters import ModuleTree, check_merged, idle_parameters
from .counts import Counts
from .errors import UserError
from .layout import Cut, Layout
from .skeleton import Skeleton, copy_tree, first_difference, no_init_weights
from .space import DEPTH_AXES, Subnet

# Views are built rarely and used often: one lock for all models keeps models copyable.
_BUILD_LOCK = threading.RLock()


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
        self._follow_tree()
        return self._layout

    def _follow_tree(self) -> None:
        """Notice what has been done to the module tree: adapters added, merged, removed or switched."""
        if not (self._tree.has_changed or self._tree.is_switched):
            return
        with _BUILD_LOCK:
            self._tree.unmerge_disabled()
            if self._tree.has_changed:
                self._rebuild()
            elif self._tree.is_switched:
                for skeleton in (*self._views.values(), *self._trained.values()):
                    skeleton.follow_switches()
                self._counts = self._frozen_view = None
                self._tree.remember_switches()

    def _rebuild(self) -> None:
        """Read names and shapes off the module tree again. If that fails, so will the next call."""
        tree = ModuleTree(self.base)
        if self.frozen_cut is None:  # else the base is what is left of a larger model, and runs as it is
            self._layout = Layout(self._layout.spec, self.base, self.config.layer_order)
        self._reset_views()
        self._tree = tree  # last: until now other threads have to wait for the lock

    @property
    def num_labels(self) -> int:
        """Number of labels of a classifier."""
        return self.config.num_labels

    def _full_cut(self) -> Cut:
        return self.frozen_cut or self.layout.resolve(None)

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
        if isinstance(subnet, Mapping) and not isinstance(subnet, Subnet):
            subnet = Subnet(subnet)
        self._follow_tree()
        if subnet not in self._cuts:
            self._cuts[subnet] = self._resolve(subnet)
        return self._cuts[subnet]

    def _resolve(self, subnet: str | Subnet | None) -> Cut:
        if isinstance(subnet, str):
            ends = {"full": None, "largest": self.space.largest, "smallest": self.space.smallest}
            known = {**ends, **self.config.subnets, **ends}
            if subnet not in known:
                raise UserError(f"unknown subnet {subnet!r}; known: {', '.join(known)}")
            subnet = None if known[subnet] is None else Subnet(known[subnet])
        if self.frozen_cut is None:
            return self.layout.resolve(subnet)
        if subnet not in (None, self.space.largest) and self.layout.resolve(subnet) != self.frozen_cut:
            raise UserError(f"this checkpoint is cut to {self.config.frozen} and has no other size, such as {subnet}")
        return self.frozen_cut

    def subnet(self, subnet: str | Mapping | None) -> Subnet:
        """A name or a partial subnet with every axis spelled out."""
        return self.layout.subnet_of(self.resolve(subnet))

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
        """Choose the size that `forward` and `generate` run; None is the full model."""
        self._selected = None if subnet is None else self.resolve(subnet)
        if self._selected == self._full_cut():
            self._selected = None
        self.config.subnet = subnet.to_dict() if isinstance(subnet, Subnet) else subnet

    @property
    def counts(self) -> Counts:
        """Closed-form counts, for populations; adapters are included, and take FLOPs as long as they are active.

        Raises:
            ValueError: a checkpoint that is frozen at a subnet has adapters that are not merged.
        """
        self._follow_tree()
        if self._counts is None:
            if self.frozen_cut is not None:
                check_merged(self.base)
            self._counts = Counts(self._layout, idle_parameters(self.base))
        return self._counts

    def num_parameters_of(self, subnet: str | Mapping | Sequence | None):
        """Parameters of a subnet (int), or of each of a list (array `[N]`); tied ones count once."""
        if isinstance(subnet, list):
            return self.counts.parameters_of([self.subnet(s) if isinstance(s, str) else s for s in subnet])
        return int(self.counts.parameters_of([self.subnet(subnet)])[0])

    def flops_of(self, subnet: str | Mapping | Sequence | None, batch_size: int = 1, sequence_length: int = 128):
        """FLOPs of one forward pass (matrix products, a multiply-add is two) of a subnet, or of each of a list."""
        if isinstance(subnet, list):
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
        if cut not in self._differences:
            check_merged(self.base)
            frozen = "the checkpoint is frozen at an elastic subnet"
            self._differences[cut] = frozen if self.frozen_cut is not None else first_difference(self._skeleton(cut))
        return self._differences[cut]

    def nearest_standard(self, subnet: str | Mapping | None) -> Subnet:
        """The standard subnet that differs least from `subnet`: its layers made alike first, then its heads and its hidden
        size made full, for as long as that is needed."""
        cut = self.resolve(subnet)
        sizes = {axis: value for axis, value in self.layout.subnet_of(cut).items() if axis not in DEPTH_AXES}
        sizes = {axis: sorted(v)[len(v) // 2] if isinstance(v, tuple) else v for axis, v in sizes.items()}
        full_heads = {axis: self.layout.value(axis) for axis in sizes if axis.endswith("heads")}
        for changed in ({}, full_heads, {**full_heads, "hidden_size": self.layout.value("hidden_size")}):
            candidate = Subnet({"layers": cut.layers, **sizes, **changed})
            if self.portability_of(candidate) == "standard":
                return self.layout.subnet_of(self.resolve(candidate))
        return self.subnet(None)

    def forget_views(self) -> None:
        """Let go of all views made so far; those of fused matrices hold copies of what was cut in heads."""
        self._reset_views()

    def _reset_views(self) -> None:
        """Forget everything that was built from the weights or the module tree."""
        self._views: dict[Cut, Skeleton] = {}
        self._trained: dict[Cut, Skeleton] = {}
        self._cuts: dict = {}
        self._differences: dict[Cut, str | None] = {}
        self._counts = None
        self._frozen_view: PreTrainedModel | None = None

    def _skeleton(self, cut: Cut) -> Skeleton:
        skeleton = self._views.get(cut)
        if skeleton is None or skeleton.is_stale:
            with _BUILD_LOCK:
                skeleton = self._views.get(cut)
                if skeleton is None:
                    skeleton = Skeleton(self.base, self.layout, cut)
                    skeleton.module.eval()
                elif not skeleton.is_stale:  # another thread was faster
                    return skeleton
                skeleton.fill(differentiable=False)
                self._views[cut] = skeleton  # only now: other threads use what they find here without the lock
        return skeleton

    def view(self, subnet: str | Mapping | None = None) -> PreTrainedModel:
        """A subnet as a callable stock module, in evaluation mode, whose weights share the supernet's storage.

        Views of several sizes, or one view, may run in several threads at once. The same size gives the same object.
        """
        cut = self.resolve(subnet)
        if self.frozen_cut is not None:  # the base is cut already
            if self._frozen_view is None:
                self._frozen_view = copy_tree(self.base).eval()
            return self._frozen_view
        return self._skeleton(cut).module

    def standalone(self, subnet: str | Mapping | None = None) -> tuple[type[PreTrainedModel], PretrainedConfig]:
        """Class and config of a subnet on its own: what `extract` gives, without its weights.

        Raises:
            ValueError: adapters are not merged yet.
        """
        check_merged(self.base)
        if self.portability_of(subnet) == "elastic":
            config = copy.deepcopy(self.config)
            config.frozen = self.subnet(subnet).to_dict()
            config.space, config.subnets, config.subnet = None, {}, None
            return type(self), config
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
            ValueError: adapters are not merged yet.
        """
        kind, config = self.standalone(subnet)
        weights = {name: tensor.detach().clone() for name, tensor in self.view(subnet).state_dict().items()}
        with no_init_weights():
            model = kind(config)
        model.to(device=self.device, dtype=self.dtype)
        model.load_state_dict(weights)
        model.tie_weights()
        if model.can_generate():
            model.generation_config = copy.deepcopy(self.generation_config)
        return model.eval()

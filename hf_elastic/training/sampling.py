"""Which sizes are trained in a step, and how much each counts."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, inf

from ..core.errors import UserError
from ..core.layout import Cut
from ..core.modeling_elastic import ElasticPreTrainedModel
from ..core.space import DEPTH_AXES, Space, Subnet, end_of
from .arguments import ElasticTrainingArguments
from .growth import Growth

# `all` trains every size in every step; beyond this many a step would hardly end.
MOST_AT_ONCE = 64

Drawn = list[tuple[str, Subnet]]


@dataclass
class Sampler:
    """Draws the sizes of each optimizer step.

    A draw depends on the seed and the step alone: every process and every micro-batch of a step trains the same sizes, and a
    resumed run draws what the uninterrupted one would have drawn.

    Args:
        space: where sizes come from.
        sampling: "sandwich" (largest, smallest and `num_random` others; Yu & Huang 2019, "Universally Slimmable Networks", the
            sandwich rule), "all" (every named size, or the whole space where none is named; ElasticLM), "single_path" (one
            uniform size), or "progressive" (the sandwich rule in a space that starts at the largest size and opens axis by
            axis; Cai et al. 2020, "Once-for-All", section 3.3, progressive shrinking).
        num_random: random sizes per sandwich.
        seed: of the draws.
        named: name -> subnet, the largest first: the only sizes trained beside the largest; empty for the whole space.
        only_named: whether random sizes come from `named` alone.
        schedule: for "progressive": axis -> share of the training after which it opens; None for evenly spaced shares.
        max_group: as for `Space`.
        growth: of the widths that the space leaves open, or None.

    Raises:
        UserError: "all" with more than 64 sizes; a schedule without progressive sampling, with an
            unknown axis or a share outside [0, 1), or one that leaves an axis of the space closed.
    """

    space: Space
    sampling: str
    num_random: int = 2
    seed: int = 0
    named: Mapping[str, Subnet] = field(default_factory=dict)
    only_named: bool = False
    schedule: Mapping[str, float] | None = None
    max_group: int | None = None
    growth: Growth | None = None

    def __post_init__(self):
        count = len(self.named) or self.space.size
        if self.sampling == "all" and count > MOST_AT_ONCE:
            raise UserError(
                f"sampling: 'all' with {count} sizes; at most {MOST_AT_ONCE}: name sizes in subnets, or use 'sandwich'"
            )
        if self.sampling == "progressive":
            if self.only_named:
                raise UserError("sampling: 'progressive' opens the axes of the space; it does not go with train_subnets")
            self.schedule = self._check_schedule()
        elif self.schedule is not None:
            raise UserError(f"progressive_schedule: only for sampling 'progressive', not {self.sampling!r}")
        self._opened: dict[tuple[str, ...], Space] = {}

    def _elastic_axes(self) -> list[str]:
        """Axes with a choice: widths first, depth last, as in Once-for-All's order from fine to coarse."""
        axes = [axis for axis in self.space if len(self.space[axis]) > 1]
        return sorted(axes, key=lambda axis: axis in DEPTH_AXES)

    def _check_schedule(self) -> dict[str, float]:
        axes = self._elastic_axes()
        if self.schedule is None:
            return {axis: round(0.1 + 0.5 * index / max(1, len(axes)), 3) for index, axis in enumerate(axes)}
        for axis, share in self.schedule.items():
            if axis not in axes:
                raise UserError(f"progressive_schedule: {axis!r} is no elastic axis of the space; these are: {', '.join(axes)}")
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
                raise UserError(
                    f"progressive_schedule: {axis}: {share!r} is not a share of the training, from 0 to below 1; "
                    "the smallest size would never be reached"
                )
        for axis in axes:
            if axis not in self.schedule:
                raise UserError(f"progressive_schedule: {axis} never opens, so the smallest size is never reached; add it")
        return dict(self.schedule)

    def check_steps(self, max_steps: int) -> None:
        """Raise UserError if the last axis of the schedule opens after the last of `max_steps` steps."""
        if self.sampling != "progressive":
            return
        for axis, share in self.schedule.items():
            if ceil(share * max_steps) >= max_steps:
                raise UserError(
                    f"progressive_schedule: {axis} opens at {share} of {max_steps} steps, so the smallest size is never reached"
                )

    def space_at(self, step: int, max_steps: int) -> Space:
        """The part of the space that is open at a step."""
        if self.sampling != "progressive":
            return self.space
        opened = tuple(axis for axis, share in self.schedule.items() if step >= share * max_steps)
        if opened not in self._opened:
            full = self.space.to_dict()
            values = {axis: full[axis] if axis in opened else [end_of(full[axis], -1)] for axis in self.space}
            self._opened[opened] = Space.from_dict({**full, **values}, max_group=self.max_group)
        return self._opened[opened]

    def draw(self, step: int, max_steps: int) -> Drawn:
        """The sizes of one optimizer step, the largest first.

        Args:
            step: number of optimizer steps already done.
            max_steps: of the whole training.

        Returns:
            (role, subnet) pairs; the role is "largest", "smallest" or "random", or the size's name.
        """
        generator = random.Random(f"{self.seed}-{step}")
        if self.sampling == "all":
            return self._everything()
        if self.only_named:
            return self._from_names(generator)
        space = self.space_at(step, max_steps)
        if self.sampling == "single_path":
            return [("random", space.sample(generator))]
        sizes = [("largest", space.largest)]
        if space.size == 1:
            return sizes
        return [*sizes, *(("random", space.sample(generator)) for _ in range(self.num_random)), ("smallest", space.smallest)]

    def roles(self) -> list[str]:
        """The roles that sizes are drawn with."""
        if self.sampling == "all" or self.only_named:
            return [role for role, _ in self._everything()]
        return ["largest", *(["random"] if self.num_random else []), "smallest"]

    def _everything(self) -> Drawn:
        if self.named:
            return [("largest", self.space.largest), *self.named.items()]
        others = [subnet for subnet in self.space.enumerate() if subnet != self.space.largest]
        return [("largest", self.space.largest), *((f"size_{index}", subnet) for index, subnet in enumerate(others, 1))]

    def _from_names(self, generator: random.Random) -> Drawn:
        sizes = self._everything()
        if self.sampling == "single_path":
            return [generator.choice(sizes)]
        middle = sizes[1:-1]
        drawn = sorted(generator.sample(range(len(middle)), min(self.num_random, len(middle))))
        return [sizes[0], *(middle[index] for index in drawn), *sizes[1:][-1:]]


def make_sampler(model: ElasticPreTrainedModel, args: ElasticTrainingArguments) -> Sampler:
    """The sampler that the arguments describe.

    Raises:
        UserError: `train_subnets` has an unknown name; or see `Sampler` and `Growth`.
    """
    names = list(model.config.subnets) if args.train_subnets is None else args.train_subnets
    named = {name: model.subnet(name) for name in names if model.resolve(name) != model.resolve(None)}
    return Sampler(
        space=model.space,
        sampling=args.sampling,
        num_random=args.num_random_subnets,
        seed=args.seed,
        named=dict(sorted(named.items(), key=lambda item: -model.flops_of(item[1]))),
        only_named=args.train_subnets is not None,
        schedule=args.progressive_schedule,
        max_group=model.layout.full.get("group"),
        growth=None if args.growth_cap is None else Growth(model, args),
    )


def check_size_weights(sampler: Sampler, rule: str | Mapping[str, float]) -> None:
    """Raise UserError for weights of sizes that are never trained, or that leave nothing to train."""
    if rule == "uniform":
        return
    if sampler.sampling == "single_path":
        raise UserError("size_weights: a single_path step has one size, there is nothing to weight")
    if not isinstance(rule, Mapping):
        return
    known = sampler.roles()
    for role, weight in rule.items():
        if role not in known:
            raise UserError(f"size_weights: {role!r} is no size that is trained; known: {', '.join(known)}")
        if not 0 <= weight < inf:
            raise UserError(f"size_weights: {role} {weight}; needed are numbers of at least 0")
    if not rule.get("largest", 1.0) and not all(rule.get(role, 1.0) for role in known[1:]):
        raise UserError("size_weights: with largest at 0 every other size needs a weight above 0, or a step may train nothing")


# (k, n): the k-th of n parts that the rows of a step are dealt out into, counted from 0; all rows are (0, 1).
RowShard = tuple[int, int]


@dataclass(frozen=True)
class TrainedSize:
    """One size of a step: what it is called, its sizes, the weight of a row in its loss, and which rows it gets."""

    role: str
    cut: Cut
    weight: float
    shard: RowShard


def row_shards(drawn: Drawn, parts: int) -> list[RowShard]:
    """What each size of a step gets of its rows: those between the largest and the smallest one of `parts`, in turn."""
    shards = [(0, 1)] * len(drawn)
    shards[1:-1] = [(index % parts, parts) for index in range(len(shards[1:-1]))]
    return shards


def loss_weights(
    model: ElasticPreTrainedModel, drawn: Drawn, rule: str | Mapping[str, float], shards: list[RowShard]
) -> list[float]:
    """Weight of a row in each size's loss: equal, by FLOPs, or as given by role (1 where left out).

    They are scaled so that, times the shares of the rows that the sizes see, they add up to 1.
    """
    if rule == "flops":
        weights = [float(model.flops_of(subnet)) for _, subnet in drawn]
    else:
        weights = [1.0 if rule == "uniform" else float(rule.get(role, 1.0)) for role, _ in drawn]
    total = sum(weight / parts for weight, (_, parts) in zip(weights, shards))
    return [weight / total for weight in weights]

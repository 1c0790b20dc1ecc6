"""Feed-forward widths that grow while a model is trained: ELM's dynamic dimension, for every backbone.

Nothing is resized. Layers hold the widest network that they may get, and where a size is drawn each has the width that it has
grown to (`ElasticPreTrainedModel.grow`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import ceil, inf

import numpy as np
import torch
from accelerate.utils import reduce
from torch import nn
from transformers import TrainerCallback
from transformers.utils import logging

from ..core.activations import Tokens, reads_and_writes
from ..core.counts import Counts
from ..core.errors import UserError
from ..core.layout import Cut, Layout
from ..core.modeling_elastic import ElasticPreTrainedModel
from ..core.shapes import axes_in
from .arguments import ElasticTrainingArguments
from .mean_size import weighted_sizes

AXIS = "intermediate_size"
# Epochs are counted in steps, and may be a little below a whole number.
ROUNDING = 1e-6

logger = logging.get_logger(__name__)


@dataclass
class Network:
    """A feed-forward network of a layer, and what was measured of it since widths grew last.

    Attributes:
        layer: its index in the full model.
        choice: the axis of the choice that has it, as `Choices` names it, or None: all have it.
        path: within the layer, of the matrix that writes its pre-activations.
        width: that it has grown to.
        components: principal components, summed over the measurements of all processes that have been gathered.
        count: of these measurements.
        own_components: of those of this process since then.
        own_count: of these.
    """

    layer: int
    choice: str | None
    path: str
    width: int
    components: int = 0
    count: int = 0
    own_components: int = 0
    own_count: int = 0


class Growth(TrainerCallback):
    """Widens the feed-forward networks whose pre-activations need the most principal components, until sizes are large enough.

    ELM (arXiv 2510.27037), its dynamic dimension: every so many steps the number of components that hold 99% of the variance of
    each network's pre-activations; after each epoch those with the highest need are a step wider, until the mean size of random
    architectures reaches the cap. How many at once, the need by channel, and the mean over processes are ours.

    Args:
        elastic: the model that is trained; from here on its sizes are as narrow as growth begins, or as it was left.
        args: the options.

    Raises:
        UserError: the cap is not above what sizes have at the start, or above what they have at full width; the space has the
            widths itself, or sizes are not drawn from it; or layers without a feed-forward width of their own.
    """

    def __init__(self, elastic: ElasticPreTrainedModel, args: ElasticTrainingArguments):
        self.elastic = elastic
        _check(elastic, args)
        layout = elastic.layout
        self.full = layout.value(AXIS)
        self.step = args.growth_width or max(1, layout.value("hidden_size") // 4)
        if self.step >= self.full:
            raise UserError(f"growth_width: {self.step} leaves nothing to grow to, the model's {AXIS} is {self.full}")
        self.networks = find_networks(layout, elastic.base, self.step)
        self.number = args.growth_pairs or max(1, len(self.networks) // 4)
        self.every, self.measured_every = args.growth_steps, args.growth_measure_steps
        self.variance, self.need = args.growth_variance, args.growth_need
        self.cap = args.growth_cap
        self.rounds = 0  # in which widths have grown
        self.is_done = False
        self._sizes = weighted_sizes(elastic.space)
        self._counts = Counts(copy.copy(layout))
        if elastic.config.grown:
            self._read(elastic.config.grown)
        for size, where, is_possible in (
            (self.mean_size(), "not above what random sizes start with", self.mean_size() < self.cap),
            (self.mean_size(inf), "above what random sizes have at full width", self.cap <= self.mean_size(inf)),
        ):
            if not is_possible:
                raise UserError(f"growth_cap: {self.cap:,} is {where}, {size:,.0f} parameters on average")
        elastic.grow(self.table())

    def table(self, step: float = 0) -> dict[str, list]:
        """The widths as `ElasticPreTrainedModel.grow` takes them; `step` channels wider, as far as that goes."""
        rows: list = [{} for _ in range(self.elastic.layout.num_layers)]
        for network in self.networks:
            width = min(network.width + step, self.full)
            if network.choice is None:
                rows[network.layer] = width
            else:
                rows[network.layer][network.choice] = width
        return {AXIS: rows}

    def _read(self, table: Mapping) -> None:
        for network in self.networks:
            entry = table[AXIS][network.layer]
            network.width = entry if network.choice is None else entry[network.choice]

    def mean_size(self, step: float = 0) -> float:
        """Parameters of a random size of the space, on average, `step` channels wider.

        It is exact, see `weighted_sizes`.
        """
        self._counts.layout.grow(self.table(step))
        return float(self._counts.parameters_of(list(self._sizes)) @ np.array(list(self._sizes.values())))

    # --- measuring ---------------------------------------------------------------------------------------------------

    @contextmanager
    def watch(self, module: nn.Module, cut: Cut, inputs: Mapping, step: int) -> Iterator[None]:
        """Measure the forward calls made within, if it is time.

        Args:
            module: the stock module that runs, of `cut`.
            cut: the size.
            inputs: of the model; padding does not count.
            step: optimizer steps already done.
        """
        handles = []
        if step % self.measured_every == 0 and not self.is_done:
            tokens, layout = Tokens(), self.elastic.layout
            tokens.enter(inputs)
            positions = {layer: position for position, layer in enumerate(cut.layers)}
            for network in self.networks:
                position = positions.get(network.layer)
                sizes = {} if position is None else cut.sizes(position)
                # Sizes that name their widths have others.
                if sizes.get(layout.axes[AXIS]) == network.width and (network.choice is None or sizes[network.choice]):
                    writer = module.get_submodule(f"{layout.container}.{position}.{network.path}")
                    handles.append(writer.register_forward_hook(partial(self._measure, tokens, network)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _measure(self, tokens: Tokens, network: Network, _, __, output: torch.Tensor) -> None:
        # A gate and what it gates are side by side where they are one matrix, the gate first.
        rows = torch.cat(list(tokens.of(output[..., : network.width], network.path)))
        network.own_components += count_components(rows, self.variance)
        network.own_count += 1

    def gather(self, device: torch.device | str) -> None:
        """Add what each process has measured to what all know; every process has to call it."""
        own = [[network.own_components, network.own_count] for network in self.networks]
        for network, (components, count) in zip(self.networks, reduce(torch.tensor(own, device=device), "sum").tolist()):
            network.components += components
            network.count += count
            network.own_components = network.own_count = 0

    # --- growing -----------------------------------------------------------------------------------------------------

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Refuse a training too short for the cap.

        Raises:
            UserError: says how large sizes get at most.
        """
        rounds = (state.max_steps - 1) // self.every if self.every else ceil(state.num_train_epochs) - 1
        left = max(0, rounds - self.rounds)
        if not self.is_done and (most := self._most_after(left)) < self.cap:
            raise UserError(
                f"growth_cap: {self.cap:,} is out of reach in this training: after {left} rounds of {self.number} networks sizes "
                f"have at most {most:,.0f} parameters on average; more growth_pairs or fewer growth_steps"
            )

    def _most_after(self, rounds: int) -> float:
        """The largest mean size that so many rounds can lead to."""
        size, gains = self.mean_size(), []
        for network in self.networks:
            room, width = self.full - network.width, network.width
            network.width = self.full
            channel = (self.mean_size() - size) / max(1, room)
            network.width = width
            gains += [channel * min(self.step, room - wider) for wider in range(0, room, self.step)][:rounds]
        return size + sum(sorted(gains, reverse=True)[: rounds * self.number])

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Grow, if it is time and every network was measured since it was last."""
        rounds = state.global_step // self.every if self.every else int(state.epoch + ROUNDING)
        # What grows after the last step would not be trained.
        if rounds <= self.rounds or state.global_step >= state.max_steps or self.is_done:
            return
        if all(network.count + network.own_count for network in self.networks):
            self.rounds = rounds
            self.gather(args.device)
            self.grow()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """Say so if the cap was not reached."""
        if not self.is_done and state.is_world_process_zero:
            logger.warning(f"growth_cap: sizes have {self.mean_size():,.0f} parameters on average and not yet {self.cap:,}")

    def grow(self) -> None:
        """Widen the networks with the highest need by a step, until the mean size reaches the cap."""
        able = [network for network in self.networks if network.width < self.full]
        for network in sorted(able, key=self._need, reverse=True)[: self.number]:
            network.width = min(network.width + self.step, self.full)
            self.is_done = self.mean_size() >= self.cap
            if self.is_done:
                break
        for network in self.networks:
            network.components = network.count = 0
        self.elastic.grow(self.table())

    def _need(self, network: Network) -> float:
        need = network.components / network.count
        return need / network.width if self.need == "share" else need

    # --- checkpoints -------------------------------------------------------------------------------------------------

    @property
    def recipe(self) -> dict[str, object]:
        """The options, with their defaults filled in."""
        return {
            "growth_cap": self.cap,
            "growth_width": self.step,
            "growth_steps": self.every,
            "growth_pairs": self.number,
            "growth_measure_steps": self.measured_every,
            "growth_variance": self.variance,
            "growth_need": self.need,
        }

    def state(self) -> dict[str, object]:
        """What a checkpoint holds, JSON-able; see `gather`."""
        measured = [[network.components, network.count] for network in self.networks]
        return {"recipe": self.recipe, "grown": self.table(), "measured": measured, "rounds": self.rounds}

    def restore(self, state: Mapping, checkpoint: str) -> None:
        """Go on where a checkpoint was.

        Raises:
            UserError: it is of another recipe; names the first option that differs.
        """
        for option, value in self.recipe.items():
            if state["recipe"][option] != value:
                raise UserError(
                    f"resume_from_checkpoint: {checkpoint} was trained with {option} {state['recipe'][option]}, not {value}"
                )
        self._read(state["grown"])
        for network, (components, count) in zip(self.networks, state["measured"], strict=True):
            network.components, network.count = components, count
            network.own_components = network.own_count = 0
        self.rounds = state["rounds"]
        self.is_done = self.mean_size() >= self.cap
        self.elastic.grow(self.table())


def count_components(rows: torch.Tensor, variance: float) -> int:
    """How many principal components of rows `[tokens, channels]` hold a share of their variance; 0 if they have none."""
    rows = rows.float() - rows.float().mean(0)
    with torch.autocast(rows.device.type, enabled=False):
        products = rows.T @ rows if rows.shape[0] > rows.shape[1] else rows @ rows.T
    total = products.trace()
    if not 0 < total < inf:  # of what is not finite training itself says where
        return 0
    held = torch.linalg.eigvalsh(products).flip(0).cumsum(0) / total
    return int((held < variance).sum().clamp(max=len(held) - 1)) + 1


def _check(elastic: ElasticPreTrainedModel, args: ElasticTrainingArguments) -> None:
    layout = elastic.layout
    if elastic.frozen_cut is not None:
        raise UserError("growth_cap: this checkpoint is frozen at one size, which does not grow")
    if layout.axes.get(AXIS) not in layout.layer_axes:
        raise UserError(f"growth_cap: layers of {layout.spec.model_types[0]} have no {AXIS} of their own")
    if AXIS in elastic.space:
        raise UserError(f"growth_cap: the space has {AXIS}, which is for growth to decide; leave it out there")
    if args.train_subnets is not None or args.sampling == "all":
        raise UserError("growth_cap: random sizes of the space have to be drawn, not with train_subnets or sampling 'all'")


def find_networks(layout: Layout, base: nn.Module, width: int) -> list[Network]:
    """The feed-forward networks, by the first matrix of each that writes its width: with a gate, what its activation reads."""
    found: dict[tuple, Network] = {}
    axis = layout.axes[AXIS]
    for entry in layout.entries:
        path, _, key = entry.name.rpartition(".")
        if entry.layer is None or len(entry.dims) != 2 or key != "weight":
            continue
        _, written = reads_and_writes(entry, base.get_submodule(path))
        if axis in axes_in([written]):
            where = (entry.layer, entry.choice)
            found.setdefault(where, Network(*where, entry.rest.removesuffix(".weight"), width))
    return list(found.values())

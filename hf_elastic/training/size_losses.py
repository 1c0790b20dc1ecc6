"""Losses of the sizes of a training: refused where they are not finite, and logged by role."""

from __future__ import annotations

from collections import defaultdict

import torch
from accelerate import Accelerator

from ..core.errors import UserError
from ..core.layout import Layout
from .sampling import TrainedSize


class NotFiniteLossError(UserError, FloatingPointError):
    """The loss of a size is not finite; the message names the size and the step."""


class SizeLosses:
    """Gathers the losses of every optimizer step over all processes, until they are logged."""

    def __init__(self):
        self._micro_batches: list[torch.Tensor] = []  # of this step, [2, sizes] each: losses times shares, and shares
        self._by_role: dict[str, list] = defaultdict(lambda: [0.0, 0.0])

    def add(self, losses: torch.Tensor, shares: torch.Tensor) -> None:
        """Take the losses of a micro-batch, and the shares of the optimizer step that they are means over, `[sizes]` each."""
        self._micro_batches.append(torch.stack([losses * shares, shares]))

    def finish_step(self, accelerator: Accelerator, sizes: list[TrainedSize], layout: Layout, step: int) -> None:
        """Check a whole optimizer step, of all processes: one that stopped alone would leave others waiting.

        Raises:
            NotFiniteLossError: a loss is not finite.
        """
        own = torch.stack(self._micro_batches).sum(0)
        self._micro_batches.clear()
        losses, shares = accelerator.gather(own[None]).unbind(1)  # [processes, sizes] each
        if not torch.isfinite(losses).all():  # one look for all sizes: on a GPU each would wait for it
            process, index = (int(number) for number in (~torch.isfinite(losses)).nonzero()[0])
            where = f" in process {process}" if accelerator.num_processes > 1 else ""
            raise NotFiniteLossError(
                f"the loss is {losses[process, index].item()} at step {step} for {sizes[index].role} "
                f"{layout.subnet_of(sizes[index].cut).to_dict()}{where}"
            )
        for loss, share, size in zip(losses.sum(0), shares.sum(0), sizes):
            record = self._by_role[size.role]
            record[0] = record[0] + loss
            record[1] = record[1] + share

    def take(self) -> dict[str, float]:
        """The mean loss of each role since the last time, `{"loss_smallest": 0.7}`, and start anew."""
        means = {}
        for role, (total, share) in self._by_role.items():
            if share := float(share):  # a micro-batch may have too few rows to deal one out to every size
                means[f"loss_{role}"] = round(float(total) / share, 4)
        self._by_role.clear()
        return means

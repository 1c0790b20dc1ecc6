"""Learned maps from the channels of a size to those of a teacher of another width; they exist in training only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import Trainer

from ..core.errors import UserError
from .arguments import as_user_error

FILE = "projectors.safetensors"  # in a checkpoint; what is saved at the end has none


class Projector(nn.Linear):
    """A linear map; a narrower size has the first channels, and uses the weights of those."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`[..., width of the size]` to `[..., width of the teacher]`."""
        return functional.linear(states, self.weight[:, : states.shape[-1]], self.bias)


class Projectors(nn.ModuleDict):
    """One map for each axis whose channels are compared, shared by all layers (ELM; TinyBERT, Jiao et al. 2020, eq. 8).

    Args:
        widths: axis -> (width of the full model, width of the teacher).
        seed: of the new weights.
    """

    def __init__(self, widths: Mapping[str, tuple[int, int]], seed: int):
        super().__init__({axis: Projector(ours, theirs) for axis, (ours, theirs) in widths.items()})
        generator = torch.Generator().manual_seed(seed)
        for projector in self.values():
            nn.init.normal_(projector.weight, 0.0, projector.in_features**-0.5, generator=generator)
            nn.init.zeros_(projector.bias)

    def save(self, checkpoint: str | Path) -> None:
        """Write the weights into a checkpoint, if there are any."""
        if len(self):
            save_file({name: weight.contiguous() for name, weight in self.state_dict().items()}, Path(checkpoint) / FILE)

    def load(self, checkpoint: str | Path) -> None:
        """Read the weights from a checkpoint.

        Raises:
            UserError: it has none, or those of other widths.
        """
        path = Path(checkpoint) / FILE
        stored = load_file(path) if path.is_file() else {}
        own = self.state_dict()
        theirs, ours = ({name: list(weight.shape) for name, weight in one.items()} for one in (stored, own))
        if theirs != ours:
            raise UserError(
                f"resume_from_checkpoint: {checkpoint} was trained with other maps to the teacher's channels "
                f"({theirs or 'none'}) than these ({ours or 'none'}); the same teacher and terms are needed"
            )
        self.load_state_dict(stored)


class ProjectorsMixin(Trainer):
    """Training of the `projectors` of a `Trainer` beside its model: their gradients are not clipped."""

    projectors: Projectors
    _has_stepped = False

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        """Create the optimizer, of the projectors too, and refuse one that is not installed."""
        with as_user_error(ValueError):
            optimizer = super().create_optimizer(*args, **kwargs)
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        new = [parameter for parameter in self.projectors.parameters() if id(parameter) not in known]
        if new:
            optimizer.add_param_group({"params": new})
        return optimizer

    def _start_projectors(self) -> None:
        """Before the forward of a micro-batch: Trainer forgets the gradients of its model only."""
        if self._has_stepped:
            self.projectors.zero_grad()

    def _finish_projectors(self) -> None:
        """After its backward: average over the processes in the last micro-batch of a step, as DDP does for the model."""
        self._has_stepped = self.accelerator.sync_gradients
        if self._has_stepped and self.args.world_size > 1:
            for parameter in self.projectors.parameters():
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")

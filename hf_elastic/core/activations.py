"""What real inputs make of a model: how much each channel gives to the layers that read it, and each layer to its input."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from .adapters import is_factor
from .errors import UserError
from .layout import Entry, Layout, Place
from .shapes import Dim

# Tokens that are summed at a time, so that copies in float32 stay small beside what the forward pass holds.
ROWS = 1024

Batches = Iterable[Mapping[str, torch.Tensor]]


class Tokens:
    """Which rows of a layer's input or output are tokens of the batch that runs, and not padding."""

    def __init__(self):
        self.mask: torch.Tensor | None = None

    def enter(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Note the padding of a batch that is to run.

        Raises:
            UserError: its mask says more than which tokens are padding.
        """
        mask = batch.get("attention_mask")
        if mask is not None and mask.dim() > 3:
            raise UserError(f"calibration: an attention_mask of shape {tuple(mask.shape)}; needed is one of [batch, length]")
        self.mask = None if mask is None else mask.flatten(0, -2).bool()

    def of(self, values: torch.Tensor, name: str) -> Iterator[torch.Tensor]:
        """The tokens of `[batch, length, channels]`, flattened or not, or all rows of anything shorter, in pieces.

        Raises:
            UserError: tokens are laid out otherwise, so that it is not known which are padding.
        """
        rows = values.reshape(-1, values.shape[-1])
        if self.mask is not None and len(rows) == self.mask.numel():
            if values.dim() > 2 and tuple(values.shape[-3:-1]) != tuple(self.mask.shape):
                raise UserError(f"{name} reads {tuple(values.shape)}, and which of it is padding is not known")
            masks = self.mask.flatten().to(rows.device).split(ROWS)
            return (part[mask] for part, mask in zip(rows.split(ROWS), masks))
        return iter(rows.split(ROWS))


def reads_and_writes(entry: Entry, module: nn.Module) -> tuple[Dim, Dim]:
    """The dimensions of what a matrix reads and of what it writes; `module` is the one that has it."""
    return entry.dims if isinstance(module, Conv1D) else entry.dims[::-1]


class _Reader:
    """A linear layer, and the sums of squares over tokens of each channel that it reads, in float32."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.squares: torch.Tensor | None = None

    def add(self, values: torch.Tensor) -> None:
        """Add some rows of the input, `[tokens, channels]`."""
        squares = values.float().square().sum(0)
        self.squares = squares if self.squares is None else self.squares + squares

    def energies(self) -> torch.Tensor:
        """Of each channel: its squared norm over tokens times that of its column of the weight, `[channels]`."""
        outputs = 1 if isinstance(self.module, Conv1D) else 0
        return self.squares * self.module.weight.detach().float().square().sum(outputs)


def activation_energies(
    base: nn.Module, layout: Layout, batches: Batches, axes: Collection[str]
) -> list[tuple[torch.Tensor, tuple[Dim, ...], Place]]:
    """How much of the outputs of linear layers comes from each of the channels that they read.

    With weight W and input x it is `|x_c|^2 |W_c|^2` for the channel c, norms over tokens and over outputs: the square of the
    score of Wanda (arXiv 2306.11695, eq. 1), summed over a column. It is taken where an axis is read, so that a neuron counts
    after its gate and a head after attention, and fused matrices and grouped queries need nothing of their own. An adapter
    counts by what it does to activations. Sums take one number for each channel.

    Args:
        base: a stock model.
        layout: its layout.
        batches: model inputs; where there is an `attention_mask`, padding does not count.
        axes: only layers that read one of these.

    Returns:
        (`[channels]`, the dimension that they are, their place) of each linear layer that has run.

    Raises:
        UserError: tokens are laid out in a way that is not known.
    """
    modules = dict(base.named_modules(remove_duplicate=False))
    found: list[tuple[_Reader, Dim, Place]] = []
    tokens, handles = Tokens(), []
    for entry in layout.entries:
        owner, _, key = entry.name.rpartition(".")
        module = modules[owner]
        if key != "weight" or not isinstance(module, (nn.Linear, Conv1D)) or is_factor(entry.name):
            continue
        dim, _ = reads_and_writes(entry, module)
        if any(axis in segment for segment in dim for axis in axes):
            found.append((_Reader(module), dim, entry.place))
            handles.append(module.register_forward_pre_hook(partial(_read, tokens, found[-1][0], entry.name)))
    run_batches(base, batches, tokens, handles)
    return [(reader.energies(), (dim,), place) for reader, dim, place in found if reader.squares is not None]


def _read(tokens: Tokens, reader: _Reader, name: str, _, args: tuple) -> None:
    for rows in tokens.of(args[0], name):
        reader.add(rows)


def influence_order(base: nn.Module, layout: Layout, batches: Batches) -> list[int]:
    """Layers by their block influence, the largest first: `1 - cos` of what a layer reads and what it writes, mean over tokens.

    ShortGPT (arXiv 2403.03853, eq. 1). It is taken at the layer itself, before a norm that follows the last one.

    Args:
        base: a stock model.
        layout: its layout.
        batches: as for `activation_energies`.

    Raises:
        UserError: tokens are laid out in a way that is not known.
    """
    layers = base.get_submodule(layout.container)
    influence = [0.0] * len(layers)
    tokens = Tokens()

    def compare(index: int, _, args: tuple, kwargs: Mapping, output) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        for pair in zip(tokens.of(before, f"layer {index}"), tokens.of(after, f"layer {index}")):
            one, other = (rows.float() for rows in pair)
            influence[index] += (1 - nn.functional.cosine_similarity(one, other)).sum().item()

    handles = [layer.register_forward_hook(partial(compare, i), with_kwargs=True) for i, layer in enumerate(layers)]
    run_batches(base, batches, tokens, handles)
    return sorted(range(len(layers)), key=lambda index: -influence[index])


@torch.inference_mode()
def run_batches(base: nn.Module, batches: Batches, tokens: Tokens, handles: Iterable) -> None:
    """Run batches through a model without dropout, and remove the hooks."""
    training = base.training
    base.eval()
    try:
        for batch in batches:
            tokens.enter(batch)
            base(**{key: value.to(base.device) for key, value in batch.items()})
    finally:
        base.train(training)
        for handle in handles:
            handle.remove()

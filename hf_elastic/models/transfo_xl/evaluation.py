"""Perplexity of a long text, segment by segment, with the memory carried from each to the next."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from rich.progress import track

from ...core.errors import UserError
from ...utils.options import check_integers
from .modeling_transfo_xl import TransformerXLForCausalLM


class SegmentEvaluation(NamedTuple):
    """Result of `evaluate_perplexity`.

    Args:
        loss: mean negative log-likelihood in nats per predicted token.
        perplexity: `exp(loss)`.
        tokens: how many tokens were predicted: all but the first of each stream.
    """

    loss: float
    perplexity: float
    tokens: int


@torch.inference_mode()
def evaluate_perplexity(
    model: TransformerXLForCausalLM, token_ids: torch.Tensor, segment_length: int, *, show_progress: bool = False
) -> SegmentEvaluation:
    """Predict every token of a text but the first, `segment_length` at a time, as Dai et al. 2019 (section 3.2) do.

    How far a segment looks back is `model.config.mem_len`, which may be set to more than in training; with 0 every segment
    stands alone. The model is evaluated in evaluation mode and left in the mode it was in.

    Args:
        model: the language model.
        token_ids: `[length]`, or `[streams, length]` for texts of equal length that are evaluated side by side.
        segment_length: positions per segment.
        show_progress: show a progress bar.

    Raises:
        ValueError: a text of fewer than two tokens, ids of other dimensions, or a segment length below 1.
    """
    streams = token_ids[None] if token_ids.dim() == 1 else token_ids
    if streams.dim() != 2 or streams.shape[1] < 2:
        raise UserError(f"token_ids must be [length] or [streams, length] with at least 2 tokens, got {list(token_ids.shape)}")
    check_integers(1, segment_length=segment_length)
    streams = streams.to(model.device)
    was_training = model.training
    model.eval()
    try:
        total = _summed_loss(model, streams, segment_length, show_progress)
    finally:
        model.train(was_training)
    tokens = streams.shape[0] * (streams.shape[1] - 1)
    loss = total / tokens
    return SegmentEvaluation(loss=loss, perplexity=math.exp(loss), tokens=tokens)


def _summed_loss(model, streams: torch.Tensor, segment_length: int, show_progress: bool) -> float:
    total, mems = 0.0, None
    starts = range(0, streams.shape[1] - 1, segment_length)
    for start in track(starts, "evaluating segments", disable=not show_progress):
        labels = streams[:, start + 1 : start + 1 + segment_length]
        inputs = streams[:, start : start + labels.shape[1]]
        outputs = model(inputs, mems=mems, targets=labels, return_logits=False, num_items_in_batch=1, use_cache=True)
        total += outputs.loss.double().item()
        mems = outputs.mems
    return total

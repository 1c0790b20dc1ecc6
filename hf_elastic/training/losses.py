"""Distillation terms: what a size learns from a larger one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from ..layout import Cut

# The outputs that carry a prediction, in the order in which models have them.
PREDICTIONS = ("logits", "start_logits", "end_logits")


def soft_cross_entropy(
    student: torch.Tensor, teacher: torch.Tensor, items: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    """Mean over the items of `tau^2 * KL(softmax(teacher / tau) || softmax(student / tau))`.

    Source: Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network", section 2.

    Args:
        student: logits, `[..., classes]`; one class is a regression, for which it is the squared error.
        teacher: logits of the same shape, without gradient.
        items: boolean `[...]`, which positions count; None is all.
        temperature: tau, above 0.
    """
    student, teacher = student.float(), teacher.float()
    if student.shape[-1] == 1:
        per_item = (student - teacher).squeeze(-1) ** 2
    else:
        log_student = functional.log_softmax(student / temperature, dim=-1)
        log_teacher = functional.log_softmax(teacher / temperature, dim=-1)
        per_item = temperature**2 * functional.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(-1)
    return _mean(per_item, items)


def hidden_states(
    student: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, ...], cut: Cut, tokens: torch.Tensor | None
) -> torch.Tensor:
    """Mean squared error between hidden states, averaged over the student's layers and the unmasked tokens.

    Layer k of n answers to the teacher's layer round((k + 1) * N / n), so that the last follows the last. A student that is
    narrower follows the first channels. Source: the mean squared error of TinyBERT (Jiao et al. 2020, eq. 8) without its
    projection, which prefix channels do not need; the layer map is ours.

    Args:
        student: the embeddings' output and every layer's, each `[batch, tokens, hidden]`.
        teacher: the same of the teacher.
        cut: the student's sizes.
        tokens: boolean `[batch, tokens]`, which count; None is all.
    """
    depth, full_depth = len(cut.layers), len(teacher) - 1
    terms = []
    for layer in range(1, depth + 1):
        ours, theirs = student[layer].float(), teacher[round(layer * full_depth / depth)].float()
        terms.append(_mean(((ours - theirs[..., : ours.shape[-1]]) ** 2).mean(-1), tokens))
    return torch.stack(terms).mean()


def _mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over the marked entries; zero if there are none."""
    if mask is None:
        return values.mean()
    return (values * mask).sum() / mask.sum().clamp(min=1)


def counted_items(inputs: Mapping, logits: torch.Tensor, *, shifted: bool) -> torch.Tensor | None:
    """Which predictions count: those whose label is not -100, and no padding.

    Args:
        inputs: the batch.
        logits: `[batch, ..., classes]`; a prediction per sequence has no positions to mask.
        shifted: whether position t is labelled by token t + 1, as in causal language modelling.

    Returns:
        boolean mask of `logits.shape[:-1]`, or None if all count.
    """
    if logits.dim() < 3:
        return None
    labels = inputs.get("labels")
    if labels is not None and labels.shape == logits.shape[:-1]:
        counted = labels != -100
        if shifted:
            # The last position predicts nothing that is labelled.
            counted = functional.pad(counted[:, 1:], (0, 1), value=False)
        return counted
    mask = inputs.get("attention_mask")
    return mask.bool() if mask is not None and mask.shape == logits.shape[:-1] else None

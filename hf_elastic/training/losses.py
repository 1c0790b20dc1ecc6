"""Distillation terms: what a size learns from a larger one.

Each term is a function of `DistillationInputs` and stands in `DISTILLATION` under the name that a recipe uses. Padding never
counts, and neither does the prediction of a position labelled -100. Hidden states and relations have no labels: as in MiniLMv2
all tokens that are no padding count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch.nn import functional

# The outputs that carry a prediction, in the order in which models have them.
PREDICTIONS = ("logits", "start_logits", "end_logits")
EPSILON = 1e-8


@dataclass(frozen=True)
class DistillationInputs:
    """One forward of a size and of its teacher on the same micro-batch.

    Attributes:
        batch: the micro-batch.
        student: outputs of the size; `relations` maps "query", "key" and "value" to `[batch, tokens, width]`; `parts` has for
            each layer what "attention" and "feed_forward" write, with the axis of its channels.
        teacher: the same of the teacher, without gradient.
        shifted: whether position t is labelled by token t + 1, as in causal language modelling.
        temperature: tau of the distilled logits, above 0.
        relation_heads: how many heads queries, keys and values are split into.
        projectors: axis -> the learned map of its channels to the teacher's; an axis without one is the teacher's first channels.
    """

    batch: Mapping
    student: Mapping
    teacher: Mapping
    shifted: bool
    temperature: float
    relation_heads: int
    projectors: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = field(default_factory=dict)

    def aligned(self, ours: torch.Tensor, theirs: torch.Tensor, axis: str = "hidden") -> tuple[torch.Tensor, torch.Tensor]:
        """Channels `[..., width]` of the size and of its teacher that answer to each other, in float32."""
        if axis in self.projectors:
            return self.projectors[axis](ours.float()).float(), theirs.float()
        return ours.float(), theirs.float()[..., : ours.shape[-1]]

    @property
    def tokens(self) -> torch.Tensor | None:
        """Which tokens are no padding, boolean `[sequences, tokens]`; None is all. Every choice is a sequence."""
        mask = self.batch.get("attention_mask")
        return None if mask is None else mask.flatten(0, -2).bool()


def logits(inputs: DistillationInputs) -> torch.Tensor:
    """`tau^2 * KL(softmax(teacher / tau) || softmax(student / tau))`, the mean over the counted predictions.

    One class is a regression, for which it is the squared error. Source: Hinton, Vinyals & Dean 2015, "Distilling the Knowledge
    in a Neural Network", section 2; ElasticLM's task-specific loss has the same term.
    """

    def divergence(student: torch.Tensor, teacher: torch.Tensor, items: torch.Tensor | None) -> torch.Tensor:
        tau = inputs.temperature
        ours, theirs = functional.log_softmax(student / tau, dim=-1), functional.log_softmax(teacher / tau, dim=-1)
        return _mean(tau**2 * functional.kl_div(ours, theirs, log_target=True, reduction="none").sum(-1), items)

    return _predictions(inputs, divergence)


def dist(inputs: DistillationInputs) -> torch.Tensor:
    """`tau^2 * ((1 - mean of rho over rows) + (1 - mean of rho over columns))` of the softmax of both, at temperature tau.

    rho is Pearson's correlation: of the classes within a prediction (a row), and of the predictions within a class (a column).
    One class is a regression, for which it is the squared error. Source: DIST (Huang et al. 2022, "Knowledge Distillation from
    A Stronger Teacher", eqs. 8-10), which ELM uses for its logits. With two classes rows correlate by their sign alone.
    """

    def unlike(student: torch.Tensor, teacher: torch.Tensor, items: torch.Tensor | None) -> torch.Tensor:
        ours, theirs = ((_marked(x, items) / inputs.temperature).softmax(-1) for x in (student, teacher))
        rows, columns = _correlation(ours, theirs, 1), _correlation(ours, theirs, 0)
        return inputs.temperature**2 * ((1 - rows).mean() + (1 - columns).mean())

    return _predictions(inputs, unlike)


def hidden(inputs: DistillationInputs) -> torch.Tensor:
    """Mean squared error between hidden states, averaged over the student's layers and the unmasked tokens.

    Layer k of n answers to the teacher's layer round(k * N / n), so that the last follows the last; the embeddings have no
    term; where depths divide that is ELM's layer `(l + 1) * interval - 1`. A size of the teacher follows its first channels; for
    a teacher of other channels a projection is learned, shared by the layers. Source: ElasticLM's task-specific loss, ELM's and
    TinyBERT's (Jiao et al. 2020, eq. 8); the map of depths that do not divide is ours.
    """
    terms = [_mean(((ours - theirs) ** 2).mean(-1), inputs.tokens) for ours, theirs in _layers(inputs, from_embeddings=False)]
    return torch.stack(terms).mean()


def pkd(inputs: DistillationInputs) -> torch.Tensor:
    """`mean((z(student) - z(teacher))^2)`, z standardising each channel over the unmasked tokens: `2 * (1 - Pearson)`.

    Over the embeddings and every layer, each answering to the teacher's layer as in `hidden`. Source: the feature loss of ELM,
    here of the block's output; `pkd_parts` is ELM's.
    """
    return torch.stack([_unlike(inputs, *pair) for pair in _layers(inputs, from_embeddings=True)]).mean()


def pkd_parts(inputs: DistillationInputs) -> torch.Tensor:
    """The same loss of the output of attention, of that of the feed-forward network, and of the embeddings: the mean of them.

    Layers answer to each other as in `hidden`. Source: ELM, `sum over layers of PKD(attention) + PKD(feed-forward)` and
    PKD(embeddings). That outputs are taken before the residual is added, and the mean instead of the sum, are ours.
    """
    terms = [_unlike(inputs, *inputs.aligned(inputs.student["hidden_states"][0], inputs.teacher["hidden_states"][0]))]
    student, teacher = inputs.student["parts"], inputs.teacher["parts"]
    for layer, ours in enumerate(student, 1):
        theirs = teacher[round(layer * len(teacher) / len(student)) - 1]
        for role, (axis, output) in ours.items():
            if role in theirs:  # a layer may skip one
                terms.append(_unlike(inputs, *inputs.aligned(output, theirs[role][1], axis)))
    return torch.stack(terms).mean()


def relation(inputs: DistillationInputs) -> torch.Tensor:
    """`1/3 * sum over X in Q, K, V of KL(softmax(X_T X_T^T / sqrt(d_T)) || softmax(X_S X_S^T / sqrt(d_S)))`.

    X is the last layer's projection split into `relation_heads` heads of width d, whatever the attention heads are, so the two
    may differ in width and head count. Mean over relation heads and unmasked tokens; padding is no key either, and in a causal
    model a later token is none. Source: MiniLMv2 (Wang et al. 2021, eqs. 5-8), ElasticLM's task-agnostic loss; the causal
    mask is ours.
    """
    tokens = inputs.tokens
    if tokens is None:
        sample = next(iter(inputs.student["relations"].values()))
        tokens = torch.ones(sample.shape[:2], dtype=torch.bool, device=sample.device)
    allowed = tokens[:, None, None, :]
    if inputs.shifted:
        allowed = allowed & torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device).tril()
    terms = []
    for role, ours in inputs.student["relations"].items():
        student, teacher = (_log_relations(x, inputs.relation_heads, allowed) for x in (ours, inputs.teacher["relations"][role]))
        divergence = (teacher.exp() * (teacher - student)).masked_fill(~allowed, 0).sum(-1)
        terms.append(_mean(divergence.mean(1), tokens))
    return torch.stack(terms).mean()


def _log_relations(x: torch.Tensor, heads: int, allowed: torch.Tensor) -> torch.Tensor:
    """`log softmax(X X^T / sqrt(d))` of each relation head, `[batch, heads, tokens, tokens]`; finite where not allowed."""
    split = x.float().unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = split @ split.transpose(-1, -2) / split.shape[-1] ** 0.5
    # The lowest finite number, not -inf: a padded row has no key at all, and inf - inf is no number.
    return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).log_softmax(-1)


# Name in a recipe -> function of a DistillationInputs. CONTRIBUTING.md, "Add a loss".
DISTILLATION: dict[str, Callable[[DistillationInputs], torch.Tensor]] = {
    "logits": logits,
    "hidden": hidden,
    "relation": relation,
    "pkd": pkd,
    "pkd_parts": pkd_parts,
    "dist": dist,
}
# Terms that compare predictions; hidden states, channel by channel; outputs of parts of layers; relations.
NEEDS_PREDICTIONS = frozenset({"logits", "dist"})
NEEDS_HIDDEN_STATES = frozenset({"hidden", "pkd", "pkd_parts"})
NEEDS_PARTS = frozenset({"pkd_parts"})
NEEDS_RELATIONS = frozenset({"relation"})


def _predictions(inputs: DistillationInputs, term: Callable) -> torch.Tensor:
    """Average a term over the kinds of predictions that the model makes."""
    terms = []
    for key in PREDICTIONS:
        if key in inputs.student and key in inputs.teacher:
            student, teacher = inputs.student[key].float(), inputs.teacher[key].float()
            if key == "logits" and _has_several(inputs.batch, student):  # each label is a choice between it and its absence
                student, teacher = (torch.stack([x, torch.zeros_like(x)], dim=-1) for x in (student, teacher))
            items = counted_items(inputs.batch, student, shifted=inputs.shifted)
            if key != "logits" and inputs.tokens is not None:  # the classes are the tokens
                lowest = torch.finfo(student.dtype).min
                student, teacher = (x.masked_fill(~inputs.tokens, lowest) for x in (student, teacher))
            if key == "logits" and student.shape[-1] == 1:
                terms.append(_mean((student - teacher).squeeze(-1) ** 2, items))
            else:
                terms.append(term(student, teacher, items))
    return torch.stack(terms).mean()


def _has_several(batch: Mapping, logits: torch.Tensor) -> bool:
    """Whether a row may have several labels: one number for each logit says which, `[batch, labels]`, two or more."""
    labels = batch.get("labels")
    return labels is not None and labels.is_floating_point() and labels.shape == logits.shape and logits.shape[-1] > 1


def _layers(inputs: DistillationInputs, *, from_embeddings: bool):
    """(student, teacher) hidden states of the student's layers, each `[batch, tokens, channels that are compared]`."""
    student, teacher = inputs.student["hidden_states"], inputs.teacher["hidden_states"]
    depth, full_depth = len(student) - 1, len(teacher) - 1
    for layer in range(0 if from_embeddings else 1, depth + 1):
        yield inputs.aligned(student[layer], teacher[round(layer * full_depth / depth)])


def _unlike(inputs: DistillationInputs, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """`2 * (1 - Pearson)` over the unmasked tokens, the mean over channels."""
    return 2 * (1 - _correlation(_marked(ours, inputs.tokens), _marked(theirs, inputs.tokens), 0)).mean()


def _correlation(ours: torch.Tensor, theirs: torch.Tensor, dim: int) -> torch.Tensor:
    """Pearson's correlation along `dim`; 0 where one side is constant."""
    ours, theirs = (x.float() - x.float().mean(dim, keepdim=True) for x in (ours, theirs))
    # Half of what `cosine_similarity` takes: it divides whole tensors.
    squares = [x.square().sum(dim).clamp(min=EPSILON**2) for x in (ours, theirs)]
    return (ours * theirs).sum(dim) / (squares[0] * squares[1]).sqrt()


def _marked(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The marked rows of `[..., channels]`, as `[rows, channels]`."""
    rows = values.flatten(0, -2)
    return rows if mask is None else rows[mask.flatten()]


def _mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over the marked entries; zero if there are none."""
    if mask is None:
        return values.mean()
    return (values * mask).sum() / mask.sum().clamp(min=1)


def counted_items(batch: Mapping, logits: torch.Tensor, *, shifted: bool) -> torch.Tensor | None:
    """Which predictions count: those whose label is not -100, and no padding.

    Args:
        batch: the micro-batch.
        logits: `[batch, ..., classes]`; a prediction per sequence has no positions to mask.
        shifted: whether position t is labelled by token t + 1, as in causal language modelling.

    Returns:
        boolean mask of `logits.shape[:-1]`, or None if all count.
    """
    if logits.dim() < 3:
        return None
    labels = batch.get("labels")
    if labels is not None and labels.shape == logits.shape[:-1]:
        counted = labels != -100
        if shifted:
            # The last position predicts nothing that is labelled.
            counted = functional.pad(counted[:, 1:], (0, 1), value=False)
        return counted
    mask = batch.get("attention_mask")
    return mask.bool() if mask is not None and mask.shape == logits.shape[:-1] else None

"""How much the output of a model changes when one part of one layer is skipped, for every part, from text without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch.nn.functional import kl_div, log_softmax
from transformers import PreTrainedModel

from ..core.errors import UserError
from ..core.modeling_elastic import (
    ElasticForCausalLM,
    ElasticForMaskedLM,
    ElasticForMultipleChoice,
    ElasticForSequenceClassification,
    ElasticForTokenClassification,
    ElasticPreTrainedModel,
)
from ..core.spec import SKIP
from ..data.head import MULTI
from .digests import batches_digest, model_digest

# Rows whose outputs are compared at a time: those of a language model are large.
ROWS = 4
# Heads that give a distribution over words, labels or choices.
DISTRIBUTIONS = (
    ElasticForCausalLM,
    ElasticForMaskedLM,
    ElasticForMultipleChoice,
    ElasticForSequenceClassification,
    ElasticForTokenClassification,
)


@dataclass(frozen=True)
class Removals:
    """What each part of a supernet gives to its output.

    Attributes:
        changes: axis, such as "attention" -> what skipping it changes in each layer of the full model, at least 0.
    """

    changes: Mapping[str, tuple[float, ...]]

    def of(self, model: ElasticPreTrainedModel, subnet: str | Mapping | None) -> float:
        """The sum of the changes of all that a size does not have: what it skips, and all of the layers that it drops.

        Widths do not count. That changes add up is an assumption, Puzzle's as well: removals may make up for each other, or not.
        """
        cut, layout = model.resolve(subnet), model.layout
        kept = {
            (axis, layer)
            for position, layer in enumerate(cut.layers)
            for axis in self.changes
            if layout.choices.chosen(axis, cut.sizes(position)) != SKIP
        }
        pairs = ((axis, layer, change) for axis, row in self.changes.items() for layer, change in enumerate(row))
        return sum(change for axis, layer, change in pairs if (axis, layer) not in kept)


# The last ones of each model, and what they were measured of.
_known: WeakKeyDictionary[ElasticPreTrainedModel, tuple[tuple[str, str], Removals]] = WeakKeyDictionary()


def measure_removals(model: ElasticPreTrainedModel, batches: Iterable[Mapping[str, torch.Tensor]]) -> Removals:
    """Skip every part of every layer, one at a time, and compare the output with the full model's; one pass over the text.

    The change is the Kullback-Leibler divergence of the distributions that the heads of language models and classifiers give,
    in nats and from the full model's; of other outputs the squared norm of the difference over that of the full model's. It is
    the mean over tokens, or over rows where the output is one of rows; padding does not count. To score blocks by replacing
    one at a time, by the divergence among others, and to add the scores up, is Puzzle's (arXiv 2411.19146); the norm is ours.

    What was measured is kept with the model: as long as neither its weights nor the text have changed, nothing is run again.

    Args:
        model: an elastic model, whose space or named sizes skip something.
        batches: model inputs; labels are not looked at.

    Raises:
        UserError: no part of the model may be skipped, it has a single layer, or there is no batch.
    """
    batches = [{key: value for key, value in batch.items() if key not in ("label", "labels")} for batch in batches]
    axes = [axis for axis in model.layout.choices if SKIP in model.layout.choices[axis]]
    if not axes:
        raise UserError("output_change: the space has no axis to skip, such as {'attention': ['full', 'skip']}")
    if not batches:
        raise UserError("output_change: needs at least one batch of text")
    key = (model_digest(model), batches_digest(batches))
    if model not in _known or _known[model][0] != key:
        _known[model] = (key, _measure(model, axes, batches))
    return _known[model][1]


@torch.inference_mode()
def _measure(model: ElasticPreTrainedModel, axes: list[str], batches: list[Mapping[str, torch.Tensor]]) -> Removals:
    held = model.layout.choices.held
    full, places = model.subnet(None), [(axis, layer) for axis in axes for layer in held if axis in held[layer]]
    # Views of one copy of the weights: all of them together are small.
    views = {place: model.view(_without(full, *place, model.layout.num_layers)) for place in places}
    whole, classifies = model.view(), _classifies(model)
    totals, count = dict.fromkeys(places, 0.0), 0
    for batch in batches:
        for start in range(0, len(batch["input_ids"]), ROWS):
            piece = {name: values[start : start + ROWS].to(model.device) for name, values in batch.items()}
            counted = piece["attention_mask"].bool() if "attention_mask" in piece else torch.ones_like(piece["input_ids"]).bool()
            expected = _output(whole, piece, counted)
            count += len(expected)
            for place, view in views.items():
                totals[place] += float(_change(expected, _output(view, piece, counted), classifies=classifies).sum())
    layers = range(model.layout.num_layers)
    return Removals({axis: tuple(totals.get((axis, layer), 0.0) / count for layer in layers) for axis in axes})


def _without(full: Mapping, axis: str, layer: int, num_layers: int) -> dict:
    """The full model but for one part of one layer."""
    own = full[axis] if isinstance(full[axis], tuple) else (full[axis],) * num_layers
    return {axis: [*own[:layer], SKIP, *own[layer + 1 :]]}


def _classifies(model: ElasticPreTrainedModel) -> bool:
    """Whether the head gives a distribution."""
    several = model.config.problem_type == MULTI
    return isinstance(model, DISTRIBUTIONS) and not several


def _output(model: PreTrainedModel, batch: Mapping[str, torch.Tensor], counted: torch.Tensor) -> torch.Tensor:
    """What a model gives for each token that counts, or for each row, `[rows, channels]`."""
    output = model(**batch)[0].float()
    if output.shape == counted.shape:  # where an answer begins, among the tokens of a row
        return output * counted
    return output[counted] if output.dim() > 2 else output


def _change(expected: torch.Tensor, found: torch.Tensor, *, classifies: bool) -> torch.Tensor:
    """How far outputs `[rows, channels]` are from the expected ones, `[rows]`."""
    if classifies and expected.shape[1] > 1:
        return kl_div(log_softmax(found, 1), log_softmax(expected, 1), reduction="none", log_target=True).sum(1)
    return (found - expected).square().sum(1) / expected.square().sum(1).clamp(min=torch.finfo(torch.float32).tiny)

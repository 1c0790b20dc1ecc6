"""Who the sizes learn from, and what one forward of a size or a teacher leaves to compare."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager, nullcontext

import torch
from accelerate.utils import recursively_apply
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import UserError
from ..core.layout import Cut, Layout
from ..core.modeling_elastic import ElasticPreTrainedModel
from ..core.shapes import SpecError
from ..core.spec import spec_for
from .arguments import ElasticTrainingArguments
from .losses import NEEDS_HIDDEN_STATES, NEEDS_PARTS, NEEDS_RELATIONS, PREDICTIONS
from .parts import Parts
from .relations import Projections


class Observer:
    """Runs a model and keeps what the distillation terms need: predictions, hidden states, relations.

    Args:
        layout: of the full model.
        base: the full stock model.
        args: which terms have a weight.
    """

    def __init__(self, layout: Layout, base: nn.Module, args: ElasticTrainingArguments):
        terms = terms_of(args)
        self.layout = layout
        self.wants_hidden_states = bool(terms & NEEDS_HIDDEN_STATES)
        self.projections = Projections(layout, base) if terms & NEEDS_RELATIONS else None
        self.parts = Parts(layout, base) if terms & NEEDS_PARTS else None

    def options(self) -> dict:
        """Keywords that the forward call needs."""
        return {"output_hidden_states": True} if self.wants_hidden_states else {}

    @contextmanager
    def watch(self, module: nn.Module, cut: Cut | None):
        """Collect what a forward call of `module`, the stock module of `cut`, made within, computes inside.

        Yields:
            a mapping with `relations` and `parts`, as far as the terms need them, which the forward fills.
        """
        relations = parts = nullcontext()
        if self.projections is not None:
            depth = len(cut.layers)
            relations = self.projections.record(module, self.layout.sizes(cut, depth - 1), depth)
        if self.parts is not None:
            parts = self.parts.record(module, cut)
        with relations as found_relations, parts as found_parts:
            found = {"relations": found_relations, "parts": found_parts}
            yield {name: values for name, values in found.items() if values is not None}
        # Without checkpointing none is an error: an adapter may train nothing up to these projections.
        recomputes = (getattr(one, "gradient_checkpointing", False) for one in module.modules())
        if self.projections is self.parts is None or not torch.is_grad_enabled() or not any(recomputes):
            return
        inside = {
            "relation": list((found_relations or {}).values()),
            "pkd_parts": [output for layer in found_parts or () for _, output in layer.values()],
        }
        for term, tensors in inside.items():
            if tensors and not any(tensor.requires_grad for tensor in tensors):
                raise UserError(
                    f"the {term} term needs gradients of what is inside of layers, which reentrant gradient checkpointing "
                    "takes away: set gradient_checkpointing_kwargs to {'use_reentrant': false}"
                )

    def observed(self, outputs: Mapping, inside: Mapping) -> dict:
        """What the terms compare."""
        kept = {key: outputs[key] for key in PREDICTIONS if key in outputs}
        if self.wants_hidden_states:
            kept["hidden_states"] = outputs["hidden_states"]
        return {**kept, **inside}


def terms_of(args: ElasticTrainingArguments) -> set[str]:
    """The distillation terms that have a weight."""
    return {name for name, weight in args.distillation.items() if weight}


def detach(observed: Mapping) -> dict:
    """The same without gradients."""
    return recursively_apply(torch.Tensor.detach, observed)


class Teacher:
    """A fixed model to distil from.

    Args:
        model: a stock model, or an elastic one, of which the full size teaches; without a head where no prediction is compared.
        student: the elastic model that learns.
        observer: of the student.
        args: which terms have a weight.

    Attributes:
        projected: axis of the student's channels -> its width and the teacher's, where the channels are not the teacher's first.

    Raises:
        UserError: its vocabulary or labels do not fit, or it has not what the terms compare.
    """

    def __init__(
        self, model: PreTrainedModel, student: ElasticPreTrainedModel, observer: Observer, args: ElasticTrainingArguments
    ):
        if not isinstance(model, nn.Module):
            raise UserError(f"the teacher must be a model, got {type(model).__name__}")
        self.model = model.base if isinstance(model, ElasticPreTrainedModel) else model
        _check_fits(model, student)
        terms = terms_of(args)
        if isinstance(model, ElasticPreTrainedModel):
            layout, self._cut = model.layout, model.resolve(None)
        else:
            layout = _layout_of(model, needed_by=sorted(terms & (NEEDS_RELATIONS | NEEDS_PARTS)))
            self._cut = layout and layout.resolve(None)
        self.observer = Observer(layout, self.model, args)
        if self.observer.projections is not None:
            self.observer.projections.check_heads(args.relation_heads, [self._cut])
        self.projected = self._widths(model, student, observer)
        self.model.to(args.device).eval().requires_grad_(False)

    def _widths(self, model: PreTrainedModel, student: ElasticPreTrainedModel, observer: Observer) -> dict[str, tuple[int, int]]:
        if not observer.wants_hidden_states:
            return {}
        full, theirs = student.layout.full, model.config.hidden_size
        # Channels of an elastic hidden size may be in another order than a stock teacher's.
        is_ordered = isinstance(model, ElasticPreTrainedModel) or len(student.space.get("hidden_size", ())) < 2
        found = {} if is_ordered and full["hidden"] == theirs else {"hidden": (full["hidden"], theirs)}
        if observer.parts is None:
            return found
        parts = self.observer.parts
        widths = sorted({parts.layout.full[axis] for axis in parts.axes})
        if len(widths) > 1:
            raise UserError(f"pkd_parts: layers of the teacher write in the widths {', '.join(map(str, widths))}; one is needed")
        for axis in observer.parts.axes:
            if axis != "hidden" or widths[0] != theirs:
                found[axis] = (full[axis], widths[0])
        return found

    def observe(self, inputs: Mapping) -> dict:
        """The teacher's view of a batch without labels, without gradients."""
        observer = self.observer
        with torch.no_grad(), observer.watch(self.model, self._cut) as inside:
            return detach(observer.observed(self.model(**inputs, **observer.options()), inside))


def _check_fits(model: PreTrainedModel, student: ElasticPreTrainedModel) -> None:
    for field in ("vocab_size", "num_labels"):
        theirs, ours = getattr(model.config, field), getattr(student.config, field)
        if theirs != ours:
            raise UserError(f"the teacher's {field} is {theirs}, the model's is {ours}; they must be equal")
    theirs, ours = (_label_names(one.config) for one in (model, student))
    if theirs and ours and theirs != ours:
        raise UserError(f"the teacher's labels are {theirs}, the model's are {ours}; they must be equal")


def _layout_of(model: PreTrainedModel, *, needed_by: list[str]) -> Layout | None:
    """The layout of a stock teacher; terms that look into layers need one."""
    try:
        return Layout(spec_for(model.config.model_type), model)
    except SpecError as error:
        if needed_by:
            raise UserError(f"{needed_by[0]}: what is inside the teacher's layers cannot be found: {error}") from error
        return None


def check_own_parts(layout: Layout, args: ElasticTrainingArguments) -> None:
    """Raise UserError where no teacher is given and the largest size cannot teach the parts of others."""
    if layout.choices.are_open and terms_of(args) & NEEDS_PARTS:
        raise UserError(f"pkd_parts: layers with another {', '.join(layout.choices)} write in other channels; give a teacher")


def _label_names(config) -> list[str] | None:
    """Names of the labels in order; None where nobody has named them."""
    names = [str(config.id2label[index]) for index in sorted(config.id2label)]
    return None if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names


def check_tokenizers(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Raise UserError unless both turn text into the same ids."""
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    if theirs != ours:
        token = min(set(theirs.items()) ^ set(ours.items()))[0]
        raise UserError(
            f"the teacher has another vocabulary: {token!r} is {theirs.get(token)} there and {ours.get(token)} in the model's"
        )

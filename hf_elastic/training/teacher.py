"""Who the sizes learn from, and what one forward of a size or a teacher leaves to compare."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager

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
from .losses import NEEDS_HIDDEN_STATES, NEEDS_RELATIONS, PREDICTIONS
from .relations import Projections


class Observer:
    """Runs a model and keeps what the distillation terms need: predictions, hidden states, relations.

    Args:
        layout: of the full model.
        base: the full stock model.
        args: which terms have a weight.
    """

    def __init__(self, layout: Layout, base: nn.Module, args: ElasticTrainingArguments):
        terms = {name for name, weight in args.distillation.items() if weight}
        self.layout = layout
        self.wants_hidden_states = bool(terms & NEEDS_HIDDEN_STATES)
        self.projections = Projections(layout, base) if terms & NEEDS_RELATIONS else None

    def options(self) -> dict:
        """Keywords that the forward call needs."""
        return {"output_hidden_states": True} if self.wants_hidden_states else {}

    @contextmanager
    def watch(self, module: nn.Module, cut: Cut):
        """Collect the relations of a forward call of `module`, the stock module of `cut`, made within."""
        if self.projections is None:
            yield {}
            return
        depth = len(cut.layers)
        with self.projections.record(module, self.layout.sizes(cut, depth - 1), depth) as collected:
            yield collected
        # Without checkpointing none is an error: an adapter may train nothing up to these projections.
        recomputes = torch.is_grad_enabled() and module.is_gradient_checkpointing
        if recomputes and not any(tensor.requires_grad for tensor in collected.values()):
            raise UserError(
                "the relation term needs gradients of queries, keys and values, which reentrant gradient checkpointing "
                "takes away: set gradient_checkpointing_kwargs to {'use_reentrant': false}"
            )

    def observed(self, outputs: Mapping, relations: Mapping) -> dict:
        """What the terms compare."""
        kept = {key: outputs[key] for key in PREDICTIONS if key in outputs}
        if self.wants_hidden_states:
            kept["hidden_states"] = outputs["hidden_states"]
        if self.projections is not None:
            kept["relations"] = relations
        return kept


def detach(observed: Mapping) -> dict:
    """The same without gradients."""
    return recursively_apply(torch.Tensor.detach, observed)


class Teacher:
    """A fixed model to distil from.

    Args:
        model: a stock model, or an elastic one, of which the full size teaches.
        student: the elastic model that learns.
        args: which terms have a weight.

    Raises:
        UserError: its vocabulary, labels or, for the terms that compare channels, hidden size do not fit.
    """

    def __init__(self, model: PreTrainedModel, student: ElasticPreTrainedModel, args: ElasticTrainingArguments):
        if not isinstance(model, nn.Module):
            raise UserError(f"the teacher must be a model, got {type(model).__name__}")
        self.model = model.base if isinstance(model, ElasticPreTrainedModel) else model
        self._check(model, student, args)
        if isinstance(model, ElasticPreTrainedModel):
            layout = model.layout
        else:
            layout = _layout_of(model, needed="relation" in args.distillation)
        self.observer = Observer(layout, self.model, args)
        if self.observer.projections is not None:
            self.observer.projections.check_heads(args.relation_heads, [layout.resolve(None)])
        self.model.to(args.device).eval().requires_grad_(False)

    def _check(self, model: PreTrainedModel, student: ElasticPreTrainedModel, args: ElasticTrainingArguments) -> None:
        for field in ("vocab_size", "num_labels"):
            theirs, ours = getattr(model.config, field), getattr(student.config, field)
            if theirs != ours:
                raise UserError(f"the teacher's {field} is {theirs}, the model's is {ours}; they must be equal")
        theirs, ours = (_label_names(one.config) for one in (model, student))
        if theirs and ours and theirs != ours:
            raise UserError(f"the teacher's labels are {theirs}, the model's are {ours}; they must be equal")
        channelwise = sorted(NEEDS_HIDDEN_STATES & {name for name, weight in args.distillation.items() if weight})
        if not channelwise:
            return
        theirs, ours = model.config.hidden_size, student.config.hidden_size
        if theirs != ours:
            raise UserError(
                f"{', '.join(channelwise)}: the teacher's hidden_size is {theirs}, the model's is {ours}; use relation"
            )
        if len(student.space.get("hidden_size", ())) > 1 and not isinstance(model, ElasticPreTrainedModel):
            raise UserError(
                f"{', '.join(channelwise)}: hidden_size is elastic, and its channels may be in another order than a stock "
                "teacher's; use relation, or no teacher, so that the largest size teaches"
            )

    def observe(self, inputs: Mapping) -> dict:
        """The teacher's view of a batch without labels, without gradients."""
        observer = self.observer
        with torch.no_grad(), observer.watch(self.model, observer.layout.resolve(None)) as relations:
            return detach(observer.observed(self.model(**inputs, **observer.options()), relations))


def _layout_of(model: PreTrainedModel, *, needed: bool) -> Layout | None:
    """The layout of a stock teacher; only the relation term needs one."""
    try:
        return Layout(spec_for(model.config.model_type), model)
    except SpecError as error:
        if needed:
            raise UserError(f"relation: the teacher's queries, keys and values cannot be found: {error}") from error
        return None


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

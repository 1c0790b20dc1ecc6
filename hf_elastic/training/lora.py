"""Elastic LoRA: adapters that train, and are cut, along with every size.

LoRA (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", eq. 3) adds `B A x` to a frozen layer `W x`. A size
takes the same prefixes of `B`'s rows and `A`'s columns as of `W`'s, so one adapter serves all sizes.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from transformers.pytorch_utils import Conv1D

from ..core.adapters import check_merged
from ..core.errors import MissingPackageError, UserError
from ..core.loading import check_path
from ..core.modeling_elastic import (
    ElasticForCausalLM,
    ElasticForMultipleChoice,
    ElasticForQuestionAnswering,
    ElasticForSequenceClassification,
    ElasticForTokenClassification,
    ElasticModel,
    ElasticPreTrainedModel,
)

if TYPE_CHECKING:
    from peft import PeftModel

# peft's name for what a head is for; it has none for masked language models and multiple choice.
TASK_TYPES = {
    ElasticModel: "FEATURE_EXTRACTION",
    ElasticForCausalLM: "CAUSAL_LM",
    ElasticForSequenceClassification: "SEQ_CLS",
    ElasticForTokenClassification: "TOKEN_CLS",
    ElasticForQuestionAnswering: "QUESTION_ANS",
}
# Heads that a pretrained checkpoint does not have: new ones are useless unless they are trained.
NEW_HEADS = (
    ElasticForSequenceClassification,
    ElasticForTokenClassification,
    ElasticForQuestionAnswering,
    ElasticForMultipleChoice,
)


def add_lora(model: ElasticPreTrainedModel, options: Mapping | None = None) -> PeftModel:
    """Put a LoRA adapter into an elastic model: only it and a new head train, in every size.

    Args:
        model: the elastic model; changed in place.
        options: fields of `peft.LoraConfig`. `target_modules` is by default what peft targets in this architecture, else
            every attention projection; `task_type` follows from the model's class, and `modules_to_save` are the modules of a
            classification or question-answering head.

    Raises:
        UserError: an option or a value that `LoraConfig` does not have, a target that matches no weight of the model, a variant
            of LoRA that cannot be cut, or a model that has adapters already.
        MissingPackageError: peft is not installed.
    """
    peft = _import_peft()
    options = copy.deepcopy(dict(options or {}))  # peft adds to the lists
    known = sorted(field.name for field in dataclasses.fields(peft.LoraConfig) if field.init)
    for name in options:
        if name not in known:
            raise UserError(f"lora: {name!r} is not an option of peft.LoraConfig; known: {', '.join(known)}")
    for name in ("r", "lora_alpha"):
        value = options.get(name, 8)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise UserError(f"lora: {name}: {value!r} must be a number above 0")
    check_merged(model.base)
    if options.get("target_modules") is None:
        options["target_modules"] = default_targets(model)
    matched = _matched(model, options["target_modules"])
    options.setdefault("fan_in_fan_out", all(isinstance(model.base.get_submodule(name), Conv1D) for name in matched))
    options.setdefault("task_type", next((task for kind, task in TASK_TYPES.items() if isinstance(model, kind)), None))
    if isinstance(model, NEW_HEADS):
        options.setdefault("modules_to_save", _head(model))
    try:
        peft_model = peft.get_peft_model(model, peft.LoraConfig(**options))
    except (TypeError, ValueError) as error:
        raise UserError(f"lora: {error}") from error
    return _checked(peft_model, model)


def load_adapter(model: ElasticPreTrainedModel, folder: str | os.PathLike) -> PeftModel:
    """Put a saved adapter into the elastic model that it was trained on; for evaluation, nothing is trainable.

    Args:
        model: the elastic model; changed in place.
        folder: what `save_pretrained` of a PeftModel wrote, or a Hub id.

    Raises:
        UserError: the adapter does not fit or cannot be cut, or the model has adapters already.
        FileNotFoundError: there is no such folder.
        MissingPackageError: peft is not installed.
    """
    peft = _import_peft()
    check_path(folder)
    check_merged(model.base)
    try:
        peft_model = peft.PeftModel.from_pretrained(model, os.fspath(folder))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the adapter {os.fspath(folder)!r} does not fit this model: {error}") from error
    return _checked(peft_model, model)


def default_targets(model: ElasticPreTrainedModel) -> list[str] | str:
    """The modules that LoRA adapts unless told otherwise, as `LoraConfig.target_modules` takes them."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    model_type = model.config.base_config.model_type
    if model_type in KNOWN:
        return KNOWN[model_type]
    spec = model.layout.spec
    heads = {*spec.attention.split(), *spec.scores.values()} - {"head"}
    return sorted(
        {
            entry.rest.removesuffix(".weight")
            for entry in model.layout.entries
            if entry.layer is not None and entry.use and any(heads & set(segment) for dim in entry.dims for segment in dim)
        }
    )


def _import_peft():
    try:
        import peft
    except ImportError as error:
        raise MissingPackageError("adapters need peft, which is not installed: run pip install 'hf-elastic[peft]'") from error
    return peft


def _matched(model: ElasticPreTrainedModel, targets: str | Sequence[str]) -> list[str]:
    """Names of the modules that `target_modules` stands for, by peft's rules.

    Raises:
        UserError: a target matches nothing.
    """
    weights = [entry for entry in model.layout.entries if len(entry.dims) == 2]
    modules = [entry.name.removesuffix(".weight") for entry in weights]
    if targets == "all-linear":
        return modules
    matched = []
    for target in [targets] if isinstance(targets, str) else targets:
        # A single string is a pattern for the whole name, an item of a list the name's end.
        pattern = target if isinstance(targets, str) else rf"(.*\.)?{re.escape(target)}"
        found = [name for name in modules if re.fullmatch(pattern, name)]
        if not found:
            known = sorted({entry.rest.removesuffix(".weight") for entry in weights})
            raise UserError(f"lora: target_modules: {target!r} matches no weight of this model; known: {', '.join(known)}")
        matched += found
    return matched


def _head(model: ElasticPreTrainedModel) -> list[str]:
    """The modules with weights that are beside the backbone."""
    backbone = model.base.base_model
    children = model.base.named_children()
    return [name for name, module in children if module is not backbone and next(module.parameters(), None) is not None]


def _checked(peft_model: PeftModel, model: ElasticPreTrainedModel) -> PeftModel:
    """Take the adapter out again if it cannot be cut; record where the base is, so that the adapter finds it from anywhere."""
    try:
        model.resolve(None)
    except ValueError:
        peft_model.unload()
        raise
    for config in peft_model.peft_config.values():
        if config.base_model_name_or_path and os.path.isdir(config.base_model_name_or_path):
            config.base_model_name_or_path = os.path.abspath(config.base_model_name_or_path)
    return peft_model

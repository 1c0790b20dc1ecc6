"""`ElasticModel` and its heads: a stock model that can run as, and be taken apart into, any of its subnets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GenerationConfig,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

# transformers 4.57 copies remote code one import deep: whatever the files below import is imported here as well.
from .activations import influence_order  # noqa: F401
from .adapters import check_merged  # noqa: F401
from .choices import Choices  # noqa: F401
from .configuration_elastic import ElasticConfig
from .conversion import ConversionMixin
from .counts import Counts  # noqa: F401
from .delegation import DelegationMixin
from .errors import UserError
from .importance import apply_order  # noqa: F401
from .layout import Cut, Layout
from .loading import load_checkpoint  # noqa: F401
from .memory import MEMORY_LAYOUTS, set_memory_layout
from .partition import partition_heads  # noqa: F401
from .portable import portable_config  # noqa: F401
from .shapes import SpecError  # noqa: F401
from .sizes import SizesMixin
from .skeleton import Skeleton
from .skips import Skipped  # noqa: F401
from .space import Space
from .spec import Spec, spec_for
from .specialised import SpecialisedMixin
from .standard import no_init_weights
from .twin_configs import cut_values, is_own
from .twins import is_registry


class ElasticPreTrainedModel(ConversionMixin, SizesMixin, DelegationMixin, SpecialisedMixin, PreTrainedModel):
    """What every elastic model can do, whatever its head.

    The stock model is `base`; this wrapper holds the very same submodules under the very same names, so that state dicts,
    adapters and sharding plans are the stock model's own.

    Args:
        config: an `ElasticConfig`; a missing `spec` is looked up by the base config's model type.
        base: a ready stock model to wrap; built from `config.base_config` if None.

    Raises:
        SpecError: no Spec for the architecture, or it does not fit the weights.
        ValueError: the space or a named subnet is not possible for this model, or the architecture lacks this head.
    """

    config_class = ElasticConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    base_auto_class: ClassVar[type] = AutoModel
    # Whether processes hold parts of the weights (FSDP), which are whole within `forward` only.
    is_sharded = False
    memory_layout = "standard"

    def __init__(self, config: ElasticConfig, base: PreTrainedModel | None = None):
        if config.base_config is None:
            raise UserError("the config is not that of an elastic model: make one of a stock checkpoint with from_base")
        super().__init__(config)
        if config.spec is None:
            config.spec = spec_for(config.base_config.model_type, config.space, config.subnets).to_dict()
        full = config.base_config if config.frozen is None else config.full_config()
        if base is None:
            base = self.stock_class(full)(full)
        layout = Layout(Spec.from_dict(config.spec), base, config.layer_order, config.grown)
        self.frozen_cut, self._configs = None, None
        if config.frozen is not None:
            self.frozen_cut = layout.resolve(config.frozen)
            skeleton = Skeleton(base, layout, self.frozen_cut)
            base, self._configs = _freeze(skeleton), skeleton.configs
            del self._configs.twins[None]  # the others follow it, and it leads from now on
            config.base_config = self._configs.main
            values = cut_values(full, layout, self.frozen_cut)
            config.own = {field: value for field, value in values.items() if is_own(full, field, value)}
            config.full = full
        self._adopt(base)
        self._layout = layout
        self.space = self._make_space()
        for name, subnet in config.subnets.items():
            try:
                self.resolve(subnet)
            except ValueError as error:
                raise UserError(f"subnets.{name}: {error}") from error
        self.select(config.subnet)
        with no_init_weights():  # the base has initialised its own
            self.post_init()

    def _adopt(self, base: PreTrainedModel) -> None:
        """Hold the base's submodules and hooks as our own: the same dicts, so that a change through either is seen by both."""
        self.__dict__["base"] = base
        for key, value in vars(base).items():
            if is_registry(key, value):
                self.__dict__[key] = value
        self._known_shape = self._shape()
        self._start()
        self.forget_views()
        self._watch()

    def _make_space(self) -> Space:
        if self.config.frozen is not None or self.config.space is None:
            return Space({"layers": [list(self._full_cut().layers)]})  # a space of one: the model as it is
        try:
            space = Space.from_dict(self.config.space, max_group=self.layout.full.get("group"))
            self.layout.check_space(space)
        except ValueError as error:
            raise UserError(f"space: {error}") from error
        self.config.space = space.to_dict()
        return space

    @classmethod
    def stock_class(cls, base_config: PretrainedConfig) -> type[PreTrainedModel]:
        """The stock class of this head for an architecture.

        Raises:
            ValueError: transformers has no such class; the message lists the heads that it has.
        """
        try:
            found = cls.base_auto_class._model_mapping[type(base_config)]
        except KeyError:
            heads = [c.__name__ for c in ELASTIC_CLASSES if type(base_config) in c.base_auto_class._model_mapping]
            raise UserError(f"{base_config.model_type} has no head for {cls.__name__}; it has: {', '.join(heads)}") from None
        return found[0] if isinstance(found, (list, tuple)) else found

    def set_memory_layout(self, name: str) -> None:
        """Store the weights contiguously ("standard", as after loading), or for fast views ("prefix"); values and shapes stay.

        With "prefix" safetensors and `parameters_to_vector` refuse some of them, and training is slower.

        Raises:
            ValueError: an unknown name.
        """
        if name not in MEMORY_LAYOUTS:
            raise UserError(f"memory layout {name!r} is unknown; known: {', '.join(MEMORY_LAYOUTS)}")
        cut = (*self.space, *(self.config.grown or ()))
        axes = {axis for axis_name in cut for axis in self.layout.axes.get(axis_name, "").split()}
        axes |= {axis for axis, expression in self.layout.followers.items() if axes & set(expression.split())}
        # FSDP gathers into storage of its own, which must stay the weights' storage.
        if self.frozen_cut is None and not self.is_sharded:
            set_memory_layout(self.base, self.layout, axes, name)
            self.memory_layout = name

    def _active(self) -> PreTrainedModel:
        """The module that runs now: the base, or slices of it, through which gradients flow where they are on."""
        if self.config.subnet is None:
            if self._configs is not None and not torch.compiler.is_compiling():
                self._follow_tree()
            return self.base
        return self._selected_module()

    @torch.compiler.disable
    def _selected_module(self) -> PreTrainedModel:
        if (cut := self._selected) is None:
            return self.base
        skeleton = self.trained_skeleton(cut)
        if skeleton not in self._filled:
            self._filled.append(skeleton)
            # Recomputed activations need the slices until the backward pass.
            while len(self._filled) > (4 if _recomputes(self.base) else 2):
                self._filled.pop(0).release()
        return self._prepare(skeleton, differentiable=torch.is_grad_enabled() or self.is_sharded)

    def trained_skeleton(self, cut: Cut) -> Skeleton:
        """The skeleton that `forward` fills for a size below the full one."""
        return self._running.get(cut, lambda: self._make_skeleton(cut, evaluating=False))

    def trained_module(self, cut: Cut) -> nn.Module:
        """The stock module that `forward` runs for a size, to put hooks on; its weights come with the forward."""
        return self.base if cut == self._full_cut() else self.trained_skeleton(cut).module

    @property
    def base_model(self) -> nn.Module:
        """The selected size without its head."""
        return getattr(self._active(), self.base_model_prefix, self)

    def view(self, subnet: str | Mapping | None = None) -> PreTrainedModel:
        """A subnet as a stock module that shares the weights; see `SizesMixin.view`.

        Raises:
            ValueError: an unknown name or size; or the weights are sharded over processes.
        """
        if self.is_sharded:
            raise UserError("the weights are sharded over processes (FSDP): select() a size, or save the model and load it")
        return super().view(subnet)


def _recomputes(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _freeze(skeleton: Skeleton) -> PreTrainedModel:
    """Turn a skeleton into a model of its own: real parameters of the cut sizes, tied where they were."""
    module = skeleton.prepare(skeleton.layout, differentiable=False)
    owned: dict[int, nn.Parameter] = {}
    for child in module.modules():
        for key, parameter in child._parameters.items():
            if parameter is not None:
                if id(parameter) not in owned:
                    owned[id(parameter)] = nn.Parameter(parameter.detach().clone(memory_format=torch.contiguous_format))
                child._parameters[key] = owned[id(parameter)]
    return module


class ElasticModel(ElasticPreTrainedModel):
    """An elastic encoder or decoder without a head."""


class ElasticForMaskedLM(ElasticPreTrainedModel):
    """An elastic masked language model."""

    base_auto_class = AutoModelForMaskedLM


class ElasticForSequenceClassification(ElasticPreTrainedModel):
    """An elastic sequence classifier or regressor."""

    base_auto_class = AutoModelForSequenceClassification


class ElasticForTokenClassification(ElasticPreTrainedModel):
    """An elastic token classifier."""

    base_auto_class = AutoModelForTokenClassification


class ElasticForMultipleChoice(ElasticPreTrainedModel):
    """An elastic multiple-choice model; inputs are `[batch, choices, length]`."""

    base_auto_class = AutoModelForMultipleChoice


class ElasticForCausalLM(ElasticPreTrainedModel, GenerationMixin):
    """An elastic causal language model."""

    base_auto_class = AutoModelForCausalLM

    @property
    def generation_config(self) -> GenerationConfig:
        """The base's, so that every size generates alike."""
        return self.base.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        if "base" in self.__dict__:  # our own constructor sets one before there is a base, from a config without tokens
            self.base.generation_config = value

    def generate(self, *args, **kwargs):
        """The stock `generate` of the selected size, with a key-value cache of its own depth."""
        with torch.no_grad():
            active = self._active()
        with self._prepared_by_own(active):
            return active.generate(*args, **kwargs)

    def init_continuous_batching(self, *args, **kwargs):
        """The stock one of the selected size: its paged cache is laid out after the sizes. `generate_batch` uses it."""
        return self.view(self.config.subnet).init_continuous_batching(*args, **kwargs)


class ElasticForQuestionAnswering(ElasticPreTrainedModel):
    """An elastic extractive question-answering model."""

    base_auto_class = AutoModelForQuestionAnswering


ELASTIC_CLASSES: tuple[type[ElasticPreTrainedModel], ...] = (
    ElasticModel,
    ElasticForMaskedLM,
    ElasticForCausalLM,
    ElasticForSequenceClassification,
    ElasticForTokenClassification,
    ElasticForQuestionAnswering,
    ElasticForMultipleChoice,
)


def register() -> None:
    """Make the models known to the Auto classes, and let checkpoints carry this code."""
    # Trainer looks here for whose labels it has to shift when it smooths them.
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["elastic"] = ElasticForCausalLM.__name__
    for elastic_class in ELASTIC_CLASSES:
        elastic_class.base_auto_class.register(ElasticConfig, elastic_class, exist_ok=True)
        elastic_class.register_for_auto_class(elastic_class.base_auto_class.__name__)

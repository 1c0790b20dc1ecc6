"""From a stock checkpoint to an elastic model, and back from disk."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import torch
from transformers import PretrainedConfig, PreTrainedModel

from .activations import influence_order
from .configuration_elastic import ElasticConfig
from .errors import UserError
from .importance import FROM_DATA, IMPORTANCE, WITHOUT_DATA, apply_order, importance_order
from .layout import Layout, named_layer_order
from .loading import check_path, load_checkpoint, load_config
from .partition import partition_heads
from .space import Space
from .spec import Spec, spec_for

DEFAULT_SPACE = "default"


def default_space(layout: Layout) -> dict[str, list[int]]:
    """Depth and feed-forward width in quarters: sizes that every architecture has, and nearly always stock models."""
    full = {"num_hidden_layers": layout.num_layers}
    if "intermediate_size" in layout.axes:
        full["intermediate_size"] = layout.value("intermediate_size")
    return {axis: sorted({max(1, size * quarter // 4) for quarter in (1, 2, 3, 4)}) for axis, size in full.items()}


class ConversionMixin:
    """How an elastic model comes about: of a stock checkpoint, or of an elastic one."""

    @staticmethod
    def _spec(
        config: PretrainedConfig, head_partition: bool, space: Mapping | None = None, subnets: Mapping | None = None
    ) -> Spec:
        spec = spec_for(config.model_type, space, subnets)
        return partition_heads(spec) if head_partition else spec

    @classmethod
    def _check_architecture(cls, base_config: PretrainedConfig) -> None:
        """Raise ValueError unless there is a Spec for an architecture, and transformers has this head for it."""
        if isinstance(base_config, ElasticConfig):
            raise UserError(f"this checkpoint is elastic already: load it with {cls.__name__}.from_pretrained")
        spec_for(base_config.model_type)
        cls.stock_class(base_config)

    @classmethod
    def from_base(
        cls,
        base: str | os.PathLike | PreTrainedModel,
        space: Mapping | Space | str | None = None,
        subnets: Mapping | None = None,
        importance: str | None = None,
        layer_order: str | Sequence[int] | None = None,
        calibration: Iterable[Mapping[str, torch.Tensor]] | None = None,
        head_partition: bool = False,
        **kwargs,
    ) -> ConversionMixin:
        """Make a stock checkpoint elastic.

        Args:
            base: a Hub id, a local folder, or a stock model.
            space: which sizes; "default" for depth and feed-forward width in quarters; None for the full size only.
            subnets: name -> subnet.
            importance: how heads, neurons and channels are ranked before the prefixes are taken: "activation", by what they give
                to the layers that read them, on `calibration`; "taylor", by what their removal does to the loss on it, for a
                checkpoint that is fine-tuned already; "magnitude" of their weights; or "none" to keep their order. Default:
                "activation" with calibration, else "magnitude", the best without data. The full model computes the same with
                each. Axes that neither the space nor a named subnet cuts keep their order, as do the hidden channels of a
                headless model.
            layer_order: which layers `num_hidden_layers` keeps: "first", the first ones; "ends", the first, the last, then the
                others from the front, so that every size ends with the layer that the head was pretrained on; "influence",
                those that change most what they read, on `calibration`; or all layer indices, the one to keep longest first.
                Default: "influence" where `importance` looks at calibration, else "first".
            calibration: batches of model inputs, some hundred rows; for "taylor" with labels.
                `hf_elastic.data.calibration_batches` makes them of texts.
            head_partition: `num_attention_heads` partitions the hidden size anew, so that more heads are narrower ones and no
                parameter changes, instead of keeping the size of a head and dropping heads. Not with grouped queries or rotary
                positions.
            **kwargs: for the stock `from_pretrained`, such as `num_labels`.

        Raises:
            ValueError: see the class; or an unknown `importance` or `layer_order`; or heads that cannot be partitioned anew.
            OSError: no such folder, or a checkpoint file that cannot be read.
        """
        if importance is None:
            importance = WITHOUT_DATA if calibration is None else "activation"
        if layer_order is None:
            layer_order = "first" if calibration is None or importance not in FROM_DATA else "influence"
        by_influence = layer_order == "influence"
        if importance not in IMPORTANCE:
            raise UserError(f"importance: {importance!r} is unknown; known: {', '.join(IMPORTANCE)}")
        if calibration is None and (by_influence or importance in FROM_DATA):
            option = f"importance: {importance!r}" if importance in FROM_DATA else "layer_order: 'influence'"
            raise UserError(f"{option} needs calibration batches")
        if calibration is not None:
            if not (by_influence or importance in FROM_DATA):
                raise UserError(f"importance: {importance!r} takes no calibration batches")
            if not (calibration := list(calibration)):
                raise UserError("calibration: needs at least one batch")
        if isinstance(base, PreTrainedModel):
            if kwargs:
                raise UserError(f"{', '.join(kwargs)}: only for a checkpoint that is loaded here, not for a ready model")
            cls._check_architecture(base.config)
        else:
            config_kwargs = {key: value for key, value in kwargs.items() if key not in ("dtype", "device_map", "config")}
            check_path(base)
            cls._check_architecture(kwargs.get("config") or load_config(base, **config_kwargs))
            base = load_checkpoint(cls.base_auto_class.from_pretrained, base, **kwargs)
        if not isinstance(base, cls.stock_class(base.config)):
            raise UserError(f"{cls.__name__} needs a {cls.stock_class(base.config).__name__}, got {type(base).__name__}")
        if space == DEFAULT_SPACE:
            space = default_space(Layout(cls._spec(base.config, head_partition), base))
        space = space if space is None or isinstance(space, Space) else Space.from_dict(space)
        spec = cls._spec(base.config, head_partition, space, subnets)
        if by_influence:
            layer_order = influence_order(base, Layout(spec, base), calibration)
        order = named_layer_order(layer_order, base.config.num_hidden_layers)
        config = ElasticConfig(base.config, spec.to_dict(), space and space.to_dict(), subnets, layer_order=order)
        model = cls(config, base=base)
        apply_order(model, importance_order(model, importance, calibration))
        return model.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Like any `from_pretrained`; `subnet="small"` selects a size.

        Raises:
            ValueError: a tensor of the checkpoint has another shape than its config says; or see the class.
            OSError: no such folder, or a checkpoint file that cannot be read.
        """
        check_path(pretrained_model_name_or_path)
        return load_checkpoint(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)

"""What an instance says of itself: its class is derived from an elastic one, and has the facts of its stock class."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping

import torch
from transformers import Cache, PreTrainedModel

from .configuration_elastic import ElasticConfig
from .errors import UserError
from .twin_configs import cache_layers

# Inputs whose shapes follow the size of the model, and what to say where they do not.
SIZED = {"past_key_values", "cache", "inputs_embeds"}
OF_ANOTHER_SIZE = (
    "what was made or learned for another size, as peft's prompts are, does not fit: extract() a size first, or use add_lora, "
    "whose adapters are cut along"
)

# What `PreTrainedModel` says of a model that is neither ours to say nor a method.
STOCK_FACTS = {
    name
    for name, value in vars(PreTrainedModel).items()
    if not (name.startswith("__") or callable(value) or isinstance(value, (property, classmethod, staticmethod)))
}
STOCK_FACTS -= {"config_class", "model_tags", "_auto_class"}
STOCK_FACTS |= {"accepts_loss_kwargs", "_tp_plan", "_pp_plan", "_ep_plan"}


@functools.cache
def specialised(elastic_class: type, stock_class: type) -> type:
    """An elastic class that has the class attributes, and the signature of `forward`, of a stock class."""

    @functools.wraps(stock_class.forward)
    def forward(self, *args, **kwargs):
        if self.config.subnet is not None and not SIZED.isdisjoint(kwargs):
            self._check_inputs(kwargs)
        return self._active().forward(*args, **kwargs)

    forward.__signature__ = inspect.signature(stock_class.forward)
    own = {"__module__": elastic_class.__module__, "__qualname__": elastic_class.__qualname__, "__doc__": elastic_class.__doc__}
    facts = {name: getattr(stock_class, name) for name in STOCK_FACTS if hasattr(stock_class, name)}
    if elastic_class.forward is SpecialisedMixin.forward:  # else somebody has written one
        own["forward"] = forward
    return type(elastic_class.__name__, (elastic_class,), {**facts, **own, "_stock_facts": facts})


def _new(elastic_class: type, stock_class: type) -> SpecialisedMixin:
    return object.__new__(specialised(elastic_class, stock_class))


class SpecialisedMixin:
    """Instances of a class for each stock class.

    Needs `stock_class` and `_active` of the class that it is mixed into.
    """

    def __new__(cls, config: ElasticConfig | None = None, *args, **kwargs):
        """An instance says of itself what its stock class says: the arguments of `forward`, flags, which weights are tied."""
        base_config = getattr(config, "base_config", None)
        return super().__new__(cls if base_config is None else specialised(cls._elastic_class(), cls.stock_class(base_config)))

    @classmethod
    def _elastic_class(cls) -> type[SpecialisedMixin]:
        return next(each for each in cls.__mro__ if "_stock_facts" not in vars(each))

    def __reduce_ex__(self, protocol):
        """The class is made anew where a copy is unpickled."""
        _, _, *state = super().__reduce_ex__(protocol)
        return _new, (type(self)._elastic_class(), type(self.base)), *state

    def forward(self, input_ids=None, *args, **kwargs):
        """The stock forward of the selected size; an instance's arguments and result are the stock model's."""
        return self._active().forward(input_ids, *args, **kwargs)

    @torch.compiler.disable
    def _check_inputs(self, inputs: Mapping) -> None:
        """Raise UserError for a cache or embeddings of another size than the selected one, such as prompts learned with peft."""
        if (cut := self._selected) is None:
            return
        cache, embeddings = inputs.get("past_key_values", inputs.get("cache")), inputs.get("inputs_embeds")
        layers = cache.layers[: len(cache.layers) - self.layout.spec.cached] if isinstance(cache, Cache) else ()
        if found := [layer.keys.shape[1] for layer in layers if layer.get_seq_length()]:
            axis = self.layout.spec.heads.split()[0]
            places = cache_layers(self.base.config, self.layout, cut)
            attending = [position for position, attends in enumerate(self.layout.attends(cut)) if attends]
            heads = [self.layout.sizes(cut, position)[axis] for position in sorted(attending, key=places.__getitem__)]
            if found != heads[: len(found)]:
                raise UserError(
                    f"past_key_values has the heads {found} in its layers, the selected size {heads}; {OF_ANOTHER_SIZE}"
                )
        if embeddings is not None and embeddings.shape[-1] != (width := self.get_input_embeddings().weight.shape[-1]):
            raise UserError(f"inputs_embeds is {embeddings.shape[-1]} wide, the selected size {width}; {OF_ANOTHER_SIZE}")

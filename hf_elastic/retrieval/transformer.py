"""The module of sentence-transformers whose model is elastic."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from sentence_transformers.base.modules import Transformer
from transformers import PreTrainedModel

# Among the features: the size that ran, by its name where it has one, for the modules that come after.
SIZE = "size"


class ElasticTransformer(Transformer):
    """sentence-transformers' own module over an elastic model; what is selected there runs, or the size that a call names.

    `subnet` reaches it as an argument of `encode` and `predict`, and as the entry of that name among the features.
    """

    forward_kwargs = {"subnet"}

    def preprocess(self, inputs, prompt: str | None = None, subnet=None, **kwargs) -> dict[str, Any]:
        """Tokenize; all sizes read the same tokens."""
        return super().preprocess(inputs, prompt=prompt, **kwargs)

    def forward(self, features: dict[str, Any], subnet: str | Mapping | None = None, **kwargs) -> dict[str, Any]:
        """Run a size; without gradients several threads may run one each.

        Raises:
            UserError: the model has no such size.
        """
        named, _ = features.pop("subnet", None), features.pop(SIZE, None)
        subnet = named if subnet is None else subnet
        selected = self.model.config.subnet
        if subnet is None:
            features = super().forward(features, **kwargs)
            features[SIZE] = self.name_of(selected)
            return features
        if torch.is_grad_enabled():
            self.model.select(subnet)
            try:
                features = super().forward(features, **kwargs)
            finally:
                self.model.select(selected)
        else:
            features = Transformer.forward(self.sized(subnet), features, **kwargs)
        features["subnet"], features[SIZE] = subnet, self.name_of(subnet)
        return features

    def sized(self, subnet: str | Mapping | None) -> Transformer:
        """The stock module over a view of a size."""
        with torch.inference_mode(False):  # a view outlives this call, and may be needed where gradients are on
            view = self.model.view(subnet)
            if (name := self.name_of(subnet)) is not None:  # by which errors call this tower
                view.name_or_path = f"{self.model.name_or_path} ({name})"
            return with_model(self, view, Transformer)

    def name_of(self, subnet: str | Mapping | None) -> str | Mapping | None:
        """A size by its name where it has one; None for the full size.

        Raises:
            UserError: no such size.
        """
        cut = self.model.resolve(subnet)
        if cut == self.model.resolve(None):
            return None
        return next((name for name in self.model.config.subnets if self.model.resolve(name) == cut), subnet)


def with_model(module: Transformer, model: PreTrainedModel, kind: type[Transformer]) -> Transformer:
    """The same module over another model, as a class; all else is shared."""
    other = copy.copy(module)
    other.__class__ = kind
    other._modules = {**module._modules, "model": model}
    return other

"""A linear head for each named size."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.base.modules.module import Module
from torch import nn

from ..core.configuration_elastic import FULL
from ..core.errors import UserError
from .transformer import SIZE

FILE_NAME = "size_heads.safetensors"


def no_documents() -> UserError:
    """The error to raise where documents are to be encoded by a tower for queries alone."""
    return UserError(
        "documents: this model encodes queries only; encode documents with the model whose index they go to, which "
        "`aligned_to.name` says"
    )


def stock_modules(first: Transformer, rest: Iterable[nn.Module], name: str | Mapping | None) -> list[nn.Module]:
    """A stock module over a size, and what comes after it: the head as `Dense`, and a pooling that knows the size's width."""
    modules, width = [first], first.get_embedding_dimension()
    for module in rest:
        if isinstance(module, SizeHeads):
            module = module.as_dense(name)
        elif getattr(module, "embedding_dimension", width) != width:
            module = copy.copy(module)
            times = module.pooling_output_dimension // module.embedding_dimension
            module.embedding_dimension, module.pooling_output_dimension = width, times * width
        modules += [] if module is None else [module]
    return modules


class SizeHeads(Module):
    """Maps the pooled vectors of each named size into the space of the documents; a size without a name has no head.

    A head begins as the identity (with zeros for the channels that its size lacks), so that it changes nothing before training.

    Args:
        widths: name of a size -> its hidden size; with one for "full", where documents are encoded by another model.
        dimension: of the documents' vectors.
    """

    config_keys = ["widths", "dimension"]

    def __init__(self, widths: Mapping[str, int], dimension: int):
        super().__init__()
        self.widths, self.dimension = dict(sorted(widths.items())), dimension  # in the order in which files give them back
        self.heads = nn.ModuleList(nn.Linear(width, dimension) for width in self.widths.values())
        for head in self.heads:
            nn.init.eye_(head.weight)
            nn.init.zeros_(head.bias)

    def head_of(self, name: str) -> nn.Linear:
        """The head of a named size."""
        return self.heads[list(self.widths).index(name)]

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Map `sentence_embedding` `[batch, hidden size of the size]` to `[batch, dimension]`.

        Raises:
            UserError: no head for a size that needs one.
        """
        name, vectors = self._name(features[SIZE]), features["sentence_embedding"]
        if name is not None:
            features["sentence_embedding"] = self.head_of(name)(vectors)
        elif FULL in self.widths or vectors.shape[-1] != self.dimension:
            raise UserError(
                f"subnet: {features[SIZE]!r} has no head that maps its vectors of {vectors.shape[-1]} dimensions to the "
                f"{self.dimension} of the documents; sizes with one: {', '.join(self.widths) or 'none'}"
            )
        return features

    def _name(self, subnet: str | Mapping | None) -> str | None:
        """The name of the head of a size, if it has one."""
        name = FULL if subnet is None else subnet
        return name if isinstance(name, str) and name in self.widths else None

    def get_embedding_dimension(self) -> int:
        """Of the vectors that come out."""
        return self.dimension

    def as_dense(self, name: str | Mapping | None) -> Dense | None:
        """The head of a size as sentence-transformers' own module; None where it has none."""
        if (name := self._name(name)) is None:
            return None
        head = self.head_of(name)
        weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
        return Dense(head.in_features, self.dimension, activation_function=None, init_weight=weight, init_bias=bias)

    def save(self, output_path: str, *args, **kwargs) -> None:
        """Write the weights under the names of their sizes; beside them the full size's, if any, as a `Dense`."""
        if FULL in self.widths:
            self.as_dense(FULL).save(output_path)
        tensors: dict[str, torch.Tensor] = {}
        for name, head in zip(self.widths, self.heads):
            tensors |= {f"{name}.weight": head.weight.detach().cpu(), f"{name}.bias": head.bias.detach().cpu()}
        save_file(tensors, f"{output_path}/{FILE_NAME}")

    @classmethod
    def from_file(cls, path: str, dimension: int) -> SizeHeads:
        """Read what `save` wrote.

        Raises:
            UserError: heads for vectors of another dimension.
        """
        tensors = load_file(path)
        names = [key.removesuffix(".weight") for key in tensors if key.endswith(".weight")]
        for name in names:
            if (given := len(tensors[f"{name}.bias"])) != dimension:
                raise UserError(f"{path}: the head of {name} gives {given} dimensions, the documents have {dimension}")
        heads = cls({name: tensors[f"{name}.weight"].shape[1] for name in names}, dimension)
        for name, head in zip(heads.widths, heads.heads):
            head.weight.data, head.bias.data = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return heads

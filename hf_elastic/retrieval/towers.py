"""The two towers of an asymmetric `ElasticDenser`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sentence_transformers.base.modules import Router
from sentence_transformers.base.modules.input_module import InputModule
from torch import nn

from ..core.errors import UserError
from .heads import SizeHeads

# Routes of the `Router` as which it is saved. There queries take the documents' route: they are right at the full size, and
# what loads it without hf_elastic cannot choose another.
DOCUMENT, SIZES = "document", "sizes"
MAPPINGS = {("query", None): DOCUMENT}
# Among the features: vectors `[batch, 1, dimension]` that the document tower has given already.
FROZEN = "frozen_embedding"


def no_size_for_documents(subnet: str | Mapping) -> UserError:
    """The error to raise for a size that documents are to be encoded at."""
    return UserError(
        f"subnet: {subnet!r} for documents, which this model encodes at the full size only, so that one index serves all sizes; "
        "leave it out, or make a model with mode='symmetric'"
    )


class Towers(InputModule):
    """A frozen tower for documents, and for queries at the full size; an elastic one for queries at the sizes below.

    It is no `Router`, for whose columns Trainer demands a mapping; it is saved as one.

    Args:
        document: the modules of sentence-transformers that encode documents.
        sizes: those that encode queries, the first one over an elastic model.
    """

    forward_kwargs = {"task", "subnet"}

    def __init__(self, document: Iterable[nn.Module], sizes: Iterable[nn.Module]):
        super().__init__()
        self.document, self.sizes = nn.Sequential(*document), nn.Sequential(*sizes)
        self.document.requires_grad_(False)

    def train(self, mode: bool = True) -> Towers:
        """Set the training mode; the document tower keeps encoding without dropout, and is frozen, whatever was tied to it."""
        super().train(mode)
        self.document.eval().requires_grad_(False)
        return self

    def preprocess(self, inputs, prompt: str | None = None, task: str | None = None, subnet=None, **kwargs) -> dict[str, Any]:
        """Tokenize; both towers read the same tokens."""
        features = self.document[0].preprocess(inputs, prompt=prompt, task=task, **kwargs)
        return {**features, "task": task}

    def forward(self, features: dict[str, Any], task: str | None = None, subnet: str | Mapping | None = None) -> dict[str, Any]:
        """Run the tower of a size, which is that of documents for the full one.

        Raises:
            UserError: no such size, or one for documents.
        """
        if FROZEN in features:
            features["sentence_embedding"] = features[FROZEN].squeeze(1)
            return features
        named = features.pop("subnet", None)
        subnet = self.sizes[0].name_of(named if subnet is None else subnet)
        if subnet is None:
            return self.document(features)
        if (task or features.get("task")) == "document":
            raise no_size_for_documents(subnet)
        return self.sizes({**features, "subnet": subnet})

    @property
    def heads(self) -> SizeHeads | None:
        """The heads of the named sizes, where there are any."""
        return next((module for module in self.sizes if isinstance(module, SizeHeads)), None)

    @property
    def tokenizer(self):
        """Of both towers."""
        return self.document[0].tokenizer

    @property
    def modalities(self) -> list:
        """What can be encoded."""
        return self.document[0].modalities

    @property
    def max_seq_length(self) -> int | None:
        """In tokens."""
        return self.document[0].max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self.document[0].max_seq_length = self.sizes[0].max_seq_length = value

    def get_embedding_dimension(self) -> int:
        """Of the vectors of both towers."""
        return Router({DOCUMENT: list(self.document)}).get_embedding_dimension()

    def save(self, output_path: str, *args, **kwargs) -> None:
        """Save as a `Router`, and the heads in a file of their own, which sentence-transformers does not read."""
        sizes = [module for module in self.sizes if module is not self.heads]
        router = Router({DOCUMENT: list(self.document), SIZES: sizes}, default_route=DOCUMENT, route_mappings=MAPPINGS)
        router.save(output_path, *args, **kwargs)
        if self.heads is not None:
            self.heads.save(output_path)

    @classmethod
    def from_router(cls, router: Router, heads: SizeHeads | None) -> Towers:
        """What was saved as a `Router`."""
        first, pooling, *rest = router.sub_modules[SIZES]
        return cls(router.sub_modules[DOCUMENT], [first, pooling, *([] if heads is None else [heads]), *rest])

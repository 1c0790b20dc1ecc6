"""What elastic sentence and cross encoders have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Router, Transformer
from torch import nn

from ..core.errors import UserError
from ..core.modeling_elastic import ElasticPreTrainedModel
from .heads import SizeHeads
from .towers import Towers
from .transformer import ElasticTransformer

# Our modules, and those of sentence-transformers as which they are saved.
SAVED_AS = {ElasticTransformer: Transformer, Towers: Router, SizeHeads: Dense}


def settings_of(model: SentenceTransformer | CrossEncoder) -> dict:
    """What a model has beside its modules, as arguments of another one."""
    own = ("activation_fn",) if isinstance(model, CrossEncoder) else ("similarity_fn_name", "truncate_dim")
    return {name: getattr(model, name) for name in ("prompts", "default_prompt_name", *own)}


class ElasticMixin:
    """Sizes for a model of sentence-transformers.

    What is saved names sentence-transformers' own modules only: without hf_elastic it loads with `trust_remote_code=True`, and
    runs the full size.
    """

    # Whether training leaves the full size as it is.
    full_is_frozen = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, Transformer) and isinstance(module.model, ElasticPreTrainedModel):
                module.__class__ = ElasticTransformer
        if not any(isinstance(module, ElasticTransformer) for module in self.modules()):
            path = args[0] if args else kwargs.get("model_name_or_path")
            raise UserError(
                f"{path or 'modules'}: no elastic model in it; elastic_sentence_transformer and elastic_cross_encoder make one"
            )

    @property
    def elastic_module(self) -> ElasticTransformer:
        """The module that has the sizes."""
        return self[0].sizes[0] if isinstance(self[0], Towers) else self[0]

    @property
    def elastic(self) -> ElasticPreTrainedModel:
        """The elastic model that has the sizes."""
        return self.elastic_module.model

    @property
    def last_module(self) -> nn.Module:
        """The module that gives the output of a size."""
        return list(self)[-1]

    @property
    def subnets(self) -> dict[str, Mapping]:
        """The named sizes."""
        return self.elastic.config.subnets

    def name_of(self, subnet: str | Mapping | None) -> str | Mapping | None:
        """A size by its name where it has one; None for the full size.

        Raises:
            UserError: no such size.
        """
        return self.elastic_module.name_of(subnet)

    def forward(self, *args, **kwargs) -> dict:
        """As sentence-transformers' own. With several processes every weight is in the graph of every output.

        DDP looks for unused weights in the graph of the last forward, and other sizes and columns use others.
        """
        output = super().forward(*args, **kwargs)
        if torch.is_grad_enabled() and torch.distributed.is_available() and torch.distributed.is_initialized():
            nothing = sum(0 * weight.sum() for weight in self.parameters() if weight.requires_grad)
            for name in {"sentence_embedding", "scores"} & output.keys():
                output[name] = output[name] + nothing
        return output

    def add_adapter(self, *args, **kwargs) -> None:
        """Refused: sentence-transformers would put it on the frozen tower, and could not load what it saves.

        Raises:
            UserError: always.
        """
        raise UserError("add_adapter: an elastic sentence or cross encoder takes no adapters; train its weights")

    def save(self, path: str, *args, **kwargs) -> None:
        """As sentence-transformers saves, with the names of its own modules."""
        super().save(path, *args, **kwargs)
        for file in (Path(path, "modules.json"), Path(path, Router.config_file_name)):
            if file.is_file():
                text = file.read_text(encoding="utf-8")
                for ours, stock in SAVED_AS.items():
                    text = text.replace(f"{ours.__module__}.{ours.__name__}", f"{stock.__module__}.{stock.__name__}")
                file.write_text(json.dumps(json.loads(text), indent=2) + "\n", encoding="utf-8")
        for file in Path(path).glob("*/*.py"):  # the code of elastic models is looked for beside modules.json
            file.replace(Path(path, file.name))

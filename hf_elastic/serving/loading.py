"""What can be served: loading a model of any kind as an `Engine`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import load_file_path
from torch import nn

from ..core.configuration_elastic import FULL
from ..core.errors import UserError
from ..core.loading import load_config
from ..core.modeling_elastic import ElasticPreTrainedModel
from ..measure.digests import INCIDENTAL
from ..retrieval.denser import ElasticDenser
from ..retrieval.elastic import ElasticMixin
from ..retrieval.loading import load_denser, load_ranker
from ..utils.lengths import longest_sequence
from ..utils.sentence_transformers import MODULES, SETTINGS
from .engine import CLASSIFIER, EMBEDDING, RERANKER, Engine
from .profiling import longest_profiled
from .tokens import TextEncoder

POOLINGS = ("mean", "cls", "lasttoken")
# Heads that no route is for.
OTHER_HEADS = ("ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")
WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def load_engine(
    path: str,
    subnets: Sequence[str] | None = None,
    *,
    pooling: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    compile: bool = False,
) -> Engine:
    """Load a model that torch runs.

    It is an elastic checkpoint with a head for sequence classification or without a head, an `ElasticDenser`, an
    `ElasticRanker`, or any model of sentence-transformers or stock classifier, which has one size.

    Args:
        path: a folder, or a name on the Hub.
        subnets: sizes to serve; default: the full one and all that have a name.
        pooling: "mean", "cls" or "lasttoken", for an encoder whose checkpoint does not say it; default: mean.
        device: for torch.
        dtype: of the weights.
        compile: compile each size with `torch.compile`.

    Raises:
        UserError: nothing that can be served, no such size, or a pooling for a model that has one.
        OSError: no such model.
    """
    is_embedding = kind_of(path, pooling) == EMBEDDING
    model = load_denser(path, device) if is_embedding else load_ranker(path, device)
    model.to(getattr(torch, dtype)).eval()
    check_text(path, model)
    if pooling is not None:
        set_pooling(path, model, pooling)
    elastic = model.elastic if isinstance(model, ElasticMixin) else None
    if elastic is not None:
        elastic.set_memory_layout("prefix")
    names = size_names(elastic, subnets)
    towers = {name: tower_of(model, name) for name in names}
    limits = {name: longest_sequence(tower[0].model) for name, tower in towers.items()}
    first = towers[names[0]][0]
    encoder = TextEncoder(first.tokenizer, min(first.max_seq_length or max(limits.values()), *limits.values()))
    flops = {name: flops_of(elastic, name, towers[name], encoder.max_length) for name in names}
    names.sort(key=lambda name: -flops[name])
    return Engine(
        name=path,
        kind=EMBEDDING if is_embedding else RERANKER if model.num_labels == 1 else CLASSIFIER,
        towers={name: TorchTower(towers[name], compile) for name in names},
        flops={name: flops[name] for name in names},
        encoder=encoder,
        subnets={} if elastic is None else {name: elastic.subnet(name).to_dict() for name in names},
        device=device,
        dtype=dtype,
        facts=facts_of(towers),
        **(embedding_settings(model, towers) if is_embedding else score_settings(model)),
    )


def kind_of(path: str, pooling: str | None = None) -> str:
    """Whether a model gives vectors ("embedding") or scores ("classifier").

    Raises:
        UserError: a head that no route is for; for one that writes text the pooling has to be said.
        OSError: no such model.
    """
    if load_file_path(path, MODULES) is not None:
        file = load_file_path(path, SETTINGS)
        settings = {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
        model_type = settings.get("model_type", "SentenceTransformer")
        if model_type not in ("SentenceTransformer", "CrossEncoder"):
            raise UserError(f"model: {path} is a {model_type}; served are SentenceTransformer and CrossEncoder")
        return EMBEDDING if model_type == "SentenceTransformer" else CLASSIFIER
    architecture = (load_config(path).architectures or [""])[0]
    if architecture.endswith(OTHER_HEADS):
        raise UserError(f"model: {path} is a {architecture}; served are encoders and ...ForSequenceClassification")
    if architecture.endswith(WRITERS) and pooling is None:
        raise UserError(f"model: {path} is a {architecture}, and no route writes text; give --pooling to serve its vectors")
    return CLASSIFIER if architecture.endswith("ForSequenceClassification") else EMBEDDING


def check_text(path: str, model: SentenceTransformer | CrossEncoder) -> None:
    """Refuse what does not start with a transformer of plain texts, or scores in another way than by a classifier's head."""
    first = next((module for module in model.modules() if isinstance(module, Transformer)), None)
    if isinstance(model[0], Router) and not isinstance(model, ElasticMixin):
        raise UserError(
            f"model: {path} has one tower for queries and another one for documents; served are models with one tower, and an "
            "ElasticDenser, which has both"
        )
    if first is None or "text" not in first.modality_config or "message" in first.modality_config:
        raise UserError(f"model: {path} does not start with a transformer that reads plain texts")
    if isinstance(model, CrossEncoder) and first.transformer_task != "sequence-classification":
        raise UserError(f"model: {path} scores by {first.transformer_task}; served are heads for sequence classification")


def set_pooling(path: str, model: SentenceTransformer | CrossEncoder, pooling: str) -> None:
    """Set how the vectors of tokens become one, where the checkpoint does not say it."""
    if pooling not in POOLINGS:
        raise UserError(f"pooling: {pooling!r} is unknown; known: {', '.join(POOLINGS)}")
    if isinstance(model, CrossEncoder) or load_file_path(path, MODULES) is not None:
        raise UserError(f"pooling: {pooling!r} is for encoders without a pooling of their own; leave it out for {path}")
    model[1] = Pooling(model[0].get_embedding_dimension(), pooling_mode=pooling)


def size_names(elastic: ElasticPreTrainedModel | None, subnets: Sequence[str] | None) -> list[str]:
    """Names of the sizes to serve, each size once.

    Raises:
        UserError: an unknown name, or a name of a model that has one size.
    """
    if elastic is None:
        if wrong := [name for name in subnets or () if name != FULL]:
            raise UserError(f"subnets: {wrong[0]!r} is unknown; a model without sizes has: {FULL}")
        return [FULL]
    cuts = {}
    for name in [FULL, *elastic.config.subnets] if subnets is None else subnets:
        cuts.setdefault(elastic.resolve(name), name)
    return list(cuts.values())


def tower_of(model: SentenceTransformer | CrossEncoder, name: str) -> nn.Sequential:
    """The modules that run a size, over a view of the weights; a plain model is its own."""
    if isinstance(model, ElasticDenser):
        return model.tower("query", name)
    return model.tower(name) if isinstance(model, ElasticMixin) else model


class TorchTower:
    """What runs a size; vectors are normalised afterwards, where a request wants it.

    Args:
        modules: of sentence-transformers, in order.
        compile: compile the model with `torch.compile`.
    """

    def __init__(self, modules: Iterable[nn.Module], compile: bool = False):
        self.modules = [module.eval() for module in modules]
        while isinstance(self.modules[-1], Normalize):
            self.modules.pop()
        if compile:
            self.modules[0].model.compile(dynamic=True)

    def __call__(self, features: dict) -> dict:
        """Features in, features out."""
        for module in self.modules:
            features = module(features)
        return features


def weight_bytes(towers: Iterable[TorchTower]) -> int:
    """Memory of all weights of some sizes, each byte once however many sizes share it."""
    weights = [weight for tower in towers for module in tower.modules for weight in module.parameters()]
    storages = {weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes() for weight in weights}
    return sum(storages.values())


def flops_of(elastic: ElasticPreTrainedModel | None, name: str, tower: nn.Sequential, max_length: int) -> int:
    """FLOPs of a text of the longest profiled length; of a plain model those of its linear layers."""
    length = longest_profiled(max_length)
    if elastic is not None:
        return int(elastic.flops_of(name, sequence_length=length))
    return 2 * length * sum(module.weight.numel() for module in tower.modules() if isinstance(module, nn.Linear))


def facts_of(towers: dict[str, nn.Sequential]) -> dict:
    """Configs of all sizes, without what loaders write into them."""
    return {
        name: {key: value for key, value in tower[0].model.config.to_dict().items() if key not in INCIDENTAL}
        for name, tower in towers.items()
    }


def embedding_settings(model: SentenceTransformer, towers: dict[str, nn.Sequential]) -> dict:
    """What an `Engine` knows of a model that gives vectors."""
    poolings = [module for module in next(iter(towers.values())) if isinstance(module, Pooling)]
    return {
        "prompts": {name: prompt or "" for name, prompt in model.prompts.items()},
        "default_prompt": model.default_prompt_name,
        "documents_at_full": isinstance(model, ElasticDenser) and model.mode == "asymmetric",
        "dimension": model.truncate_dim,
        "width": min(tower.get_embedding_dimension() for tower in towers.values()),
        "excludes_prompt": any(not pooling.include_prompt for pooling in poolings),
        "pooling": "+".join(str(pooling.pooling_mode) for pooling in poolings) or None,
    }


def score_settings(model: CrossEncoder) -> dict:
    """What an `Engine` knows of a model that gives scores."""
    config = model[0].model.config
    names = config.id2label
    return {
        "labels": [names.get(place, f"LABEL_{place}") for place in range(model.num_labels)],
        "is_multi_label": config.problem_type == "multi_label_classification",
        "activation": model.activation_fn,
    }

"""All sizes of one model in one process, on one copy of the weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import nn

from ..core.errors import UserError
from .tokens import InputError, TextEncoder, Tokens

EMBEDDING, CLASSIFIER, RERANKER = "embedding", "classifier", "reranker"
# A size of a model: features in, features out, with `sentence_embedding` and `token_embeddings`, or with `scores`.
Tower = Callable[[dict], Mapping]


@dataclass(frozen=True, slots=True)
class Output:
    """What a size says of one text.

    Attributes:
        values: the pooled vector before normalisation, or the logits, `float32[dimensions or labels]`.
        tokens: the vectors of its tokens, `float32[length, hidden]`, where they were asked for.
    """

    values: np.ndarray
    tokens: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One text that is to be answered, and whether the vectors of its tokens are wanted."""

    tokens: Tokens
    wants_tokens: bool = False


@dataclass
class Engine:
    """A model in all its sizes.

    A batch runs at any of them; a change of size copies no weights and takes no lock. Whoever calls `run` does so from one
    thread, in which the model was made: with OpenMP every thread that runs a model has a team of threads of its own.

    Attributes:
        name: what the model was loaded as.
        kind: "embedding", "classifier" or "reranker".
        towers: name of a size -> what runs it; the largest first.
        flops: of a text of the longest length that is profiled, by name of a size.
        encoder: its tokenizer.
        subnets: each size with every axis spelled out; empty for a model that has one size.
        backend: what runs it, one of `BACKENDS`.
        device: of torch.
        facts: what its speed depends on, for the digest.
        prompts: by name.
        default_prompt: the name of the prompt that is used where a request names none.
        documents_at_full: whether texts with a prompt for documents are encoded at the full size only.
        dimension: of the vectors, as the model itself cuts them; None as they come.
        width: of the narrowest size's vectors.
        labels: names of the labels, in order.
        is_multi_label: whether each label is a decision of its own.
        activation: of a reranker's score.
        excludes_prompt: whether the pooling leaves the tokens of the prompt out.
        pooling: how vectors of tokens become one.
    """

    name: str
    kind: str
    towers: dict[str, Tower]
    flops: dict[str, int]
    encoder: TextEncoder
    subnets: dict[str, dict] = field(default_factory=dict)
    backend: str = "torch"
    device: str = "cpu"
    dtype: str = "float32"
    facts: dict = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    documents_at_full: bool = False
    dimension: int | None = None
    width: int = 0
    labels: list[str] = field(default_factory=list)
    is_multi_label: bool = False
    activation: Callable[[torch.Tensor], torch.Tensor] = field(default_factory=nn.Sigmoid)
    excludes_prompt: bool = False
    pooling: str | None = None

    @property
    def sizes(self) -> list[str]:
        """Names, the largest first."""
        return list(self.towers)

    @property
    def digest(self) -> str:
        """A short hash of what the speed of the model depends on: its architecture and sizes, not its weights."""
        facts = [self.kind, self.flops, self.dtype, self.facts]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    @torch.inference_mode()
    def run(self, subnet: str, rows: Sequence[Row]) -> list[Output]:
        """Answer a batch at a size.

        Raises:
            UserError: no such size.
        """
        if subnet not in self.towers:
            raise UserError(f"subnet: {subnet!r} is unknown; known: {', '.join(self.towers)}")
        if not self.excludes_prompt or len({row.tokens.prompt_length for row in rows}) == 1:
            return self._run(subnet, rows)
        # A pooling takes one length of the prompt for the whole batch.
        order = sorted(range(len(rows)), key=lambda place: rows[place].tokens.prompt_length)
        found: dict[int, Output] = {}
        for _, places in groupby(order, key=lambda place: rows[place].tokens.prompt_length):
            places = list(places)
            found |= zip(places, self._run(subnet, [rows[place] for place in places]))
        return [found[place] for place in range(len(rows))]

    def _run(self, subnet: str, rows: Sequence[Row]) -> list[Output]:
        features = self.encoder.pad([row.tokens for row in rows])
        if self.device != "cpu":
            features = {name: tensor.to(self.device, non_blocking=True) for name, tensor in features.items()}
        mask = features["attention_mask"]
        if self.excludes_prompt:
            features["prompt_length"] = rows[0].tokens.prompt_length
        result = self.towers[subnet](features)
        if self.kind != EMBEDDING:
            return [Output(values) for values in result["scores"].float().numpy(force=True)]
        vectors = result["sentence_embedding"].float().numpy(force=True)
        if not any(row.wants_tokens for row in rows):
            return [Output(values) for values in vectors]
        hidden, kept = result["token_embeddings"].float().numpy(force=True), mask.bool().numpy(force=True)
        return [
            Output(values, hidden[place][kept[place]] if row.wants_tokens else None)
            for place, (values, row) in enumerate(zip(vectors, rows))
        ]

    def embedding(self, values: np.ndarray, *, normalize: bool = True, dimensions: int | None = None) -> np.ndarray:
        """A vector as it is handed out: cut to `dimensions` (Matryoshka, arXiv 2205.13147), then of length 1.

        Args:
            values: as `run` gives it.
            normalize: whether its length is to be 1.
            dimensions: see `check_dimensions`; default: as the model itself cuts its vectors.
        """
        values = values[: self.dimension if dimensions is None else dimensions]
        return values / max(float(np.linalg.norm(values)), 1e-12) if normalize else values

    def check_dimensions(self, dimensions: int) -> None:
        """Refuse more dimensions than every size has, or none.

        Raises:
            InputError: names the number, and what is allowed.
        """
        if not 1 <= dimensions <= self.width:
            raise InputError(f"`dimensions` must be from 1 to {self.width}, got {dimensions}")

    @property
    def functions(self) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        """From logits `[labels]` to scores, by the names that transformers' pipelines have for them."""
        return {
            "softmax": lambda logits: torch.from_numpy(logits).softmax(-1).numpy(),
            "sigmoid": lambda logits: torch.from_numpy(logits).sigmoid().numpy(),
            "none": lambda logits: logits,
        }

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Logits `[labels]` as scores from 0 to 1: of labels that exclude each other, or of each by itself."""
        return self.functions["sigmoid" if self.is_multi_label or len(logits) == 1 else "softmax"](logits)

    def relevance(self, logits: np.ndarray) -> float:
        """A reranker's logit as the score that it was made to give."""
        return float(self.activation(torch.from_numpy(logits))[0])

"""Adaptive input embedding (Baevski & Auli 2019, arXiv 1809.10853) and softmax (Grave et al. 2017, arXiv 1609.04309).

Parameter names and shapes are those of transformers 4's `TransfoXLLMHeadModel`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .configuration_transfo_xl import TransformerXLConfig

IGNORED = -100  # label of a position that does not count
ROWS = 8  # tokens whose probabilities are normalised at once, where memory is spared


class AdaptiveEmbedding(nn.Module):
    """Token embeddings whose width falls from cluster to cluster, projected to `d_model` and scaled by its square root."""

    def __init__(self, config: TransformerXLConfig):
        super().__init__()
        self.clusters = config.clusters
        self.num_embeddings, self.embedding_dim = config.vocab_size, config.d_model
        self.scale = config.d_model**0.5
        self.emb_layers = nn.ModuleList()
        self.emb_projs = nn.ParameterList()
        if config.div_val == 1:
            self.clusters = [(0, config.vocab_size)]
        for (start, end), width in zip(self.clusters, config.cluster_widths):
            self.emb_layers.append(nn.Embedding(end - start, width))
            if config.div_val > 1 or width != config.d_model:
                self.emb_projs.append(nn.Parameter(torch.empty(config.d_model, width)))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings `[..., d_model]` of ids `[...]`.

        Every cluster looks up every token and the right one is kept. The clusters after the first are narrow, so this costs
        little, and unlike a selection by cluster it neither waits for the GPU nor has shapes that depend on the data.
        """
        result = self._embed(0, self._ids_within(0, input_ids))
        for index, (start, _) in enumerate(self.clusters[1:], start=1):
            embedded = self._embed(index, self._ids_within(index, input_ids))
            result = torch.where((input_ids >= start)[..., None], embedded, result)
        return result * self.scale

    def _embed(self, index: int, ids: torch.Tensor) -> torch.Tensor:
        embedded = self.emb_layers[index](ids)
        return functional.linear(embedded, self.emb_projs[index]) if len(self.emb_projs) else embedded

    def _ids_within(self, index: int, input_ids: torch.Tensor) -> torch.Tensor:
        """Ids counted from the cluster's first; others become any valid id, except those that no cluster has: they fail."""
        start, end = self.clusters[index]
        ids = input_ids - start
        # Not clamp, which TensorRT has for floats only.
        if index > 0:
            ids = torch.where(ids < 0, 0, ids)
        if index < len(self.clusters) - 1:
            ids = torch.where(ids >= end - start, 0, ids)
        return ids


class AdaptiveSoftmax(nn.Module):
    """Softmax over the first cluster's tokens and one entry per other cluster, and one softmax inside each of those."""

    def __init__(self, config: TransformerXLConfig):
        super().__init__()
        self.clusters = config.clusters
        self.cutoffs = config.cutoffs
        self.shared_table = config.div_val == 1
        tails = len(self.cutoffs)
        if tails:
            self.cluster_weight = nn.Parameter(torch.empty(tails, config.d_embed))
            self.cluster_bias = nn.Parameter(torch.empty(tails))
        self.out_layers = nn.ModuleList()
        self.out_projs = nn.ParameterList()
        if self.shared_table:
            self.out_layers.append(nn.Linear(config.d_embed, config.vocab_size))
        for (start, end), width in zip(self.clusters, config.cluster_widths):
            if not self.shared_table:
                self.out_layers.append(nn.Linear(width, end - start))
            if config.div_val > 1 or width != config.d_model:
                self.out_projs.append(nn.Parameter(torch.empty(config.d_model, width)))

    def forward(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum of the negative log-likelihoods of `labels` `[tokens]` given `hidden` `[tokens, d_model]`; -100 counts nothing.

        The softmax of a tail is computed for its own tokens only. A tail without tokens still takes part, so that every
        parameter has a gradient: distributed training waits for all of them.
        """
        cluster = torch.zeros_like(labels)
        for cutoff in self.cutoffs:
            cluster = cluster + (labels >= cutoff)
        in_head = torch.where(cluster == 0, labels, self.clusters[0][1] + cluster - 1)
        total = _summed_loss(self._head_scores(hidden), in_head)
        for index, (start, _) in enumerate(self.clusters[1:], start=1):
            rows = (cluster == index).nonzero().squeeze(1)
            total = total + _summed_loss(self._tail_scores(index, hidden[rows]), labels[rows] - start)
        return total

    def log_probabilities(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-probabilities `[..., vocab_size]` in float32 of all tokens given `hidden` `[..., d_model]`."""
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if not (torch.is_grad_enabled() or is_traced) and hidden.dtype == self._table(0)[0].dtype == torch.float32:
            return self._written_in_place(hidden.flatten(0, -2)).unflatten(0, hidden.shape[:-1])
        head = functional.log_softmax(self._head_scores(hidden).float(), dim=-1)
        shortlist = self.clusters[0][1]
        parts = [head[..., :shortlist]]
        for index in range(1, len(self.clusters)):
            within = functional.log_softmax(self._tail_scores(index, hidden).float(), dim=-1)
            parts.append(head[..., shortlist + index - 1, None] + within)
        return torch.cat(parts, dim=-1)

    def _written_in_place(self, hidden: torch.Tensor) -> torch.Tensor:
        """`log_probabilities` `[tokens, vocab_size]` of `[tokens, d_model]`, in little more memory than the result takes."""
        shortlist, vocabulary = self.clusters[0][1], self.clusters[-1][1]
        result = hidden.new_empty(len(hidden), vocabulary)
        head = functional.log_softmax(self._head_scores(hidden), dim=-1)
        result[:, :shortlist] = head[:, :shortlist]
        for index, (start, end) in enumerate(self.clusters[1:], start=1):
            weight, bias = self._table(index)
            torch.addmm(bias, self._project(index, hidden), weight.t(), out=result[:, start:end])
            for first in range(0, len(hidden), ROWS):
                rows = slice(first, first + ROWS)
                part = result[rows, start:end]
                part += head[rows, shortlist + index - 1, None] - part.logsumexp(dim=-1, keepdim=True)
        return result

    def _head_scores(self, hidden: torch.Tensor) -> torch.Tensor:
        weight, bias = self._table(0)
        if self.cutoffs:
            weight, bias = torch.cat([weight, self.cluster_weight]), torch.cat([bias, self.cluster_bias])
        return functional.linear(self._project(0, hidden), weight, bias)

    def _tail_scores(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        return functional.linear(self._project(index, hidden), *self._table(index))

    def _project(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.out_projs[index] if len(self.out_projs) else hidden

    def _table(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.shared_table:
            return self.out_layers[index].weight, self.out_layers[index].bias
        start, end = self.clusters[index]
        return self.out_layers[0].weight[start:end], self.out_layers[0].bias[start:end]


def _summed_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(scores.float(), labels, ignore_index=IGNORED, reduction="sum")

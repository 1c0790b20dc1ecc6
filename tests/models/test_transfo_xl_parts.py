"""The parts of Transformer-XL against their equations."""

import math

import pytest
import torch
from transfo_xl_tiny import VOCAB, config_of, every_kind, filled, model_of, tokens

from hf_elastic.models.transfo_xl.adaptive import AdaptiveEmbedding, AdaptiveSoftmax
from hf_elastic.models.transfo_xl.layers import PositionalEmbedding, RelativeAttention, relative_shift


def test_relative_shift_moves_every_row_to_its_own_distance():
    by_distance = torch.randn(2, 3, 4, 7)
    shifted = relative_shift(by_distance)
    for query in range(4):
        for key in range(3 + query + 1):
            distance = 3 + query - key
            assert torch.equal(shifted[..., query, key], by_distance[..., query, 6 - distance])


def test_attention_is_the_equation_of_the_paper():
    config = config_of(n_head=2)
    attention = filled(RelativeAttention(config, config.layer_sizes()[0]))
    memory, hidden, positions = torch.randn(1, 3, 32), torch.randn(1, 4, 32), PositionalEmbedding(32)
    distances = torch.arange(6, -1, -1)
    blocked = torch.ones(4, 7).triu(4).bool()
    output, weights = attention(hidden, positions(distances, hidden.dtype), blocked, memory)

    w_q, w_k, w_v = (part.unflatten(0, (2, 16)) for part in attention.qkv_net.weight.chunk(3))
    w_r = attention.r_net.weight.unflatten(0, (2, 16))
    context = torch.cat([memory, hidden], 1)[0]
    heads = torch.zeros(4, 2, 16)
    for i in range(4):
        for head in range(2):
            q, u, v = w_q[head] @ hidden[0, i], attention.r_w_bias[head], attention.r_r_bias[head]
            scores = []
            for j in range(3 + i + 1):
                k, r = w_k[head] @ context[j], w_r[head] @ positions(torch.tensor([3 + i - j]), hidden.dtype)[0]
                scores.append((q @ k + q @ r + u @ k + v @ r) / 4)
            expected = torch.stack(scores).softmax(0)
            torch.testing.assert_close(weights[0, head, i, : 3 + i + 1], expected, atol=1e-5, rtol=1e-4)
            heads[i, head] = expected @ (context[: 3 + i + 1] @ w_v[head].T)
    expected = attention.layer_norm(hidden[0] + heads.flatten(1) @ attention.o_net.weight.T)
    torch.testing.assert_close(output[0], expected, atol=1e-5, rtol=1e-4)


@every_kind
def test_embedding_and_softmax_by_cluster(changes):
    config = config_of(**changes)
    embedding, softmax = filled(AdaptiveEmbedding(config)), filled(AdaptiveSoftmax(config))
    ids, hidden = torch.arange(VOCAB), torch.randn(VOCAB, 32)
    embedded, log_probabilities = embedding(ids), softmax.log_probabilities(hidden)
    torch.testing.assert_close(log_probabilities.exp().sum(-1), torch.ones(VOCAB))
    for token in ids.tolist():
        cluster = sum(token >= cutoff for cutoff in config.cutoffs)
        table = 0 if config.div_val == 1 else cluster
        first = 0 if config.div_val == 1 else config.clusters[cluster][0]
        vector = embedding.emb_layers[table].weight[token - first]
        if len(embedding.emb_projs):
            vector = embedding.emb_projs[table] @ vector
        torch.testing.assert_close(embedded[token], vector * math.sqrt(32), atol=1e-5, rtol=1e-4)
    labels = tokens(1, VOCAB)[0].masked_fill(ids % 5 == 0, -100)
    counted = labels != -100
    expected = -log_probabilities[counted, labels[counted]].sum()
    torch.testing.assert_close(softmax(hidden, labels), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("token", [-1, VOCAB])
@pytest.mark.parametrize("div_val", [1, 2])
def test_ids_that_no_cluster_has_fail(token, div_val):
    with pytest.raises(IndexError):
        model_of(div_val=div_val)(torch.tensor([[1, token, 2]]))

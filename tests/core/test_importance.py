"""Which layers matter."""

import torch
from tiny import batch, config_of, randomize

from hf_elastic import ElasticForCausalLM
from hf_elastic.importance import block_influence


def test_a_layer_that_does_nothing_goes_first():
    config = config_of("gpt2")
    base = randomize(ElasticForCausalLM.stock_class(config)(config))
    with torch.no_grad():
        for part in (base.transformer.h[1].attn.c_proj, base.transformer.h[1].mlp.c_proj):
            part.weight.zero_()
            part.bias.zero_()
    order = block_influence(ElasticForCausalLM.from_base(base), [batch(seed=0), batch(seed=1)])
    assert sorted(order) == [0, 1, 2, 3]
    assert order[-1] == 1

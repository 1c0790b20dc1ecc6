"""How sure attention heads are."""

import copy

import torch
from torch import nn

from .base import Proxy
from .subject import Batch, Subject, inputs_of, mask_of


class HeadConfidence(Proxy):
    """Sum over layers of the mean over heads and unmasked tokens of the largest attention weight.

    Source: Voita et al. 2019, "Analyzing Multi-Head Self-Attention", section 4; summed as in Serianni and Kalita 2023.
    """

    needs = "inputs"
    source = "Voita et al. 2019, arXiv 1905.09418"

    @torch.no_grad()
    def compute(self, subject: Subject, batch: Batch) -> float:
        """See `Proxy`."""
        _use_eager_attention(subject.module)
        attentions = subject.module(**inputs_of(batch), output_attentions=True).attentions
        mask = mask_of(batch)
        # "rows heads tokens" -> the heads' weights of the unmasked tokens
        return sum(float(layer.amax(-1).movedim(1, -1).reshape(mask.numel(), -1)[mask].mean()) for layer in attentions)


def _use_eager_attention(module: nn.Module) -> None:
    """Have the attention weights computed: other kernels do not return them."""
    copies: dict[int, object] = {}
    for child in module.modules():
        config = vars(child).get("config")
        if config is not None:
            if id(config) not in copies:
                copies[id(config)] = copy.deepcopy(config)
                copies[id(config)]._attn_implementation = "eager"
            vars(child)["config"] = copies[id(config)]

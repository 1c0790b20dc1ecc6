"""Flow through a network of magnitudes."""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...core.errors import UserError
from .base import Proxy
from .subject import Batch, Subject


class Synflow(Proxy):
    """`sum w * dR/dw` with R the sum of the last hidden state, when every weight is its magnitude and the input is ones.

    The input is a single token, so that attention passes its value on: no flow goes through queries and keys. Norms are passed
    over, as they would hide the magnitudes, and all is float64. Source: Tanaka et al. 2020, "Pruning neural networks without any
    data by iteratively conserving synaptic flow", eq. 2, for a whole network as in Abdelfattah et al. 2021.

    Raises:
        ValueError: the flow is beyond what floats hold; it is soon with gated feed-forwards, which square it in every layer.
    """

    needs = "weights"
    source = "Tanaka et al. 2020, arXiv 2006.05467"

    def compute(self, subject: Subject, batch: Batch | None = None) -> float:
        """See `Proxy`."""
        module = subject.module
        width = module.get_input_embeddings().embedding_dim
        for child in module.modules():
            for key, parameter in child._parameters.items():
                if parameter is not None:
                    child._parameters[key] = parameter.detach().abs().double()
            if _is_norm(child):
                child.register_forward_hook(lambda _module, args, _output: args[0])
        leaves = subject.free()
        ones = torch.ones(1, 1, width, dtype=torch.float64, device=module.device)
        # The gradient of a softmax over one token is 0. Fused kernels leave a rounding error there, which the size of the flow
        # makes larger than everything else.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            flow = module.base_model(inputs_embeds=ones)[0].sum()
            gradients = torch.autograd.grad(flow, list(leaves.values()))
        score = sum(float((weight * gradient).detach().sum()) for weight, gradient in zip(leaves.values(), gradients))
        if not torch.isfinite(torch.tensor(score, dtype=torch.float64)):
            raise UserError(f"synflow: what flows through {type(module).__name__} is beyond what floats hold")
        return score


def _is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation: no children, and a weight that is a vector."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 1 and not module._modules

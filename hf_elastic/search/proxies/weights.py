"""Quality proxies that need the weights, and most of them one batch.

Each takes a `Subject` and a batch of model inputs, changes neither, and returns a number, larger for the better model. Sums over
weights are over the matrices of attention and of the feed-forward; embeddings and heads of tasks do not count.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...core.errors import UserError
from ...core.layout import Cut, Layout
from ...core.modeling_elastic import ElasticPreTrainedModel
from ...core.shapes import Dim
from ...core.skeleton import copy_tree
from ...core.spec import spec_for
from .shapes import ATTENTION, FFN, parts_of

Batch = Mapping[str, torch.Tensor]
# Share of the variance that the counted principal components hold.
VARIANCE = 0.99


@dataclass(frozen=True)
class Matrix:
    """One matrix of attention or of the feed-forward.

    Attributes:
        path: of its module.
        part: `ATTENTION` or `FFN`.
        position: of its layer.
        inward: what it reads, a parsed dimension.
        outward: what it writes.
    """

    path: str
    part: str
    position: int
    inward: Dim
    outward: Dim


class Subject:
    """A model to score: a module tree of its own over the same tensors, so that scoring it disturbs nobody.

    Args:
        model: elastic; or stock, of an architecture that has a Spec: views and extracted models are stock, if their layers are
            alike.
        subnet: of an elastic model; None is the full model.

    Raises:
        ValueError: a subnet of a stock model, or one that the model does not have.
        SpecError: there is no Spec for a stock model, or it does not fit, as where layers of a view differ.
    """

    def __init__(self, model: PreTrainedModel, subnet: Mapping | str | None = None):
        if isinstance(model, ElasticPreTrainedModel):
            self.layout, self.cut = model.layout, model.resolve(subnet)
            stock = model.view(subnet)
        elif subnet is not None:
            raise UserError(f"{type(model).__name__} is not elastic and has no subnet {subnet}")
        else:
            self.layout = Layout(spec_for(model.config.model_type), model)
            self.cut, stock = self.layout.resolve(None), model
        self.module = copy_tree(stock).eval()
        self.matrices = _find_matrices(self.layout, self.cut, self.module)

    def sizes(self, position: int) -> dict[str, int]:
        """Size of every axis in the layer at `position`."""
        return self.layout.sizes(self.cut, position)

    def free(self) -> dict[Matrix, torch.Tensor]:
        """Make every matrix a leaf that gets gradients; the model's own tensors stay as they are."""
        leaves = {}
        for matrix in self.matrices:
            owner = self.module.get_submodule(matrix.path)
            leaves[matrix] = owner._parameters["weight"] = owner.weight.detach().requires_grad_()
        return leaves


def _find_matrices(layout: Layout, cut: Cut, module: nn.Module) -> list[Matrix]:
    parts = parts_of(layout)
    entries = {entry.name: entry for entry in layout.entries}
    found = []
    for name, (source, _) in layout.plan(cut).items():
        entry = entries[source]
        if parts.get(source) not in (ATTENTION, FFN) or len(entry.dims) != 2:
            continue
        path = name.removesuffix(".weight")
        inward, outward = entry.dims if isinstance(module.get_submodule(path), Conv1D) else reversed(entry.dims)
        found.append(Matrix(path, parts[source], cut.layers.index(entry.layer), inward, outward))
    return found


def _gradients(subject: Subject, batch: Batch) -> tuple[dict[Matrix, torch.Tensor], dict[Matrix, torch.Tensor]]:
    """The matrices, and the gradients of the loss of a batch with labels."""
    leaves = subject.free()
    with torch.enable_grad():
        loss = subject.module(**batch).loss
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return {key: leaf.detach() for key, leaf in leaves.items()}, dict(zip(leaves, gradients))


def snip(subject: Subject, batch: Batch) -> float:
    """`sum |w * dL/dw|`, what the loss would change without each weight.

    Source: Lee et al. 2019, "SNIP: Single-shot Network Pruning", summed as in Abdelfattah et al. 2021, "Zero-Cost Proxies".
    """
    weights, gradients = _gradients(subject, batch)
    return sum(float((weights[key] * gradients[key]).abs().sum()) for key in weights)


def grad_norm(subject: Subject, batch: Batch) -> float:
    """`sum_W ||dL/dW||_2` over the matrices W. Source: Abdelfattah et al. 2021, "Zero-Cost Proxies for Lightweight NAS"."""
    return sum(float(gradient.norm()) for gradient in _gradients(subject, batch)[1].values())


def synaptic_saliency(subject: Subject, batch: Batch) -> float:
    """`sum |w * dL/dw|` over the feed-forward only.

    Source: Zhou et al. 2022, "Training-free Transformer Architecture Search" (TF-TAS), for vision transformers; Serianni and
    Kalita 2023 (arXiv 2306.00288) for language models.
    """
    weights, gradients = _gradients(subject, batch)
    return sum(float((weights[key] * gradients[key]).abs().sum()) for key in weights if key.part == FFN)


def synaptic_diversity(subject: Subject, batch: Batch) -> float:
    """`sum_W ||W||_nuc * ||dL/dW||_nuc` over the matrices of attention. Source: as of `synaptic_saliency`."""
    weights, gradients = _gradients(subject, batch)
    norm = torch.linalg.matrix_norm
    keys = [key for key in weights if key.part == ATTENTION]
    return sum(float(norm(weights[key], "nuc") * norm(gradients[key], "nuc")) for key in keys)


def synflow(subject: Subject, batch: None = None) -> float:
    """`sum w * dR/dw` with R the sum of the last hidden state, when every weight is its magnitude and the input is ones.

    The input is a single token, so that attention passes its value on: no flow goes through queries and keys. Norms are passed
    over, as they would hide the magnitudes, and all is float64. Source: Tanaka et al. 2020, "Pruning neural networks without any
    data by iteratively conserving synaptic flow", eq. 2, for a whole network as in Abdelfattah et al. 2021.

    Raises:
        ValueError: the flow is beyond what floats hold; it is soon with gated feed-forwards, which square it in every layer.
    """
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
    # The gradient of a softmax over one token is 0. Fused kernels leave a rounding error there, which the size of the flow makes
    # larger than everything else.
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


def head_importance(subject: Subject, batch: Batch) -> float:
    """`sum_h mean_x |o_h(x) . dL(x)/do_h(x)|`, o_h what head h hands to the output projection for all tokens of a sequence x.

    Source: Michel et al. 2019, "Are Sixteen Heads Really Better than One?", eq. 2, summed over heads and layers.
    """
    outputs = [m for m in subject.matrices if m.part == ATTENTION and m.outward == (("hidden",),)]
    contexts: dict[Matrix, torch.Tensor] = {}

    def keep(matrix: Matrix) -> Callable:
        def hook(_module, args):
            contexts[matrix] = args[0]

        return hook

    for matrix in outputs:
        subject.module.get_submodule(matrix.path).register_forward_pre_hook(keep(matrix))
    subject.free()
    with torch.enable_grad():
        loss = subject.module(**batch).loss
        gradients = torch.autograd.grad(loss, [contexts[matrix] for matrix in outputs])
    rows = batch["input_ids"].flatten(0, -2).shape[0]
    total = 0.0
    for matrix, gradient in zip(outputs, gradients):
        product = (contexts[matrix] * gradient).detach()
        per_head = product.reshape(rows, -1, product.shape[-1]).unflatten(-1, (-1, subject.sizes(matrix.position)["head"]))
        # The loss is a mean over sequences, so the mean is in its gradients already.
        total += float(per_head.sum((1, 3)).abs().sum())
    return total


@torch.no_grad()
def head_confidence(subject: Subject, batch: Batch) -> float:
    """Sum over layers of the mean over heads and unmasked tokens of the largest attention weight.

    Source: Voita et al. 2019, "Analyzing Multi-Head Self-Attention", section 4; summed as in Serianni and Kalita 2023.
    """
    _use_eager_attention(subject.module)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    attentions = subject.module(**inputs, output_attentions=True).attentions
    mask = _mask_of(batch)
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


def _mask_of(batch: Batch) -> torch.Tensor:
    """Which tokens count, `[rows * tokens]`."""
    return batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool().flatten()


def principal_components(values: torch.Tensor, share: float = VARIANCE) -> int:
    """How many principal components of `[samples, width]` hold `share` of the variance; 0 where nothing varies."""
    centred = values.double() - values.double().mean(0)
    variances = torch.linalg.eigvalsh(centred.T @ centred).flip(0).clamp(min=0)
    total = variances.sum()
    return int((variances.cumsum(0) < share * total).sum()) + 1 if total > 0 else 0


def v_pca(subject: Subject, batch: Batch) -> float:
    """`sum_l k_l`, k_l the principal components that hold 99% of the variance of the feed-forward's pre-activation over the
    unmasked tokens; of a gated one, of its gate.

    Source: Wang 2025, "W-PCA Based Gradient-Free Proxy" (arXiv 2504.15983), where it is called vanilla PCA.
    """
    seen: dict[int, torch.Tensor] = {}

    def keep(matrix: Matrix) -> Callable:
        def hook(_module, _args, output):
            width = subject.sizes(matrix.position)["ffn"]
            seen[matrix.position] = output[..., :width].reshape(-1, width)

        return hook

    for matrix in _first_of_each_layer(m for m in subject.matrices if m.part == FFN and m.inward == (("hidden",),)):
        subject.module.get_submodule(matrix.path).register_forward_hook(keep(matrix))
    with torch.no_grad():
        subject.module(**{key: value for key, value in batch.items() if key != "labels"})
    mask = _mask_of(batch)
    return float(sum(principal_components(values[mask]) for values in seen.values()))


def _first_of_each_layer(matrices: Iterable[Matrix]) -> list[Matrix]:
    """The gate comes first in every gated feed-forward, and is the first half of a fused one."""
    first: dict[int, Matrix] = {}
    for matrix in matrices:
        first.setdefault(matrix.position, matrix)
    return list(first.values())


def w_pca(subject: Subject, batch: Batch) -> float:
    """`v_pca` times the number of parameters, those of embeddings included. Source: as of `v_pca`, which weights it so."""
    parameters = sum(parameter.numel() for parameter in subject.module.parameters())
    return parameters * v_pca(subject, batch)

"""Quality proxies: what says which of two sizes will be better, without training either.

Every proxy is larger for the better model. Closed forms need shapes only and take a whole population at once; the others
(`proxies_weights`) need a model, and most of them a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from ...core.errors import UserError
from . import weights as weights
from .shapes import Shapes, shapes_of
from .weights import Batch, Subject

# Of `capacity`, each fitted on one table only; recipes/benchmarks/proxies.py prints the fit.
ATTENTION_SHARE = 2 / 5
HEADS_EXPONENT = 1 / 5
NARROWNESS = 109

LTS = 'Javaheripi et al. 2022, "LiteTransformerSearch", arXiv 2203.02094'


@dataclass(frozen=True)
class Proxy:
    """A quality proxy.

    Attributes:
        compute: what computes it. With needs "shapes": `Shapes` -> `[N]`; else (`Subject`, batch) -> a number.
        needs: "shapes"; "weights"; "inputs", a batch; or "labels", a batch with labels.
        source: the paper, or "ours".
    """

    compute: Callable
    needs: str
    source: str


def decoder_parameters(shapes: Shapes) -> np.ndarray:
    """Parameters of attention, feed-forward and norms; no embedding, no softmax, `[N]`.

    Source: Javaheripi et al. 2022, "LiteTransformerSearch" (arXiv 2203.02094).
    """
    return (shapes.attention + shapes.ffn + shapes.other).sum(1) + shapes.final


def attention_times_ffn(shapes: Shapes) -> np.ndarray:
    """`A * F`: parameters of all attention times parameters of all feed-forward, `[N]`; ours, without a constant."""
    return shapes.attention.sum(1).astype(float) * shapes.ffn.sum(1)


def layer_capacity(shapes: Shapes) -> np.ndarray:
    """`(sum_l a_l h_l^(1/5))^(2/5) * (sum_l f_l)^(3/5)`, `[N]`; ours.

    a_l and f_l are the parameters of attention and of the feed-forward in layer l, h_l its heads. Decoder parameters add what
    this multiplies: to them a model may be all feed-forward. Constants: docs/search.md.
    """
    heads = np.where(shapes.heads > 0, shapes.heads, 1).astype(float)
    attention = (shapes.attention * heads**HEADS_EXPONENT).sum(1)
    return attention**ATTENTION_SHARE * shapes.ffn.sum(1).astype(float) ** (1 - ATTENTION_SHARE)


def capacity(shapes: Shapes) -> np.ndarray:
    """`layer_capacity * exp(-109 / w)`, `[N]`; ours.

    w is the smaller of the width of the embeddings and the hidden size: however much the layers can do, a token brings no more
    into them. Among models of one width it ranks as `layer_capacity` does. Constants: docs/search.md.
    """
    return layer_capacity(shapes) * np.exp(-NARROWNESS / shapes.width)


PROXIES = {
    "decoder_parameters": Proxy(decoder_parameters, "shapes", LTS),
    "attention_times_ffn": Proxy(attention_times_ffn, "shapes", "ours"),
    "layer_capacity": Proxy(layer_capacity, "shapes", "ours"),
    "capacity": Proxy(capacity, "shapes", "ours"),
    "synflow": Proxy(weights.synflow, "weights", "Tanaka et al. 2020, arXiv 2006.05467"),
    "snip": Proxy(weights.snip, "labels", "Lee et al. 2019, arXiv 1810.02340"),
    "grad_norm": Proxy(weights.grad_norm, "labels", "Abdelfattah et al. 2021, arXiv 2101.08134"),
    "head_importance": Proxy(weights.head_importance, "labels", "Michel et al. 2019, arXiv 1905.10650"),
    "head_confidence": Proxy(weights.head_confidence, "inputs", "Voita et al. 2019, arXiv 1905.09418"),
    "synaptic_saliency": Proxy(weights.synaptic_saliency, "labels", "Zhou et al. 2022, arXiv 2203.12217"),
    "synaptic_diversity": Proxy(weights.synaptic_diversity, "labels", "Zhou et al. 2022, arXiv 2203.12217"),
    "v_pca": Proxy(weights.v_pca, "inputs", "Wang 2025, arXiv 2504.15983"),
    "w_pca": Proxy(weights.w_pca, "inputs", "Wang 2025, arXiv 2504.15983"),
}
CLOSED_FORMS = tuple(name for name, proxy in PROXIES.items() if proxy.needs == "shapes")


def find_proxy(name: str) -> Proxy:
    """Look a proxy up.

    Raises:
        ValueError: an unknown name; the message lists the known.
    """
    if name not in PROXIES:
        raise UserError(f"unknown proxy {name!r}; known: {', '.join(PROXIES)}")
    return PROXIES[name]


def closed_form(
    model: PreTrainedModel, subnets: Sequence[Mapping | str | None] = (None,), names: Sequence[str] = CLOSED_FORMS
) -> dict[str, np.ndarray]:
    """Closed-form proxies of a population.

    Args:
        model: elastic, with any backbone; or stock, of an architecture that has a Spec.
        subnets: N names, Subnets or None (the full model).
        names: of closed forms.

    Returns:
        name -> `[N]`.

    Raises:
        ValueError: an unknown proxy, one that needs weights, or a subnet that the model does not have.
        SpecError: there is no Spec for a stock model, or it does not fit.
    """
    proxies = {name: find_proxy(name) for name in names}
    for name, proxy in proxies.items():
        if proxy.needs != "shapes":
            raise UserError(f"{name} is not a closed form: it needs {proxy.needs}; closed forms: {', '.join(CLOSED_FORMS)}")
    shapes = shapes_of(model, subnets)
    return {name: proxy.compute(shapes) for name, proxy in proxies.items()}


def score(name: str, model: PreTrainedModel, batch: Batch | None = None, subnet: Mapping | str | None = None) -> float:
    """One proxy of one model, which stays as it is.

    Args:
        name: of any proxy.
        model: elastic; or stock, of an architecture that has a Spec. A view whose layers differ in size is scored as its elastic
            model with `subnet`.
        batch: model inputs, `labels` among them where the proxy needs them.
        subnet: of an elastic model; None is the full model.

    Raises:
        ValueError: an unknown proxy, what it needs is missing from the batch, a subnet that the model does not have, or
            a score that no float holds (synflow).
        SpecError: there is no Spec for a stock model, or it does not fit.
    """
    proxy = find_proxy(name)
    if proxy.needs == "shapes":
        return float(closed_form(model, [subnet], [name])[name][0])
    needed = {"labels": ("input_ids", "labels"), "inputs": ("input_ids",)}.get(proxy.needs, ())
    if missing := [key for key in needed if key not in (batch or {})]:
        raise UserError(f"{name} needs a batch with {' and '.join(missing)}")
    return proxy.compute(Subject(model, subnet), batch)

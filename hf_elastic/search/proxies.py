"""Quality proxies: what says which of two sizes will be better, without training either.

Every proxy is larger for the better model. Closed forms need shapes only and take a whole population at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from .shapes import Shapes, shapes_of

SHAPES = "shapes"

# Of `capacity`; fitted on one table only, see docs/search.md.
ATTENTION_SHARE = 2 / 5
HEADS_EXPONENT = 1 / 5


@dataclass(frozen=True)
class Proxy:
    """A quality proxy.

    Attributes:
        compute: `Shapes` -> `[N]`.
        needs: "shapes".
        source: the paper, or "ours".
    """

    compute: Callable
    needs: str
    source: str


def decoder_parameters(shapes: Shapes) -> np.ndarray:
    """Parameters of attention, feed-forward and norms; no embedding, no softmax, `[N]`.

    Source: Javaheripi et al. 2022, "LiteTransformerSearch" (arXiv 2203.02094), which names it the proxy.
    """
    return (shapes.attention + shapes.ffn + shapes.other).sum(1) + shapes.final


def attention_times_ffn(shapes: Shapes) -> np.ndarray:
    """`A * F`: parameters of all attention times parameters of all feed-forward, `[N]`, without a constant; ours."""
    return shapes.attention.sum(1).astype(float) * shapes.ffn.sum(1)


def capacity(shapes: Shapes) -> np.ndarray:
    """`(sum_l a_l h_l^(1/5))^(2/5) * (sum_l f_l)^(3/5)`, `[N]`; ours.

    a_l and f_l are the parameters of attention and of the feed-forward in layer l, h_l its heads. The exponents of the two sums
    add up to one, so it is in parameters, and a model without either has none. Decoder parameters add what this multiplies:
    there a model may be all feed-forward. The two constants were fitted on one table of Transformer-XLs, see docs/search.md.
    """
    heads = np.where(shapes.heads > 0, shapes.heads, 1).astype(float)
    attention = (shapes.attention * heads**HEADS_EXPONENT).sum(1)
    return attention**ATTENTION_SHARE * shapes.ffn.sum(1).astype(float) ** (1 - ATTENTION_SHARE)


LTS = 'Javaheripi et al. 2022, "LiteTransformerSearch", arXiv 2203.02094'

PROXIES = {
    "decoder_parameters": Proxy(decoder_parameters, SHAPES, LTS),
    "attention_times_ffn": Proxy(attention_times_ffn, SHAPES, "ours"),
    "capacity": Proxy(capacity, SHAPES, "ours"),
}
CLOSED_FORMS = tuple(name for name, proxy in PROXIES.items() if proxy.needs == SHAPES)


def find_proxy(name: str) -> Proxy:
    """Look a proxy up.

    Raises:
        ValueError: an unknown name; the message lists the known.
    """
    if name not in PROXIES:
        raise ValueError(f"unknown proxy {name!r}; known: {', '.join(PROXIES)}")
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
        if proxy.needs != SHAPES:
            raise ValueError(f"{name} is not a closed form: it needs {proxy.needs}; closed forms: {', '.join(CLOSED_FORMS)}")
    shapes = shapes_of(model, subnets)
    return {name: proxy.compute(shapes) for name, proxy in proxies.items()}

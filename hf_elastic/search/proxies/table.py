"""Quality proxies by name: what says which of two sizes will be better, without training either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from transformers import PreTrainedModel

from ...core.errors import UserError
from .base import ClosedForm, Proxy
from .capacity import AttentionTimesFFN, Capacity, LayerCapacity
from .decoder_parameters import DecoderParameters
from .grad_norm import GradNorm
from .head_confidence import HeadConfidence
from .head_importance import HeadImportance
from .pca import VPCA, WPCA
from .shapes import shapes_of
from .snip import Snip
from .subject import Batch, Subject
from .synaptic import SynapticDiversity, SynapticSaliency
from .synflow import Synflow

PROXIES: dict[str, Proxy | ClosedForm] = {
    "decoder_parameters": DecoderParameters(),
    "attention_times_ffn": AttentionTimesFFN(),
    "layer_capacity": LayerCapacity(),
    "capacity": Capacity(),
    "synflow": Synflow(),
    "snip": Snip(),
    "grad_norm": GradNorm(),
    "head_importance": HeadImportance(),
    "head_confidence": HeadConfidence(),
    "synaptic_saliency": SynapticSaliency(),
    "synaptic_diversity": SynapticDiversity(),
    "v_pca": VPCA(),
    "w_pca": WPCA(),
}
CLOSED_FORMS = tuple(name for name, proxy in PROXIES.items() if isinstance(proxy, ClosedForm))
BY_WEIGHTS = tuple(name for name in PROXIES if name not in CLOSED_FORMS)


def find_proxy(name: str) -> Proxy:
    """Look a proxy up.

    Raises:
        ValueError: an unknown name; the message lists the known.
    """
    if name not in PROXIES:
        raise UserError(f"unknown proxy {name!r}; known: {', '.join(PROXIES)}")
    return PROXIES[name]


def check_batch(name: str, batch: Batch | None) -> None:
    """Raise ValueError unless a batch has what a proxy needs."""
    needed = {"labels": ("input_ids", "labels"), "inputs": ("input_ids",)}.get(find_proxy(name).needs, ())
    if missing := [key for key in needed if key not in (batch or {})]:
        raise UserError(f"{name} needs a batch with {' and '.join(missing)}")


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
        if name not in CLOSED_FORMS:
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
    if name in CLOSED_FORMS:
        return float(closed_form(model, [subnet], [name])[name][0])
    check_batch(name, batch)
    return proxy.compute(Subject(model, subnet), batch)

"""The model card of `push_to_hub` and of `ElasticTrainer`: what the model itself tells, and what the caller adds."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCard

from ..core.modeling_elastic import ElasticPreTrainedModel
from .cards import CardFacts, elastic_card, size_card, write_card
from .measured import from_metrics
from .places import Place
from .push import parity_records

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def write_model_card(
    model: ElasticPreTrainedModel,
    folder: Path,
    repo_id: str,
    revision: str | None = None,
    *,
    metrics: Mapping[str, float] | None = None,
    **facts,
) -> None:
    """Write `README.md`, unless somebody wrote one there.

    Args:
        model: a supernet, or an elastic model that is frozen at one size.
        folder: where to.
        repo_id: where the model is to be loaded from.
        revision: its branch.
        metrics: as `ElasticTrainer.evaluate` returns them.
        **facts: as for `CardFacts`.
    """
    measurements = [] if metrics is None else from_metrics(model, metrics)
    tags = [*facts.pop("tags", ()), *tags_in(folder / "README.md")]
    given = CardFacts(**{"base_model": base_model_of(model), "measurements": measurements, "tags": tags, **facts})
    place = Place(repo_id, revision)
    card = (
        elastic_card(model, place, given)
        if model.frozen_cut is None
        else size_card(model, "full", place, given, parity_records(folder))
    )
    write_card(folder, card)


def tags_in(path: Path) -> list[str]:
    """Tags of a card that transformers has just written, which are those that were asked for, or of an older one of ours."""
    return list(ModelCard.load(path).data.tags or ()) if path.exists() else []


def base_model_of(model: ElasticPreTrainedModel) -> str | None:
    """Hub id of the checkpoint that was made elastic, if it came from the Hub and is still known."""
    name = model.config.base_config.name_or_path
    return name if HUB_ID.fullmatch(name or "") and not os.path.exists(name) else None

"""Loading a model for retrieval."""

from __future__ import annotations

from sentence_transformers import SentenceTransformer

from ..core.errors import UserError


def load_denser(path: str, device: str | None = None) -> SentenceTransformer:
    """A model that encodes queries and documents.

    Args:
        path: a folder, or a name on the Hub.
        device: for torch; default: the best one that is free for this process.

    Raises:
        UserError: it is no model that sentence-transformers can load.
    """
    try:
        return SentenceTransformer(path, device=device)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model: {path!r} cannot be loaded: {error}") from error

"""What keeps the vectors of an index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .config import IndexConfig


class Store(ABC):
    """Vectors under text ids. The `Index` around it has checked all that it is given.

    Args:
        config: of the index; `config.metric` is set, and vectors come with unit length if it is cosine.
        dimension: numbers in a vector.

    Attributes:
        is_read_only: whether nothing can be added, as it is memory-mapped.
    """

    is_read_only = False

    def __init__(self, config: IndexConfig, dimension: int):
        self.config, self.dimension = config, dimension

    @classmethod
    @abstractmethod
    def create(cls, config: IndexConfig, dimension: int, identity: str, *, resume: bool) -> Store:
        """An empty one.

        Args:
            config: as for the class.
            dimension: as for the class.
            identity: a hash of what will be in it.
            resume: whether one that an earlier process began under this identity is gone on with.
        """

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, config: IndexConfig, dimension: int, place: str | None, *, mmap: bool) -> Store:
        """One that was saved; `place` is what `save` said."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many vectors are in it."""

    @property
    def training_rows(self) -> int:
        """How many vectors it would be trained on before any is added; 0: it needs no training, or has had it."""
        return 0

    def check_count(self, count: int) -> None:  # noqa: B027
        """Raise UserError if it cannot be made of so few vectors."""

    @abstractmethod
    def existing(self, ids: Sequence[str]) -> list[str]:
        """Those of some ids that are in it."""

    def train(self, vectors: np.ndarray) -> None:  # noqa: B027
        """See what vectors are like, if that is needed before any is added: float32[rows, dimension]."""

    @abstractmethod
    def add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Add new vectors: float32[rows, dimension]."""

    @abstractmethod
    def delete(self, ids: Sequence[str]) -> None:
        """Delete some that are in it."""

    @abstractmethod
    def search(self, vectors: np.ndarray, k: int) -> tuple[list[list[str]], list[np.ndarray]]:
        """For each of float32[n, dimension] at most `k` ids, best first, and their scores; `k` is not above `count`."""

    @abstractmethod
    def save(self, folder: Path) -> str | None:
        """Write its files to a folder; returns where it is if that is elsewhere."""

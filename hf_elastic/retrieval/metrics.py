"""Runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..core.errors import UserError
from ..utils.files import write_atomically


def write_run(run: Mapping[str, Mapping[str, float]], path: str | Path, tag: str) -> None:
    """Write a TREC run file, `query Q0 document rank score tag`, best first."""
    lines = []
    for query, found in run.items():
        for rank, (document, score) in enumerate(found.items(), 1):
            if len(f"{query} {document}".split()) != 2:
                raise UserError(f"{path}: {document!r} cannot be in a run file, whose columns are separated by blanks")
            lines.append(f"{query} Q0 {document} {rank} {score!r} {tag}\n")
    write_atomically(path, "".join(lines))

"""Measuring what an engine's sizes cost, once, before it serves."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..core.errors import UserError
from .costs import ServingProfile, SizeProfile
from .engine import Engine, Row
from .tokens import Tokens

SHORTEST, LONGEST = 16, 512  # tokens; between them each length is twice the one before
MOST = 15  # samples of a cell


def longest_profiled(max_length: int) -> int:
    """The longest length that is measured for a model, in tokens."""
    return min(LONGEST, max_length)


def grid_of(max_length: int, max_batch_size: int) -> tuple[list[int], list[int]]:
    """Batch sizes and lengths to measure: powers of two, and the largest of each."""
    longest = longest_profiled(max_length)
    lengths = [length for length in _doubled(SHORTEST) if length < longest]
    return [*(size for size in _doubled(1) if size < max_batch_size), max_batch_size], [*lengths, longest]


def _doubled(start: int) -> list[int]:
    return [start << power for power in range(16)]


def measure_profile(
    engine: Engine,
    qualities: Mapping[str, float],
    *,
    max_batch_size: int,
    max_batch_tokens: int,
    budget_seconds: float = 20.0,
    report: Callable[[str], object] = lambda text: None,
) -> ServingProfile:
    """Time an engine's sizes on batches of random tokens, in the thread that will run it.

    Each round times all cells of the grid once, in another order, so that what else the machine does hits all alike. They go on
    until the time is up; the first one is taken in any case. A batch of more than `max_batch_tokens` is never run, and its time
    is that of the largest one of its length that is, in proportion.

    Args:
        engine: what to measure.
        qualities: by name of a size; those that are not there are unknown.
        max_batch_size: the most texts of a batch.
        max_batch_tokens: the most tokens of a batch, padding included.
        budget_seconds: when to stop; the first round is finished first, however long it takes.
        report: is told what is measured, and how long the first round took.
    """
    batch_sizes, lengths = grid_of(engine.encoder.max_length, max_batch_size)
    cells = [(b, n) for b, n in itertools.product(batch_sizes, lengths) if b == 1 or b * n <= max_batch_tokens]
    generator = random.Random(0)
    rows = {length: _row(engine, length, generator) for length in lengths}
    samples: dict[tuple[str, int, int], list[float]] = {(name, *cell): [] for name in engine.sizes for cell in cells}
    for name in engine.sizes:  # memory is laid out, and what is compiled is compiled
        for batch_size, length in cells[:: len(cells) - 1 or 1]:
            engine.run(name, [rows[length]] * batch_size)
    report(f"profile: {len(samples)} batches, each once in any case, and again until {budget_seconds:g} s are over")
    start = time.perf_counter()
    end = start + budget_seconds
    for turn in range(MOST):
        for cell in generator.sample(list(samples), len(samples)):
            if samples[cell] and time.perf_counter() > end:
                break
            name, batch_size, length = cell
            batch = [rows[length]] * batch_size
            begin = time.perf_counter()
            engine.run(name, batch)
            samples[cell].append(time.perf_counter() - begin)
        if not turn:
            report(f"profile: each once took {time.perf_counter() - start:.1f} s")
    seconds = {cell: statistics.median(values) for cell, values in samples.items()}

    def at(name: str, batch_size: int, length: int) -> float:
        largest = max(b for b, n in cells if n == length and b <= batch_size)
        return seconds[name, largest, length] * batch_size / largest

    sizes = [
        SizeProfile(name, qualities.get(name), engine.flops[name], [[at(name, b, n) for n in lengths] for b in batch_sizes])
        for name in engine.sizes
    ]
    return ServingProfile(batch_sizes=batch_sizes, lengths=lengths, sizes=sizes, **identity(engine))


def identity(engine: Engine) -> dict:
    """What a profile is a profile of, beside its sizes."""
    return {"model": engine.digest, "backend": engine.backend, "device": engine.device, "threads": torch.get_num_threads()}


def load_profile(path: str | Path, engine: Engine, qualities: Mapping[str, float]) -> ServingProfile:
    """A profile that was saved, if it is one of this engine here.

    Args:
        path: of the file.
        engine: what is going to be served.
        qualities: replace those of the profile.

    Raises:
        UserError: it is damaged, or was measured on something else; the message names what differs.
    """
    profile = ServingProfile.load(path)
    profile.check(**identity(engine))
    if profile.names != engine.sizes:
        raise UserError(f"profile: {path} has the sizes {', '.join(profile.names)}, and served are {', '.join(engine.sizes)}")
    return profile.with_qualities(qualities)


def _row(engine: Engine, length: int, generator: random.Random) -> Row:
    ids = tuple(generator.randrange(engine.encoder.vocabulary_size) for _ in range(length))
    return Row(Tokens(ids, (0,) * length))

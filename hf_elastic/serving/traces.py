"""When requests come, and how long they are: drawn, recorded, or from users who wait for their answers."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from ..core.errors import UserError

MOST_REQUESTS = 2_000_000
LENGTH_SPREAD = 0.6  # standard deviation of the logarithm of a drawn length
# Bursts: a fifth of the time requests come ten times as often as in the rest.
BURST_SECONDS, QUIET_SECONDS, BURST_FACTOR = 1.0, 4.0, 10.0
DIURNAL_SWING = 0.8  # of the mean rate, up and down


@dataclass(frozen=True)
class Lengths:
    """How many tokens requests have.

    Attributes:
        mean: before those that are too long are cut (tokens).
        longest: what longer ones are cut to (tokens).
    """

    mean: float
    longest: int

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Log-normal lengths, integers `[count]`."""
        logarithms = generator.normal(math.log(self.mean) - LENGTH_SPREAD**2 / 2, LENGTH_SPREAD, count)
        return self._whole(np.exp(logarithms))

    def scale(self, recorded: np.ndarray) -> np.ndarray:
        """Recorded lengths with this mean, integers of the same shape."""
        return self._whole(recorded * (self.mean / recorded.mean()))

    def _whole(self, lengths: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(lengths), 1, self.longest).astype(int)


@dataclass(frozen=True)
class Sample:
    """Lengths like those of a recorded trace, `[requests]`."""

    values: np.ndarray

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Lengths that are drawn from them, integers `[count]`."""
        return generator.choice(self.values, count)


@dataclass(frozen=True)
class OpenLoop:
    """Requests that come whether or not others have been answered.

    Attributes:
        times: when they come, ascending, in seconds from 0, `[requests]`.
        lengths: their tokens, `[requests]`.
        duration: of the whole trace, in seconds.
    """

    times: np.ndarray
    lengths: np.ndarray
    duration: float

    @property
    def rate(self) -> float:
        """Mean rate (requests/s)."""
        return len(self.times) / self.duration

    def at_rate(self, rate: float) -> OpenLoop:
        """The same requests in faster or slower time, so that this is their mean rate (requests/s)."""
        factor = self.rate / rate
        return replace(self, times=self.times * factor, duration=self.duration * factor)

    def first(self) -> list[tuple[float, int]]:
        """Time and length of the requests that come by themselves."""
        return list(zip(self.times.tolist(), self.lengths.tolist()))

    def after(self, now: float) -> tuple[float, int] | None:
        """Nobody waits for an answer before the next request."""
        return None


class ClosedLoop:
    """Users who send a request, wait for its answer, think, and send the next.

    Args:
        users: how many.
        think: mean of the exponential time between an answer and the next request, in seconds.
        duration: after that they send no more, in seconds.
        lengths: of the requests.
        seed: of times and lengths.
    """

    def __init__(self, users: int, think: float, duration: float, lengths: Lengths | Sample, seed: int):
        self.users, self.think, self.duration, self.lengths = users, think, duration, lengths
        self._generator = np.random.default_rng(seed)

    def first(self) -> list[tuple[float, int]]:
        """Time and length of each user's first request; without thinking all come at once."""
        return [request for _ in range(self.users) if (request := self.after(0.0)) is not None]

    def after(self, now: float) -> tuple[float, int] | None:
        """Time and length of the request that follows an answer; None after the end."""
        time = now + self._generator.exponential(self.think) if self.think else now
        return (time, int(self.lengths.draw(1, self._generator)[0])) if time < self.duration else None


def poisson(rate: float, duration: float, lengths: Lengths, seed: int) -> OpenLoop:
    """Requests that come independently of each other.

    Args:
        rate: mean (requests/s).
        duration: in seconds.
        lengths: of the requests.
        seed: of times and lengths.
    """
    return _with_rates(np.array([0.0, duration]), np.array([1.0]), rate, lengths, seed)


def burst(rate: float, duration: float, lengths: Lengths, seed: int) -> OpenLoop:
    """Quiet times and bursts of ten times their rate, which last exponential times with means of 4 s and 1 s; arguments as
    `poisson`."""
    generator = np.random.default_rng([seed, 1])
    edges, factors = [0.0], []
    while edges[-1] < duration:
        is_burst = len(factors) % 2 == 1
        edges.append(edges[-1] + generator.exponential(BURST_SECONDS if is_burst else QUIET_SECONDS))
        factors.append(BURST_FACTOR if is_burst else 1.0)
    edges[-1] = duration
    return _with_rates(np.array(edges), np.array(factors), rate, lengths, seed)


def diurnal(rate: float, duration: float, lengths: Lengths, seed: int) -> OpenLoop:
    """One day in `duration` seconds: a rate that rises and falls once like a sine, from 0.2 to 1.8 times the mean; arguments as
    `poisson`."""
    edges = np.linspace(0, duration, 1001)
    centres = (edges[:-1] + edges[1:]) / 2
    factors = 1 - DIURNAL_SWING * np.cos(2 * np.pi * centres / duration)
    return _with_rates(edges, factors, rate, lengths, seed)


DRAWN: dict[str, Callable[[float, float, Lengths, int], OpenLoop]] = {"poisson": poisson, "burst": burst, "diurnal": diurnal}


def _with_rates(edges: np.ndarray, factors: np.ndarray, rate: float, lengths: Lengths, seed: int) -> OpenLoop:
    """A Poisson process whose rate is constant between edges, in proportion to the factors; its mean is `rate`."""
    generator = np.random.default_rng(seed)
    widths = np.diff(edges)
    expected = factors * widths * (rate * edges[-1] / (factors * widths).sum())
    if expected.sum() > MOST_REQUESTS:
        raise UserError(
            f"{rate:g} requests/s for {edges[-1]:g} s are more than {MOST_REQUESTS:,} requests; make duration smaller"
        )
    times = _spread(edges[:-1], widths, generator.poisson(expected), generator)
    if not len(times):
        raise UserError(f"no request comes in {edges[-1]:g} s at {rate:g} requests/s; make duration larger")
    return OpenLoop(times, lengths.draw(len(times), generator), float(edges[-1]))


def _spread(starts: np.ndarray, widths: np.ndarray | float, counts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """So many times in each interval, uniformly random, ascending."""
    places = np.repeat(np.arange(len(counts)), counts)
    widths = np.broadcast_to(widths, len(counts))
    return np.sort(starts[places] + generator.random(len(places)) * widths[places])


def recorded(path: str | Path, lengths: Lengths, seed: int, start: float = 0.0, duration: float | None = None) -> OpenLoop:
    """A window of a recorded trace, in its own time.

    Three kinds of text files are read, plain or compressed by gzip: arrivals in each second, one number a line; and the tables
    of Azure's LLM inference traces (`TIMESTAMP,ContextTokens,...`) and of Mooncake's (`timestamp_ms,input_length,...`). Within
    a second arrivals are drawn uniformly. Lengths keep the recorded shape, with the mean of `lengths`; where there are none they
    are drawn.

    Args:
        path: the file.
        lengths: mean and longest.
        seed: of what is drawn.
        start: of the window, in seconds of the trace.
        duration: of the window, in seconds of the trace; None up to its end.

    Raises:
        UserError: another kind of file, a damaged one, or a window with no or too many requests.
        OSError: there is no such file.
    """
    generator = np.random.default_rng(seed)
    try:
        times, tokens, end = _read(Path(path), generator, start, duration)
    except (ValueError, IndexError, EOFError, gzip.BadGzipFile) as error:
        raise error if isinstance(error, UserError) else UserError(f"{path} is not a trace that is known: {error}") from error
    if end <= start:
        raise UserError(f"{path} ends at {end:g} s of its time, and start is {start:g}")
    end = end if duration is None else start + duration
    inside = (times >= start) & (times < end) if duration is not None else times >= start
    times = times[inside]
    if not len(times):
        raise UserError(f"{path} has no request between {start:g} s and {end:g} s")
    if len(times) > MOST_REQUESTS:
        raise UserError(
            f"{path} has {len(times):,} requests there, at most {MOST_REQUESTS:,} are simulated; choose start and duration"
        )
    sizes = lengths.draw(len(times), generator) if tokens is None else lengths.scale(tokens[inside])
    return OpenLoop(times - start, sizes, end - start)


def _read(path: Path, generator: np.random.Generator, start: float, duration: float | None):
    """Times in seconds from the first, tokens or None, and the end of the trace in seconds."""
    lines = _lines(path)
    head = next(lines, "")
    if head.startswith("TIMESTAMP,ContextTokens"):
        rows = [line.split(",") for line in lines]
        times = np.array([_timestamp(row[0]) for row in rows])
        tokens = np.array([int(row[1]) for row in rows])
    elif head.startswith("timestamp_ms,input_length"):
        rows = [line.split(",") for line in lines]
        times = np.array([float(row[0]) / 1000 for row in rows])
        tokens = np.array([int(row[1]) for row in rows])
    else:
        counts = np.array([int(head), *map(int, lines)])
        low = max(0, math.floor(start))
        high = len(counts) if duration is None else min(len(counts), math.ceil(start + duration))
        if counts[low:high].sum() > MOST_REQUESTS:
            raise UserError(f"{path} has {counts[low:high].sum():,} requests there, at most {MOST_REQUESTS:,} are simulated; "
                            "choose start and duration")  # fmt: skip
        seconds = np.arange(low, high, dtype=float)
        return _spread(seconds, 1.0, counts[low:high], generator), None, float(len(counts))
    if tokens.min(initial=1) < 1:
        raise ValueError(f"a length of {tokens.min()} tokens")
    order = np.argsort(times, kind="stable")
    times = times[order] - times[order[0]]
    return times, tokens[order], float(times[-1])


def _timestamp(text: str) -> float:
    # Seven digits of a second; Python 3.10 reads six.
    return datetime.fromisoformat(text[:26]).replace(tzinfo=timezone.utc).timestamp()


def _lines(path: Path) -> Iterator[str]:
    data = path.read_bytes()
    text = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    return (line for line in text.decode("utf-8").splitlines() if line)

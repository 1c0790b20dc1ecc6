"""The scheduler under a virtual clock: what a server with measured costs would do with a trace."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..core.errors import UserError
from .costs import CostModel, ServingProfile
from .scheduler import Batch, Request, Scheduler
from .traces import ClosedLoop, OpenLoop

EXPIRED, REJECTED = -1, -2


@dataclass(frozen=True)
class Outcome:
    """What became of each request; all arrays are `[requests]`.

    Attributes:
        arrivals: in seconds.
        lengths: in tokens.
        latencies: from arrival to answer, in seconds; for those without an answer, infinite.
        sizes: index of the size that answered, or `EXPIRED` or `REJECTED`.
        objective: latency within which an answer is in time, in seconds.
        names: of the sizes, the largest first.
        qualities: of the sizes; NaN where unknown.
        duration: of the trace or until the last answer, whichever is longer, in seconds.
        batches: how many were run.
        switches: how many of them at another size than the batch before.
        busy: seconds in which the model worked.
    """

    arrivals: np.ndarray
    lengths: np.ndarray
    latencies: np.ndarray
    sizes: np.ndarray
    objective: float
    names: list[str]
    qualities: list[float]
    duration: float
    batches: int
    switches: int
    busy: float

    @property
    def attainment(self) -> float:
        """Share of all requests that were answered in time."""
        return float((self.latencies <= self.objective).mean())

    @property
    def quality(self) -> float:
        """Mean quality of the answers: of each size as often as it answered; NaN without answers or where it is unknown."""
        answered = self.sizes[self.sizes >= 0]
        return float(np.array(self.qualities)[answered].mean()) if len(answered) else float("nan")

    def summary(self) -> dict[str, object]:
        """The results as values for JSON; times in milliseconds, rates per second, shares from 0 to 1."""
        answered = self.latencies[self.sizes >= 0] * 1000
        percentiles = np.percentile(answered, [50, 95, 99]) if len(answered) else [float("nan")] * 3
        in_time = int((self.latencies <= self.objective).sum())
        return {
            "requests": len(self.arrivals),
            **{name: _finite(value) for name, value in zip(("p50_ms", "p95_ms", "p99_ms"), percentiles)},
            "attainment": self.attainment,
            "goodput": in_time / self.duration,
            "misses": len(self.arrivals) - in_time,
            "expired": int((self.sizes == EXPIRED).sum()),
            "rejected": int((self.sizes == REJECTED).sum()),
            "quality": _finite(self.quality),
            "shares": {name: float((self.sizes == index).mean()) for index, name in enumerate(self.names)},
            "batch_size": len(answered) / self.batches if self.batches else 0.0,
            "switches": self.switches,
            "busy": self.busy / self.duration,
        }


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def service_times(
    profile: ServingProfile, noise: float = 0.0, seed: int = 0, factors: Mapping[str, float] | None = None
) -> Callable[[Batch], float]:
    """How long batches take: what was measured, times a factor, times log-normal noise with a mean of 1.

    Args:
        profile: the measurements.
        noise: standard deviation of the logarithm.
        seed: of the noise.
        factors: of each size; default: 1.
    """
    measured, generator = CostModel(profile), np.random.default_rng(seed)
    measured.correction |= factors or {}

    def seconds(batch: Batch) -> float:
        factor = np.exp(generator.normal(-(noise**2) / 2, noise)) if noise else 1.0
        return measured.seconds(batch.subnet, len(batch.requests), batch.length) * float(factor)

    return seconds


def simulate(
    trace: OpenLoop | ClosedLoop,
    scheduler: Scheduler,
    service: Callable[[Batch], float],
    *,
    max_queue: int = 512,
    deadlines: bool = False,
) -> Outcome:
    """Run a trace.

    Args:
        trace: when requests come.
        scheduler: what decides; it observes every batch, and is changed by that.
        service: how long a batch really takes, in seconds.
        max_queue: requests that may wait; those that come when so many do are rejected.
        deadlines: whether each request has the latency objective as its deadline, and is dropped when that has passed.

    Raises:
        UserError: more users than may wait; each would ask again at once.
    """
    if isinstance(trace, ClosedLoop) and trace.users > max_queue:
        raise UserError(f"max_queue: {trace.users} users need a queue for as many requests, got {max_queue}")
    coming = [(time, index, length) for index, (time, length) in enumerate(trace.first())]
    heapq.heapify(coming)
    known = len(coming)
    fates: dict[int, tuple[float, int, float, int]] = {}  # id -> arrival, length, latency, size
    queue: dict[int, Request] = {}
    names = scheduler.costs.profile.names
    now, busy, batches, switches, last = 0.0, 0.0, 0, 0, None

    def settle(request: Request, latency: float, size: int) -> None:
        nonlocal known
        fates[request.id] = (request.arrival, request.length, latency, size)
        if (following := trace.after(now)) is not None:
            heapq.heappush(coming, (following[0], known, following[1]))
            known += 1

    while coming or queue:
        if not queue:
            now = max(now, coming[0][0])
        while coming and coming[0][0] <= now:
            arrival, index, length = heapq.heappop(coming)
            request = Request(index, arrival, length, arrival + scheduler.objective if deadlines else None)
            if len(queue) < max_queue:
                queue[index] = request
            else:
                settle(request, np.inf, REJECTED)
        decision = scheduler.next(now, list(queue.values()))
        for request in decision.expired:
            del queue[request.id]
            settle(request, np.inf, EXPIRED)
        batch = decision.batch
        if batch is None:
            continue
        seconds = service(batch)
        now, busy, batches = now + seconds, busy + seconds, batches + 1
        switches += last not in (None, batch.subnet)
        last = batch.subnet
        scheduler.observe(batch, seconds)
        for request in batch.requests:
            del queue[request.id]
            settle(request, now - request.arrival, names.index(batch.subnet))
    arrivals, lengths, latencies, sizes = (np.array(column) for column in zip(*(fates[index] for index in sorted(fates))))
    return Outcome(
        arrivals,
        lengths,
        latencies,
        sizes,
        scheduler.objective,
        names,
        [float("nan") if size.quality is None else size.quality for size in scheduler.costs.profile.sizes],
        max(trace.duration, now),
        batches,
        switches,
        busy,
    )

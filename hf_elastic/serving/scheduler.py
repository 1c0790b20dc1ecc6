"""Which requests run now, together, and at which size: pure, so that a server and a simulation share every line.

The policy `table` is the elastic schedule of ElasticLM (arXiv 2311.07204): the more requests, the smaller the size. `slo` follows
SuperServe's SlackFit (arXiv 2312.16733) in that the slack of what waits decides, and looks at all that waits.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import UserError
from .config import STATIC, SchedulerConfig
from .costs import CostModel

LOOKAHEAD = 512  # requests that `slo` plans for; those after them have later deadlines
HIGHEST_PRIORITY = 10  # in latency objectives
RATE_MEMORY = 10  # latency objectives over which the rate of arrivals is a mean
LATE_TURNS = 16  # one batch of so many begins with the most overdue request, so that none waits for ever
PATIENCE = 100  # latency objectives after which it is filled with overdue ones


@dataclass(frozen=True, slots=True)
class Request:
    """What waits.

    Attributes:
        id: its own number; of two equally urgent requests the smaller one goes first.
        arrival: when it came, in seconds of the caller's clock.
        length: tokens, at least 1.
        deadline: when its answer is worth nothing any more, in seconds of the same clock; None where it has none.
        subnet: the only size that may answer it; None for any.
        min_quality: least quality of the size that answers it, in the unit of the profile.
        priority: in latency objectives: 1 is served like a request that came one latency objective sooner.
    """

    id: int
    arrival: float
    length: int
    deadline: float | None = None
    subnet: str | None = None
    min_quality: float | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """What runs together.

    Attributes:
        requests: at least one.
        subnet: name of the size.
        seconds: how long that is predicted to take.
    """

    requests: tuple[Request, ...]
    subnet: str
    seconds: float

    @property
    def length(self) -> int:
        """Tokens of the longest request, to which the others are padded."""
        return max(request.length for request in self.requests)


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now.

    Attributes:
        batch: what to run; None if nothing waits.
        expired: requests whose own deadline has passed: they get no answer.
    """

    batch: Batch | None
    expired: tuple[Request, ...] = ()


class Scheduler:
    """Decides, whenever the model is idle, what it runs next.

    It has no clock, does no I/O, and draws nothing: the same calls give the same decisions.

    Args:
        costs: predictions for all sizes.
        config: policy and limits.

    Raises:
        UserError: a size in the config that the profile lacks, or a latency objective that no size meets on an idle machine.
    """

    def __init__(self, costs: CostModel, config: SchedulerConfig):
        self.costs, self.config = costs, config
        self.objective = config.latency_objective / 1000
        self._names = costs.profile.names
        self._quality = {size.name: size.quality for size in costs.profile.sizes}
        best = min(costs.seconds(name, 1, costs.profile.lengths[0]) for name in self._names)
        if self.objective < best:
            raise UserError(
                f"latency_objective: {config.latency_objective:g} ms is out of reach: on an idle machine the fastest size takes "
                f"{best * 1000:.3g} ms for one request of {costs.profile.lengths[0]} tokens"
            )
        self._longest = self.objective - best  # of a batch
        fixed = config.policy.removeprefix(STATIC) if config.policy.startswith(STATIC) else None
        self._fixed = None if fixed is None else self._index("policy", fixed)
        self._table: dict[int, int] = {}
        if config.policy == "table":
            table = config.table or self._default_table()
            self._table = {count: self._index("table", name) for count, name in table.items()}
        smallest = len(self._names) - 1
        self._fastest = smallest if self._fixed is None else self._fixed  # what the policy comes down to
        self._level = smallest  # of the batch before
        self._rate, self._seen, self._turn = 0.0, None, 0

    def _index(self, option: str, name: str) -> int:
        if name not in self._names:
            raise UserError(f"{option}: {name!r} is no size of the profile; its sizes: {', '.join(self._names)}")
        return self._names.index(name)

    def _default_table(self) -> dict[int, str]:
        """For each number of requests the largest size that answers them as one batch within half the objective."""
        lengths = self.costs.profile.lengths
        length, table = lengths[len(lengths) // 2], {}
        for count in range(1, self.config.max_batch_size + 1):
            fitting = [name for name in self._names if self.costs.seconds(name, count, length) <= self.objective / 2]
            name = (fitting or self._names[-1:])[0]
            if name not in table.values():
                table[count] = name
        return table

    def check(self, request: Request) -> None:
        """Refuse a request that no size may answer.

        Raises:
            UserError: an unknown size, or a quality that no size has, alone or the fixed one.
        """
        if request.subnet is not None and request.subnet not in self._names:
            raise UserError(f"{request.subnet!r} is no size here; sizes: {', '.join(self._names)}")
        if self._allowed(request):
            return
        known = ", ".join(f"{name} {quality}" for name, quality in self._quality.items() if quality is not None)
        which = "no size has" if request.subnet is None else f"{request.subnet} has not"
        raise UserError(f"{which} a known quality of at least {request.min_quality}; known: {known or 'none'}")

    def _allowed(self, request: Request) -> list[int]:
        """Sizes that may answer a request, the largest first."""
        least = request.min_quality
        return [
            index
            for index, name in enumerate(self._names)
            if request.subnet in (None, name)
            and (least is None or ((quality := self._quality[name]) is not None and quality >= least))
        ]

    def _size_for(self, request: Request, level: int) -> str:
        """The size of a request when `level` is chosen: that, else the next larger one that it allows, else the next smaller."""
        if request.subnet is None and request.min_quality is None:
            return self._names[level]
        allowed = self._allowed(request)
        if not allowed:
            self.check(request)
        larger = [index for index in allowed if index <= level]
        return self._names[larger[-1] if larger else allowed[0]]

    def due(self, request: Request) -> float:
        """When a request should be answered: at its deadline, else one latency objective after its arrival."""
        return request.arrival + self.objective if request.deadline is None else request.deadline

    def next(self, now: float, queue: Sequence[Request]) -> Decision:
        """What runs next.

        Args:
            now: in seconds of the clock of the requests; never earlier than in the call before.
            queue: what waits, in any order.

        Raises:
            UserError: a request that `check` refuses.
        """
        expired = tuple(request for request in queue if request.deadline is not None and request.deadline <= now)
        gone = {request.id for request in expired}
        waiting = [request for request in queue if request.id not in gone]
        self._follow(now, queue)
        if not waiting:
            return Decision(None, expired)
        in_time, late = self._ordered(now, waiting)
        self._turn += 1
        first = []
        if late and self._turn % LATE_TURNS == 0:
            first = late if now - self.due(late[0]) > PATIENCE * self.objective else late[:1]
        ordered = [*first, *in_time, *late[len(first) :]]
        return Decision(self._choose(now, ordered, bool(late)), expired)

    def observe(self, batch: Batch, seconds: float) -> None:
        """Learn how long a batch has taken."""
        self.costs.observe(batch.subnet, len(batch.requests), batch.length, seconds)

    def _follow(self, now: float, queue: Sequence[Request]) -> None:
        """Estimate the rate of arrivals, an exponential mean over some latency objectives."""
        if self._seen is None:
            self._seen = now
        elapsed = now - self._seen
        if elapsed > 0:
            weight = -math.expm1(-elapsed / (RATE_MEMORY * self.objective))
            arrived = sum(request.arrival > self._seen for request in queue)
            self._rate += weight * (arrived / elapsed - self._rate)
            self._seen = now

    def _ordered(self, now: float, waiting: list[Request]) -> tuple[list[Request], list[Request]]:
        """What can still be answered in time, and what cannot; each by urgency: earliest due first, and what has priority as if
        it were due earlier.

        What is late yields: else, in an overload, each request would be answered just too late.
        """

        def urgency(request: Request) -> tuple[float, int]:
            priority = min(max(request.priority, -HIGHEST_PRIORITY), HIGHEST_PRIORITY)
            return self.due(request) - priority * self.objective, request.id

        in_time, late = [], []
        for request in sorted(waiting, key=urgency):
            soonest = now + self.costs.seconds(self._size_for(request, self._fastest), 1, request.length)
            (late if soonest > self.due(request) else in_time).append(request)
        return in_time, late

    def _choose(self, now: float, ordered: list[Request], has_late: bool) -> Batch:
        """The batch of the policy."""
        if self._fixed is not None:
            return self._batch(now, ordered, self._fixed)
        if self._table:
            counts = list(self._table)
            return self._batch(now, ordered, self._table[counts[max(0, bisect_right(counts, len(ordered)) - 1)]])
        for level in range(self._fastest) if not has_late else ():
            if (batch := self._plan(now, ordered[:LOOKAHEAD], level)) is not None:
                self._level = level
                return batch
        self._level = self._fastest
        return self._batch(now, ordered, self._fastest)

    def _plan(self, now: float, ordered: list[Request], level: int) -> Batch | None:
        """The first batch, if a level answers in time all that waits, and all that will come while the batch runs; else None."""
        share = self.config.headroom + (self.config.hysteresis if level < self._level else 0.0)
        least, latest = now, -math.inf
        for request in ordered:  # most levels that are too slow are found out by this alone
            least += self.costs.least_seconds(self._size_for(request, level), request.length)
            latest = max(latest, self._limit(request, share))
            if least > latest:
                return None
        first, clock, rest = None, now, ordered
        while rest:
            batch = self._batch(clock, rest, level, share)
            clock += batch.seconds
            if any(clock > self._limit(request, share) for request in batch.requests):
                return None
            first = first or batch
            taken = {request.id for request in batch.requests}
            rest = [request for request in rest if request.id not in taken]
        if coming := round(self._rate * first.seconds):
            joining = {request.id for request in first.requests}
            sooner = sum(self.due(request) <= now + self.objective for request in ordered if request.id not in joining)
            latency = first.seconds + self.costs.seconds(self._names[level], coming + sooner, first.length)
            if latency > (1 - share) * self.objective:
                return None
        return first

    def _limit(self, request: Request, share: float) -> float:
        """When a request has to be answered for a share of its time to be left."""
        due = self.due(request)
        return due - share * (due - request.arrival)

    def _batch(self, now: float, ordered: list[Request], level: int, share: float = 0.0) -> Batch:
        """The first request, and those after it that are better off in its batch.

        A request may join if it runs at the same size, within the limits, and if that takes less time than a batch of its own:
        padding may cost more. A batch is never made so long that what comes meanwhile would be late. Of those that may join, as
        many do as give the most answers in time per second, or, where all are late, the most answers; the search ends where
        twice as many give no more.
        """
        subnet = self._size_for(ordered[0], level)
        taken: list[Request] = []
        limits: list[float] = []
        longest, seconds = 0, 0.0
        best, best_count, best_seconds = (0.0, 0.0), 1, 0.0
        for request in ordered:
            count, length = len(taken) + 1, max(longest, request.length)
            if count > min(self.config.max_batch_size, 2 * best_count):
                break
            if taken and (count * length > self.config.max_batch_tokens or self._size_for(request, level) != subnet):
                continue
            joined = self.costs.seconds(subnet, count, length)
            if taken and (joined > self._longest or joined - seconds > self.costs.seconds(subnet, 1, request.length)):
                continue
            taken.append(request)
            insort(limits, self._limit(request, share))
            longest, seconds = length, joined
            answers_in_time = count - bisect_left(limits, now + seconds)
            if (value := (answers_in_time / seconds, count / seconds)) > best:
                best, best_count, best_seconds = value, count, seconds
        return Batch(tuple(taken[:best_count]), subnet, best_seconds)

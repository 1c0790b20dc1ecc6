"""Policies on the same requests at several loads, with the size that would have been best alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from ..core.errors import MissingPackageError, UserError
from .config import STATIC
from .costs import CostModel, ServingProfile
from .scheduler import Scheduler
from .simulate import Outcome, service_times, simulate
from .simulate_config import CLOSED, DRAWN_SECONDS, SimulateConfig
from .traces import DRAWN, ClosedLoop, Lengths, OpenLoop, Sample, recorded

CAPACITY_REQUESTS = 3000  # that are simulated to find out what the largest size sustains
EQUAL_ATTAINMENT = 0.01  # two sizes whose attainment differs by less are told apart by quality


@dataclass(frozen=True)
class Run:
    """One policy at one load.

    Attributes:
        load: multiple of the capacity; for users who wait, their number.
        policy: its name.
        outcome: what became of the requests.
        is_best_static: whether no other single size would have been better at this load.
    """

    load: float
    policy: str
    outcome: Outcome
    is_best_static: bool = False


@dataclass(frozen=True)
class Comparison:
    """All policies at all loads.

    Attributes:
        profile: whose costs were used.
        config: what was simulated.
        capacity: what the largest size answers of these requests while there are always more (requests/s).
        mean_length: of the requests (tokens).
        runs: load by load, the named policies first.
    """

    profile: ServingProfile
    config: SimulateConfig
    capacity: float
    mean_length: float
    runs: list[Run]

    def record(self) -> dict[str, object]:
        """All results as values for JSON."""
        profile = {name: getattr(self.profile, name) for name in ("model", "backend", "device", "threads")}
        config = {one.name: getattr(self.config, one.name) for one in fields(SimulateConfig)}
        return {
            "profile": {**profile, "sizes": {size.name: size.quality for size in self.profile.sizes}},
            "config": config,
            "capacity": self.capacity,
            "mean_length": self.mean_length,
            "runs": [
                {"load": run.load, "policy": run.policy, "best_static": run.is_best_static, **run.outcome.summary()}
                for run in self.runs
            ],
        }


def compare(
    profile: ServingProfile, config: SimulateConfig, progress: Callable[[int, int], None] = lambda *_: None
) -> Comparison:
    """Simulate every policy and every size alone at every load, and send the same requests to a server if there is one.

    Args:
        profile: measured costs.
        config: requests, policies and loads.
        progress: is told how many of how many simulations are done.

    Raises:
        UserError: a latency objective that no size meets, an unknown size, a trace that cannot be read, or has too few or too
            many requests; a server that does not answer, or has other sizes.
        OSError: there is no such trace.
    """
    lengths = Lengths(config.mean_length, config.max_length or profile.lengths[-1])
    schedulers = {policy: config.scheduler_config(policy) for policy in config.policy}
    schedulers |= {name: config.scheduler_config(name) for name in (f"{STATIC}{size}" for size in profile.names)}
    for scheduler_config in schedulers.values():
        Scheduler(CostModel(profile), scheduler_config)  # before anything takes long
    server = None if config.server is None else _connect(config, profile)
    base = None
    if not (config.is_closed or config.trace in DRAWN):
        if not Path(config.trace).is_file():
            raise UserError(f"trace: {config.trace!r} is neither {', '.join((*DRAWN, CLOSED))} nor a file")
        base = recorded(config.trace, lengths, config.seed, config.start, config.duration)
    sample = lengths if base is None else Sample(base.lengths)
    largest_capacity = capacity(profile, config, sample)
    traces = list(_traces(config, lengths, base, largest_capacity))
    runs, used = [], []
    for load, make in traces:
        found, served, factors = [], [], None
        if server is not None:  # first: its own work and that of whoever sends slow the model down, by what it has observed
            outcome = server.replay(make(), config.latency_objective / 1000, deadlines=config.deadlines)
            served, factors = [Run(load, f"the server, {server.policy}", outcome)], server.corrections()
        for policy, scheduler_config in schedulers.items():
            scheduler = Scheduler(CostModel(profile), scheduler_config)
            service = service_times(profile, config.noise, config.seed, factors)
            outcome = simulate(make(), scheduler, service, max_queue=config.max_queue, deadlines=config.deadlines)
            found.append(Run(load, policy, outcome))
            progress(len(runs) + len(found), len(traces) * len(schedulers))
        best = best_static([run for run in found if run.policy.startswith(STATIC)])
        runs += [replace(run, is_best_static=run is best) for run in (*found, *served)]
        used.append(found[0].outcome.lengths.mean())
    return Comparison(profile, config, largest_capacity, float(np.mean(used)), runs)


def _connect(config: SimulateConfig, profile: ServingProfile):
    """The server that is to get the same requests, if it has the sizes of the profile."""
    try:
        from .replay import RunningServer, read_texts
    except ImportError as error:
        raise MissingPackageError(f"server: this needs {error.name}: run pip install 'hf-elastic[serve]'") from error
    server = RunningServer(config.server, read_texts(config.texts))
    if server.names != profile.names:
        raise UserError(f"server: it has the sizes {', '.join(server.names)}, and the profile {', '.join(profile.names)}")
    return server


def best_static(runs: list[Run]) -> Run:
    """In hindsight: that with the highest attainment; of those within a point of it, that with the highest quality.

    Where a quality is unknown, the larger size is taken for the better one.
    """
    highest = max(run.outcome.attainment for run in runs)
    close = [run for run in runs if run.outcome.attainment >= highest - EQUAL_ATTAINMENT]
    names = close[0].outcome.names
    qualities = dict(zip(names, close[0].outcome.qualities))
    if any(math.isnan(quality) for quality in qualities.values()):
        qualities = {name: -index for index, name in enumerate(names)}
    return max(close, key=lambda run: qualities[run.policy.removeprefix(STATIC)])


def capacity(profile: ServingProfile, config: SimulateConfig, lengths: Lengths | Sample) -> float:
    """What the largest size answers while always twice as many requests wait as fit into a batch (requests/s).

    Args:
        profile: measured costs.
        config: limits of a batch, and the seed.
        lengths: of the requests.
    """
    largest, users = profile.names[0], 2 * config.max_batch_size
    costs = CostModel(profile)
    longest = config.max_length or profile.lengths[-1]
    duration = CAPACITY_REQUESTS * costs.least_seconds(largest, min(math.ceil(config.mean_length), longest))
    trace = ClosedLoop(users, 0.0, duration, lengths, config.seed)
    unhurried = replace(config.scheduler_config(f"{STATIC}{largest}"), latency_objective=1e9)
    outcome = simulate(trace, Scheduler(costs, unhurried), service_times(profile), max_queue=users)
    return len(outcome.arrivals) / outcome.duration


def _traces(
    config: SimulateConfig, lengths: Lengths, base: OpenLoop | None, largest_capacity: float
) -> Iterator[tuple[float, Callable[[], OpenLoop | ClosedLoop]]]:
    """Each load with what makes its requests anew."""
    seconds = config.duration or DRAWN_SECONDS
    if config.is_closed:
        for users in config.users:
            yield users, lambda users=users: ClosedLoop(users, config.think / 1000, seconds, lengths, config.seed)
        return
    loads = [config.rate / largest_capacity] if config.rate else config.load or [0.5, 1.0, 2.0, 4.0]
    for load in loads:
        rate = load * largest_capacity
        trace = DRAWN[config.trace](rate, seconds, lengths, config.seed) if base is None else base.at_rate(rate)
        yield load, lambda trace=trace: trace

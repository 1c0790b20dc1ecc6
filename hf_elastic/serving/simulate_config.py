"""What is simulated: options of `compare` and of `hf-elastic simulate`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from ..core.errors import UserError
from ..utils.options import check_integers
from .config import QueueOptions, SchedulerConfig, SchedulerOptions
from .traces import DRAWN

CLOSED = "closed"
DRAWN_SECONDS = 60.0


@dataclass(kw_only=True)
class SimulateConfig(QueueOptions, SchedulerOptions):
    """Which requests come, and what is compared.

    Raises:
        UserError: a value that is not allowed.
    """

    trace: str = field(
        default="poisson",
        metadata={
            "help": "poisson, burst, diurnal; closed (users who wait for their answers); or a file: arrivals per second, or a "
            "table of Azure's or Mooncake's."
        },
    )
    policy: list[str] = field(
        default_factory=lambda: ["slo", "table"],
        metadata={
            "help": "Policies to compare: slo (the largest size that meets the deadlines of what waits), table (a size for each "
            "number of waiting requests), static:NAME. Each size alone is simulated in any case."
        },
    )
    load: list[float] | None = field(
        default=None,
        metadata={
            "help": "Mean rates, as multiples of what the largest size answers when there are always more requests; "
            "default: 0.5 1 2 4. A recorded trace runs in faster or slower time for that."
        },
    )
    rate: float | None = field(default=None, metadata={"help": "Mean rate, instead of loads (requests/s)."})
    users: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8, 16, 32], metadata={"help": "For closed: numbers of users (counts)."}
    )
    think: float = field(default=0.0, metadata={"help": "For closed: mean time between an answer and the next request (ms)."})
    start: float = field(default=0.0, metadata={"help": "Of a recorded trace: where to begin (seconds of the trace)."})
    duration: float | None = field(
        default=None,
        metadata={
            "help": "Length of the simulation, of a recorded trace of the part of it (seconds of the trace); default: 60, and "
            "up to the end of a recorded trace."
        },
    )
    mean_length: float = field(
        default=32.0, metadata={"help": "Mean length of requests (tokens); recorded lengths are scaled to it."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Longest request, longer ones are cut (tokens); default: the longest that was profiled."}
    )
    deadlines: bool = field(
        default=False, metadata={"help": "Drop requests that have waited for longer than the latency objective."}
    )
    noise: float = field(
        default=0.1, metadata={"help": "Spread of the duration of batches (standard deviation of the logarithm); 0 for none."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of arrivals, lengths and noise."})
    server: str | None = field(
        default=None,
        metadata={
            "help": "URL of a running hf-elastic serve, which gets the same requests in real time: its results stand beside "
            "those of the simulation; default: none."
        },
    )
    texts: str | None = field(
        default=None,
        metadata={"help": "Text file of what the server gets; default: docstrings of Python's standard library."},
    )

    def __post_init__(self):
        QueueOptions.__post_init__(self)
        SchedulerOptions.__post_init__(self)
        check_integers(1, **{"each of users": min(self.users, default=1)})
        check_integers(1, or_none=True, max_length=self.max_length)
        check_integers(0, seed=self.seed)
        positive = {"rate": self.rate, "duration": self.duration, "mean_length": self.mean_length}
        for name, value in (*positive.items(), *(("each of load", value) for value in self.load or ())):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} must be a positive number, got {value}")
        for name in ("think", "start", "noise"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UserError(f"{name} must be a number of at least 0, got {getattr(self, name)}")
        if self.rate is not None and self.load is not None:
            raise UserError("rate, load: give one of them")
        if self.is_closed and (self.rate is not None or self.load is not None):
            raise UserError(f"trace: the load of {CLOSED} is its number of users; rate and load are for the others")
        if self.start and (self.is_closed or self.trace in DRAWN):
            raise UserError(f"start is for recorded traces, and trace is {self.trace}")
        if self.server is not None and self.is_closed:
            raise UserError(f"server: it gets requests whether or not others are answered, and trace is {CLOSED}")
        if self.texts is not None and self.server is None:
            raise UserError("texts is for a server, and there is none")
        for name in ("policy", "users", "load"):
            if getattr(self, name) == []:
                raise UserError(f"{name}: name at least one")
        if self.table is not None and "table" not in self.policy:
            raise UserError(f"table is used by policy table, and policy is {', '.join(self.policy)}")
        for policy in self.policy:
            self.scheduler_config(policy)

    @property
    def is_closed(self) -> bool:
        """Whether users wait for their answers."""
        return self.trace == CLOSED

    def scheduler_config(self, policy: str) -> SchedulerConfig:
        """The options of the scheduler with one policy."""
        shared = {one.name: getattr(self, one.name) for one in fields(SchedulerOptions)}
        if policy != "table":
            shared["table"] = None
        return SchedulerConfig(policy=policy, **shared)

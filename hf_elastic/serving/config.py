"""How requests wait and are scheduled: options of `Scheduler`, `hf-elastic simulate` and `hf-elastic serve`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..core.errors import UserError
from ..utils.options import check_integers, read_mapping

STATIC = "static:"


@dataclass(kw_only=True)
class SchedulerOptions:
    """Which requests run together.

    Raises:
        UserError: a value that is not allowed.
    """

    latency_objective: float = field(
        default=100.0, metadata={"help": "Latency within which a request without a deadline of its own is to be answered (ms)."}
    )
    max_batch_tokens: int = field(
        default=4096, metadata={"help": "Most tokens of a batch, padding included; a longer request runs alone (tokens)."}
    )
    max_batch_size: int = field(default=32, metadata={"help": "Most requests of a batch (count)."})
    headroom: float = field(
        default=0.1,
        metadata={
            "help": "Share of a request's time that policy slo leaves unused, for what is predicted wrongly (0 to below 1)."
        },
    )
    hysteresis: float = field(
        default=0.1,
        metadata={"help": "Further share that has to be unused before policy slo goes back to a larger size (0 to below 1)."},
    )
    # A mapping; the command reads it from JSON.
    table: str | None = field(
        default=None,
        metadata={
            "help": "For policy table: number of waiting requests -> size from there on (mapping, JSON or JSON file); "
            "default: for each number the largest size that answers so many within half the latency objective."
        },
    )

    def __post_init__(self):
        check_integers(1, max_batch_tokens=self.max_batch_tokens, max_batch_size=self.max_batch_size)
        if not (math.isfinite(self.latency_objective) and self.latency_objective > 0):
            raise UserError(f"latency_objective must be a positive number of milliseconds, got {self.latency_objective}")
        if not (self.headroom >= 0 and self.hysteresis >= 0 and self.headroom + self.hysteresis < 1):
            raise UserError(
                f"headroom and hysteresis must be at least 0 and together below 1, got {self.headroom} and {self.hysteresis}"
            )
        self.table = _read_table(self.table)


@dataclass(kw_only=True)
class QueueOptions:
    """What else a server and its simulation are told alike.

    Raises:
        UserError: a value that is not allowed.
    """

    max_queue: int = field(
        default=512, metadata={"help": "Most texts that wait; what is more is refused, by a server with status 429 (count)."}
    )
    quality: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Quality of sizes, larger is better: NAME=VALUE, results.json of `retrieve evaluate` or frontier.json of a "
            "search; requests may ask for a least quality."
        },
    )

    def __post_init__(self):
        check_integers(1, max_queue=self.max_queue)


@dataclass(kw_only=True)
class SchedulerConfig(SchedulerOptions):
    """Which requests run together, and at which size.

    Raises:
        UserError: a value that is not allowed.
    """

    policy: str = field(
        default="slo",
        metadata={
            "help": "slo: the largest size that meets the deadlines of what waits; table: a size for each number of waiting "
            "requests; static:NAME: always this size."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.policy not in ("slo", "table") and not self.policy.startswith(STATIC):
            raise UserError(f"policy: {self.policy!r} is unknown; known: slo, table, {STATIC}NAME of a size")
        if self.table is not None and self.policy != "table":
            raise UserError(f"table is used by policy table, and policy is {self.policy}")


def _read_table(given: str | Mapping | None) -> dict[int, str] | None:
    """Numbers of waiting requests, ascending, with their sizes."""
    table = read_mapping("table", given)
    if table is None:
        return None
    try:
        found = {int(key): str(size) for key, size in table.items()}
    except ValueError as error:
        raise UserError(f"table must map numbers of waiting requests to sizes, got {table}") from error
    if not found or min(found) < 0:
        raise UserError(f"table must map numbers of waiting requests to sizes, got {table}")
    return dict(sorted(found.items()))

"""Wall-clock latency of several candidates, measured side by side on the machine that will run them."""

import itertools
import math
import os
import platform
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import psutil
import torch
import transformers

from ..core.errors import UserError
from ..utils.options import check_integers

SINGLE_CALL_SECONDS = 1e-3  # a call at least this long is timed on its own
SHORTEST_SAMPLE_SECONDS = 2e-3  # shorter calls are repeated until one sample lasts this long
FEWEST_SAMPLES = 6  # 1 - 2 / 2**6 is the first coverage of smallest to largest sample that is above 95%
WIDE = 0.1  # half an interval over the median from which on a measurement is no basis for a choice
BUSY = 0.2  # share of the machine's cores that other work takes, from which on it may multiply a latency
SHORTEST_WATCH_SECONDS = 0.5  # the system counts busy time in ticks of 10 ms
CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Latency:
    """Median time of one call with a 95% confidence interval, which takes 6 samples; fewer have a range only.

    Attributes:
        median_ms: median of the samples, in milliseconds.
        low_ms: lower end of the interval of the median, or the smallest of fewer than 6 samples, in milliseconds.
        high_ms: upper end of the interval of the median, or the largest of fewer than 6 samples, in milliseconds.
        samples_ms: every sample in the order it was taken, in milliseconds per call.
        others: share of the machine's cores that other processes, or other virtual machines, kept busy meanwhile (0 to 1); None
            where that is not known. Two threads on two cores of which one is taken wait for each other: every call is
            longer then, perhaps a hundred times, and the interval stays narrow.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    samples_ms: tuple[float, ...]
    others: float | None = None

    @classmethod
    def from_samples(cls, samples_ms: Sequence[float], others: float | None = None) -> "Latency":
        """Summarise samples (milliseconds per call); raises ValueError if there are none."""
        if not samples_ms:
            raise UserError("samples_ms is empty; a median needs at least one sample")
        low, high = median_interval(samples_ms)
        return cls(statistics.median(samples_ms), low, high, tuple(samples_ms), others)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "Latency":
        """Inverse of `to_dict`; raises ValueError if a key is missing or unknown."""
        if set(data) != set(cls.__dataclass_fields__):
            raise UserError(f"a latency has the keys {sorted(cls.__dataclass_fields__)}, got {sorted(data)}")
        return cls(**{**data, "samples_ms": tuple(data["samples_ms"])})

    @property
    def has_interval(self) -> bool:
        """Whether the samples are enough for a 95% interval."""
        return len(self.samples_ms) >= FEWEST_SAMPLES

    @property
    def relative_half_width(self) -> float:
        """Half the width of the interval divided by the median."""
        return (self.high_ms - self.low_ms) / 2 / self.median_ms

    def to_dict(self) -> dict[str, object]:
        """The fields as values that JSON can hold."""
        return {**asdict(self), "samples_ms": list(self.samples_ms)}

    def __str__(self) -> str:
        digits = 2 if self.median_ms >= 1 else 4
        low, median, high = (f"{value:.{digits}f}" for value in (self.low_ms, self.median_ms, self.high_ms))
        if self.has_interval:
            return f"{median} ms [{low}, {high}]"
        count = len(self.samples_ms)
        return f"{median} ms (1 sample)" if count == 1 else f"{median} ms ({count} samples, {low} to {high})"


def measurement_warnings(latencies: Sequence[Latency], *, alike: bool = True) -> list[str]:
    """Which of the measurements of one run are no basis for a choice, in words: too few samples, or a busy machine.

    Args:
        latencies: of one run.
        alike: whether all samples are of the same work; where they are not, wide intervals say nothing about the machine.
    """
    found = []
    few = [latency for latency in latencies if not latency.has_interval]
    wide = [latency for latency in latencies if latency.relative_half_width > WIDE]
    if few:
        found.append(
            f"{len(few)} of {len(latencies)} latencies are of fewer than {FEWEST_SAMPLES} samples, too few for a 95% interval of "
            "the median"
        )
    if wide and alike:
        found.append(
            f"{len(wide)} of {len(latencies)} intervals are wider than 10% of their median: this machine is busy with something "
            "else; measure again"
        )
    taken = max((latency.others or 0.0 for latency in latencies), default=0.0)
    if taken > BUSY:
        found.append(
            f"other work kept {taken:.0%} of this machine's cores busy meanwhile: latencies may be several times too long; "
            "measure again when it is done"
        )
    return found


class Watch:
    """How busy others keep this machine: between two calls, the cores that neither idled nor worked for this process."""

    def __init__(self):
        self._start, self._busy = perf_counter(), self._others()

    @staticmethod
    def _others() -> float:
        """Seconds of all cores since the machine started, without those of this process."""
        machine, own = psutil.cpu_times(), os.times()
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        # A guest's time is in `user` already; `steal` is what other virtual machines took.
        guests = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)
        return sum(machine) - idle - guests - own.user - own.system

    def share(self) -> float | None:
        """Of the machine's cores since the start; None if that was too short ago to say."""
        elapsed = perf_counter() - self._start
        if elapsed < SHORTEST_WATCH_SECONDS:
            return None
        return min(1.0, max(0.0, (self._others() - self._busy) / elapsed / (os.cpu_count() or 1)))


def median_interval(samples: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Distribution-free confidence interval of the median from order statistics.

    The k-th smallest and k-th largest of n independent samples enclose the median with probability
    1 - 2 P(Binomial(n, 1/2) < k) (David & Nagaraja, Order Statistics, 3rd ed., section 7.1). The largest k that reaches
    `confidence` is used. Fewer samples than that takes (6 for 0.95) have no such interval; of them it is the smallest and
    largest.

    Args:
        samples: measurements in any unit, at least one.
        confidence: wanted coverage, between 0 and 1.

    Returns:
        The ends of the interval, in the unit of the samples.
    """
    ordered = sorted(samples)
    count = len(ordered)
    outside, rank = 0, 0
    while rank < count // 2:
        outside += math.comb(count, rank)
        if 2 * outside / 2**count > 1 - confidence:
            break
        rank += 1
    rank = max(rank, 1)
    return ordered[rank - 1], ordered[count - rank]


def measure_latency(
    callables: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 20,
    warmup: int = 3,
    min_rounds: int = 6,
    relative_interval: float = 0.03,
    budget_seconds: float | None = None,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Latency]:
    """Measure how long each callable takes, interleaved so that drift of the machine hits all candidates alike.

    Every round takes one sample of each candidate in a freshly shuffled order. Calls shorter than about 1 ms are repeated
    inside one sample until it lasts at least 2 ms. A callable that starts asynchronous work (CUDA) must wait for it itself.
    Stopping early looks at the interval after each round, so its 95% is nominal for measurements that end that way.

    Args:
        callables: what to measure, by name.
        repeats: most rounds, hence most samples per candidate.
        warmup: calls of each candidate before the first round, which do not count; there is one at least.
        min_rounds: fewest rounds before stopping early; `repeats` if that is smaller. The budget may still cut it short.
        relative_interval: stop once half the 95% interval divided by the median is below this for every candidate; 0 never does.
        budget_seconds: start no round that is expected to end later than this many seconds after the call, warm-up
            included. The first round always runs. None: no limit.
        seed: seed of the order within the rounds.
        progress: called after each round with the rounds done and `repeats`.

    Returns:
        One `Latency` per name, in the order of `callables`.

    Raises:
        ValueError: no callables, or an argument outside its range.
    """
    if not callables:
        raise UserError("callables is empty; give at least one candidate to measure")
    for name, call in callables.items():
        if not callable(call):
            raise UserError(f"callables[{name!r}] cannot be called: it is of the type {type(call).__name__}")
    check_sampling(repeats, warmup, min_rounds, relative_interval, budget_seconds)
    start = perf_counter()
    for call in callables.values():
        for _ in range(warmup - 1):
            call()
    # The last call of the warm-up finds how many calls one sample needs.
    loops = {name: _take_sample(call, 1)[1] for name, call in callables.items()}
    samples: dict[str, list[float]] = {name: [] for name in callables}
    watch = Watch()
    generator = random.Random(seed)
    order = list(callables)
    for done in range(1, repeats + 1):
        round_start = perf_counter()
        generator.shuffle(order)
        for name in order:
            seconds, loops[name] = _take_sample(callables[name], loops[name])
            samples[name].append(1e3 * seconds)
        now = perf_counter()
        if progress is not None:
            progress(done, repeats)
        if budget_seconds is not None and now + (now - round_start) > start + budget_seconds:
            break
        if done >= min_rounds and _precise_enough(samples, relative_interval):
            break
    others = watch.share()
    return {name: Latency.from_samples(taken, others) for name, taken in samples.items()}


def machine_facts() -> dict[str, object]:
    """What a latency depends on besides the model.

    Returns:
        `platform`, `processor` (model name), `cores` (logical cores this process may use), `torch_threads`, and the versions
        `python`, `torch` and `transformers`.
    """
    return {
        "platform": platform.platform(),
        "processor": _processor_name(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def _take_sample(call: Callable[[], object], loops: int) -> tuple[float, int]:
    """Seconds per call over `loops` calls, retaken with more loops while the sample is too short to trust."""
    while True:
        start = perf_counter()
        for _ in itertools.repeat(None, loops):
            call()
        elapsed = perf_counter() - start
        if elapsed >= (SINGLE_CALL_SECONDS if loops == 1 else SHORTEST_SAMPLE_SECONDS):
            return elapsed / loops, loops
        # A quarter more than needed, so that a slightly faster sample later is still long enough. At most 100 times as many
        # calls at once, because a clock that ticks coarsely can read next to nothing.
        wanted = 1.25 * SHORTEST_SAMPLE_SECONDS * loops / max(elapsed, 1e-9)
        loops = math.ceil(min(max(wanted, 2 * loops), 100 * loops))


def _precise_enough(samples: Mapping[str, list[float]], relative_interval: float) -> bool:
    return all(Latency.from_samples(taken).relative_half_width < relative_interval for taken in samples.values())


def _processor_name() -> str:
    if CPU_INFO.is_file():
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    # ARM kernels list no model name, other systems have no such file, and platform.processor() may be empty.
    return platform.processor() or platform.machine()


def check_sampling(repeats, warmup, min_rounds, relative_interval, budget_seconds) -> None:
    """Raise UserError for an option of `measure_latency` that is out of its range."""
    check_integers(1, repeats=repeats, min_rounds=min_rounds)
    check_integers(0, warmup=warmup)
    if not relative_interval >= 0:
        raise UserError(f"relative_interval must be 0 or more, got {relative_interval!r}")
    if budget_seconds is not None and not budget_seconds > 0:
        raise UserError(f"budget_seconds must be above 0 or None, got {budget_seconds!r}")

import os
import random
import subprocess
import sys
import time

import pytest

from hf_elastic.measure import latency as measure
from hf_elastic.measure.latency import Latency, machine_facts, measure_latency, measurement_warnings, median_interval

pytestmark = pytest.mark.one_lane


class Clock:
    """Stands in for perf_counter: time passes only when a candidate says so."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.calls = []
        monkeypatch.setattr(measure, "perf_counter", lambda: self.now)

    def candidate(self, name, *milliseconds):
        """A callable that takes the given times in turn, the last one ever after."""
        pending = list(milliseconds)

        def call():
            self.calls.append(name)
            self.now += 1e-3 * (pending.pop(0) if len(pending) > 1 else pending[0])

        return call


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_slower_callable_has_the_larger_median():
    latencies = measure_latency({"slow": lambda: time.sleep(0.004), "fast": lambda: time.sleep(0.001)}, repeats=7, warmup=1)
    assert list(latencies) == ["slow", "fast"]
    assert latencies["slow"].median_ms > latencies["fast"].median_ms
    for latency in latencies.values():
        assert latency.low_ms <= latency.median_ms <= latency.high_ms
        assert min(latency.samples_ms) <= latency.low_ms and latency.high_ms <= max(latency.samples_ms)


def test_rounds_are_interleaved_and_shuffled(clock):
    names = ["a", "b", "c"]
    measure_latency({name: clock.candidate(name, 5) for name in names}, repeats=12, warmup=2, relative_interval=0, seed=3)
    assert clock.calls[:6] == [*"abc", *"abc"]  # warm-up; its last call of each finds the number of loops
    rounds = [clock.calls[start : start + 3] for start in range(6, len(clock.calls), 3)]
    assert len(rounds) == 12
    assert all(sorted(order) == names for order in rounds)
    assert len({tuple(order) for order in rounds}) > 1


def test_the_seed_fixes_the_order(clock):
    def order(seed):
        clock.calls.clear()
        measure_latency({name: clock.candidate(name, 5) for name in "abcde"}, repeats=6, seed=seed)
        return list(clock.calls)

    assert order(1) == order(1) != order(2)


def test_warmup_calls_are_not_sampled(clock):
    latency = measure_latency({"a": clock.candidate("a", 900, 900, 900, 5)}, repeats=4, warmup=3)["a"]
    assert latency.samples_ms == pytest.approx([5] * 4)


def test_stops_early_once_every_candidate_is_precise(clock):
    noisy = clock.candidate("noisy", *random.Random(0).choices([3, 9], k=100))
    both = measure_latency({"steady": clock.candidate("steady", 5), "noisy": noisy}, repeats=30, min_rounds=6)
    assert [len(latency.samples_ms) for latency in both.values()] == [30, 30]
    steady = measure_latency({"steady": clock.candidate("steady", 5)}, repeats=30, min_rounds=8)
    assert len(steady["steady"].samples_ms) == 8


def test_short_calls_are_looped_until_a_sample_is_long_enough(clock):
    latency = measure_latency({"short": clock.candidate("short", 0.01)}, repeats=3, warmup=0)["short"]
    assert latency.samples_ms == pytest.approx([0.01] * 3)
    calls_per_sample = (len(clock.calls) - 1) / 4  # one lone call, then the calibration sample and three rounds
    assert calls_per_sample * 0.01 >= 2


def test_a_call_that_speeds_up_is_retaken_with_more_loops(clock):
    # Long enough alone at first, then too short: the too short sample must not be kept.
    latency = measure_latency({"a": clock.candidate("a", 1.5, 0.02)}, repeats=2, warmup=0)["a"]
    assert latency.samples_ms == pytest.approx([0.02] * 2)
    assert len(clock.calls) * 0.02 >= 4


def test_a_clock_that_does_not_move_for_one_call_is_no_error():
    latency = measure_latency({"nothing": lambda: None}, repeats=3, warmup=0)["nothing"]
    assert 0 < latency.median_ms < 1


def test_budget_keeps_whole_rounds_and_at_least_one(clock):
    candidates = {name: clock.candidate(name, 100) for name in "ab"}
    # 0.2 s calibration and 0.2 s per round: the third round would end at 0.8 s.
    assert [len(v.samples_ms) for v in measure_latency(candidates, warmup=0, budget_seconds=0.7).values()] == [2, 2]
    assert [len(v.samples_ms) for v in measure_latency(candidates, warmup=0, budget_seconds=0.01).values()] == [1, 1]


def test_progress_hears_of_each_round(clock):
    heard = []
    measure_latency({"a": clock.candidate("a", 5)}, repeats=3, progress=lambda done, most: heard.append((done, most)))
    assert heard == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("count", "low", "high"),
    # Tabulated ranks of the 95% interval; below 6 samples the extremes.
    [(1, 1, 1), (5, 1, 5), (6, 1, 6), (8, 1, 8), (9, 2, 8), (20, 6, 15), (50, 18, 33), (100, 40, 61)],
)
def test_median_interval_uses_the_tabulated_ranks(count, low, high):
    samples = list(range(1, count + 1))
    random.Random(0).shuffle(samples)
    assert median_interval(samples) == (low, high)


def test_median_interval_covers_the_true_median_of_a_skewed_distribution():
    generator = random.Random(0)
    hits = 0
    for _ in range(2000):
        low, high = median_interval([generator.lognormvariate(0, 1) for _ in range(15)])
        hits += low <= 1 <= high
    assert 0.95 <= hits / 2000 < 0.98  # exact coverage at 15 samples: 0.965


def test_latency_round_trip_and_text():
    latency = Latency.from_samples([7.2, 7.45, 7.31])
    assert str(latency) == "7.31 ms (3 samples, 7.20 to 7.45)", "fewer than 6 samples have no 95% interval"
    assert str(Latency.from_samples([0.01234])) == "0.0123 ms (1 sample)"
    assert str(Latency.from_samples([7.2, 7.45, 7.3, 7.3, 7.3, 7.3])) == "7.30 ms [7.20, 7.45]"
    assert Latency.from_dict(latency.to_dict()) == latency
    assert latency.relative_half_width == pytest.approx(0.125 / 7.31)
    with pytest.raises(ValueError, match="high_ms"):
        Latency.from_dict({"median_ms": 1.0})
    with pytest.raises(ValueError, match="empty"):
        Latency.from_samples([])


def test_warnings_say_what_is_uncertain():
    sure, few, wide = (Latency.from_samples(samples) for samples in ([5.0] * 6, [5.0] * 5, [5.0, 5.0, 5.0, 5.0, 5.0, 7.0]))
    assert measurement_warnings([sure]) == []
    assert measurement_warnings([sure, few])[0].startswith(
        "1 of 2 latencies are of fewer than 6 samples, too few for a 95% interval"
    )
    assert measurement_warnings([sure, wide, wide])[0].startswith(
        "2 of 3 intervals are wider than 10% of their median: this machine is busy"
    )
    assert measurement_warnings([sure, wide, few], alike=False) == measurement_warnings([sure, sure, few])
    quiet, beset = (Latency.from_samples([5.0] * 6, others) for others in (0.05, 0.5))
    assert measurement_warnings([quiet]) == []
    assert measurement_warnings([quiet, beset])[0].startswith("other work kept 50% of this machine's cores busy meanwhile")


def test_others_are_noticed():
    """Processes that spin on every core, while this one sleeps."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    try:
        latency = measure_latency({"nap": lambda: time.sleep(0.05)}, repeats=20, relative_interval=0)["nap"]
    finally:
        for process in spinning:
            process.kill()
            process.wait()
    assert 0.5 < latency.others <= 1
    assert Latency.from_dict(latency.to_dict()) == latency
    assert any("other work" in warning for warning in measurement_warnings([latency]))
    assert measure_latency({"short": lambda: time.sleep(0.01)}, repeats=1, warmup=0)["short"].others is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"callables": {}}, "callables is empty"),
        ({"callables": {"a": 3}}, "'a'.*int"),
        ({"repeats": 0}, "repeats.*at least 1.*0"),
        ({"warmup": -1}, "warmup.*at least 0.*-1"),
        ({"min_rounds": 2.5}, "min_rounds.*2.5"),
        ({"relative_interval": -0.1}, "relative_interval.*-0.1"),
        ({"relative_interval": float("nan")}, "relative_interval.*nan"),
        ({"budget_seconds": 0}, "budget_seconds.*0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        measure_latency(**{"callables": {"a": lambda: None}, **options})


def test_machine_facts_are_complete():
    facts = machine_facts()
    assert set(facts) == {"platform", "processor", "cores", "torch_threads", "python", "torch", "transformers"}
    assert all(facts.values())
    assert all(type(value) in (str, int) for value in facts.values())


def test_processor_name_is_read_where_the_file_has_one(monkeypatch, tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Fast CPU @ 3: GHz\n")
    monkeypatch.setattr(measure, "CPU_INFO", info)
    assert machine_facts()["processor"] == "Fast CPU @ 3: GHz"
    info.write_text("processor\t: 0\nCPU part\t: 0xd0c\n")
    monkeypatch.setattr(measure.platform, "processor", lambda: "")
    monkeypatch.setattr(measure.platform, "machine", lambda: "aarch64")
    assert machine_facts()["processor"] == "aarch64"

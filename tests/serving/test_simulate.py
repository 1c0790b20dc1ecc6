"""The simulation: worked out by hand, against queueing theory, as a command."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from served_profiles import SIZES, costs, profile

from hf_elastic.cli.main import main
from hf_elastic.core.errors import UserError
from hf_elastic.serving.compare import best_static, capacity, compare
from hf_elastic.serving.config import SchedulerConfig
from hf_elastic.serving.costs import ServingProfile
from hf_elastic.serving.scheduler import Scheduler
from hf_elastic.serving.simulate import EXPIRED, REJECTED, service_times, simulate
from hf_elastic.serving.simulate_config import SimulateConfig
from hf_elastic.serving.simulate_report import draw
from hf_elastic.serving.traces import ClosedLoop, Lengths, OpenLoop, Sample, poisson

pytestmark = pytest.mark.one_lane
TEN = Sample(np.array([10]))


def at(*times: float) -> OpenLoop:
    """Requests of ten tokens."""
    return OpenLoop(np.array(times), np.full(len(times), 10), 1.0)


def outcome(trace, policy="slo", *, noise=0.0, max_queue=512, deadlines=False, **options):
    scheduler = Scheduler(costs(), SchedulerConfig(policy=policy, **options))
    return simulate(trace, scheduler, service_times(profile(), noise), max_queue=max_queue, deadlines=deadlines)


def test_by_hand():
    """Full size: 11 ms for the first; then the two that came meanwhile, together in 21 ms."""
    found = outcome(at(0.1, 0.105, 0.11, 0.5), "static:full")
    assert found.latencies.tolist() == pytest.approx([0.011, 0.027, 0.022, 0.011])
    assert (found.batches, found.switches, found.busy) == (3, 0, pytest.approx(0.043))
    summary = found.summary()
    assert summary["p50_ms"] == pytest.approx(16.5) and summary["quality"] == 0.9 and summary["attainment"] == 1
    assert summary["shares"] == {"full": 1, "half": 0, "tiny": 0} and summary["goodput"] == 4 and summary["batch_size"] == 4 / 3


def test_expired_rejected_and_late():
    together = at(*[0.0] * 6)
    found = outcome(together, "static:full", max_batch_size=1, latency_objective=30.0)
    assert found.attainment == pytest.approx(2 / 6) and found.latencies.max() == pytest.approx(0.066)
    found = outcome(together, "static:full", max_batch_size=1, latency_objective=30.0, deadlines=True)
    assert (found.sizes == EXPIRED).sum() == 3 and np.isinf(found.latencies[found.sizes == EXPIRED]).all()
    assert found.summary()["misses"] == 4  # of those that started in time one ended too late
    found = outcome(together, "static:full", max_queue=4)
    assert (found.sizes == REJECTED).sum() == 2 and found.summary()["rejected"] == 2
    assert found.quality == 0.9  # of answers


def test_without_any_answer():
    found = outcome(at(0.0), max_queue=0)
    assert found.summary()["p99_ms"] is None and found.summary()["quality"] is None and found.attainment == 0


def test_sizes_fall_under_load_and_come_back():
    quiet, storm = np.arange(0, 2, 0.1), np.arange(2, 4, 0.0025)
    trace = OpenLoop(np.concatenate([quiet, storm, quiet + 4.5]), np.full(840, 10), 7.0)
    found = outcome(trace, noise=0.05)
    names = np.array(found.names)[found.sizes]
    assert set(names[:20]) == set(names[-20:]) == {"full"}
    assert (names[100:-100] == "tiny").mean() > 0.5
    assert found.attainment > 0.99
    assert outcome(trace, "static:half", noise=0.05).attainment < 0.9
    assert outcome(trace, "static:tiny", noise=0.05).quality < found.quality


def test_users_who_wait():
    """Four at full size without pauses: all ask again at once, and 41 ms later all have their answers."""
    found = outcome(ClosedLoop(4, 0.0, 10.0, TEN, 0), "static:full")
    assert found.latencies.tolist() == pytest.approx([0.041] * len(found.latencies))
    assert len(found.latencies) == 4 * 244  # 10 s / 41 ms, begun
    alone = outcome(ClosedLoop(1, 0.089, 1000.0, TEN, 0), "static:full")
    assert len(alone.latencies) == pytest.approx(10_000, rel=0.05)  # 11 ms of answer and 89 ms of thinking on average
    with pytest.raises(UserError, match="max_queue: 3 users need a queue for as many requests, got 2"):
        outcome(ClosedLoop(3, 0.0, 1.0, TEN, 0), max_queue=2)


def test_the_mean_wait_is_that_of_theory():
    """One request at a time with a constant duration: M/D/1, whose mean wait is S rho / (2 (1 - rho))."""
    rate, seconds = 60.0, 0.011
    trace = poisson(rate, 1000.0, Lengths(10.0, 10), 0)
    trace = OpenLoop(trace.times, np.full(len(trace.times), 10), trace.duration)
    found = outcome(trace, "static:full", max_batch_size=1)
    load = rate * seconds
    assert found.latencies.mean() == pytest.approx(seconds + seconds * load / (2 * (1 - load)), rel=0.05)
    assert found.busy / found.duration == pytest.approx(load, rel=0.02)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.sampled_from(["slo", "table", "static:half"]), st.booleans())
def test_every_request_has_one_fate(times, policy, deadlines):
    trace = at(*sorted(times))
    found, again = (outcome(trace, policy, noise=0.3, max_queue=8, deadlines=deadlines) for _ in range(2))
    assert found.arrivals.tolist() == sorted(times)
    assert (np.isinf(found.latencies) == (found.sizes < 0)).all() and (found.latencies > 0).all()
    assert found.latencies.tolist() == again.latencies.tolist() and found.sizes.tolist() == again.sizes.tolist()


def test_noise_has_the_mean_of_what_was_measured():
    trace = at(*np.arange(0, 2000, 1.0))
    noisy = outcome(trace, "static:full", noise=0.5).latencies
    assert noisy.mean() == pytest.approx(0.011, rel=0.05) and np.log(noisy).std() == pytest.approx(0.5, rel=0.1)


def test_comparison():
    config = SimulateConfig(load=[0.3, 4.0], duration=10.0, mean_length=10.0, max_length=10, policy=["slo"])
    found = compare(profile(), config)
    assert found.capacity == pytest.approx(32 / 0.321, rel=0.02)  # 32 requests of ten tokens
    assert [(run.load, run.policy) for run in found.runs] == [
        (load, policy) for load in (0.3, 4.0) for policy in ("slo", "static:full", "static:half", "static:tiny")
    ]
    assert [run.policy for run in found.runs if run.is_best_static] == ["static:full", "static:tiny"]
    quiet, busy = found.runs[0].outcome, found.runs[4].outcome
    assert quiet.attainment > 0.99 and quiet.quality > 0.89
    assert busy.attainment > 0.95 and busy.quality > 0.6
    assert 0.15 < found.runs[5].outcome.attainment < 0.25  # one in four is what full size can answer at all
    record = found.record()
    assert json.loads(json.dumps(record)) == record and len(record["runs"]) == 8
    assert record["runs"][0]["requests"] == pytest.approx(10 * 0.3 * found.capacity, rel=0.2)
    assert compare(profile(), config).record() == record


def test_the_best_size_alone():
    """Attainment first; within a point of it quality, or the larger size where that is unknown."""

    def best(sizes, load):
        config = SimulateConfig(load=[load], duration=5.0, mean_length=10.0, max_length=10, policy=["static:a"], noise=0.0)
        runs = compare(profile(sizes), config).runs
        assert best_static(runs) is next(run for run in runs if run.is_best_static)
        return best_static(runs).policy

    assert best([("a", 0.9, 3.0), ("b", 0.95, 1.0)], 0.2) == "static:b"
    assert best([("a", 0.9, 3.0), ("b", None, 1.0)], 0.2) == "static:a"
    assert best([("a", None, 3.0), ("b", 0.1, 1.0)], 2.5) == "static:b"


def test_capacity_of_recorded_lengths():
    config = SimulateConfig(mean_length=10.0, max_batch_size=32)
    assert capacity(profile(), config, Sample(np.array([40]))) == pytest.approx(32 / 1.281, rel=0.02)


def test_a_mean_length_above_the_longest_takes_no_longer():
    """What is too long is cut, so the time that capacity is taken over is that of the longest."""
    longest = profile().lengths[-1]
    lengths = Lengths(1e9, longest)
    found = [capacity(profile(), SimulateConfig(mean_length=mean), lengths) for mean in (1e9, float(longest))]
    assert found[0] == found[1]


REFUSED = {
    "both": ({"rate": 1.0, "load": [1.0]}, "rate, load: give one of them"),
    "closed": ({"trace": "closed", "load": [1.0]}, "trace: the load of closed is its number of users"),
    "start": ({"start": 5.0}, "start is for recorded traces, and trace is poisson"),
    "load": ({"load": [1.0, 0.0]}, "each of load must be a positive number, got 0.0"),
    "rate": ({"rate": float("nan")}, "rate must be a positive number, got nan"),
    "think": ({"think": -1.0}, "think must be a number of at least 0, got -1.0"),
    "users": ({"trace": "closed", "users": [4, 0]}, "each of users must be an integer of at least 1, got 0"),
    "policy": ({"policy": ["slo", "best"]}, "policy: 'best' is unknown"),
    "no policy": ({"policy": []}, "policy: name at least one"),
    "no users": ({"trace": "closed", "users": []}, "users: name at least one"),
    "no load": ({"load": []}, "load: name at least one"),
    "table": ({"policy": ["slo"], "table": "{1: full}"}, "table is used by policy table, and policy is slo"),
    "queue": ({"max_queue": 0}, "max_queue must be an integer of at least 1, got 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_values_that_are_not_allowed(name):
    options, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        SimulateConfig(**options)


@pytest.fixture
def files(tmp_path):
    """A profile, and a recorded trace."""
    profile().save(tmp_path / "profile.json")
    (tmp_path / "seconds.txt").write_text("".join(f"{3 + second % 5}\n" for second in range(40)))
    return tmp_path


def test_the_command(files, capsys):
    """A table, a record and a picture; again only with --overwrite, and never over something else."""
    folder = files / "out"
    command = ["simulate", "--profile", str(files / "profile.json"), "--trace", str(files / "seconds.txt"), "--load", "1", "3",
               "--output_dir", str(folder), "--policy", "slo", "table", "static:half"]  # fmt: skip
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "(best alone)" in printed and "static:half" in printed and printed.count("slo") == 2
    record = json.loads((folder / "simulation.json").read_text())
    assert [run["policy"] for run in record["runs"][:5]] == ["slo", "table", "static:half", "static:full", "static:tiny"]
    assert record["config"]["trace"].endswith("seconds.txt") and record["runs"][0]["requests"] == 200
    assert record["profile"]["sizes"] == {name: quality for name, quality, _ in SIZES}
    assert (folder / "simulation.png").read_bytes()[:4] == b"\x89PNG"
    assert main(command) == 2 and "is not empty" in capsys.readouterr().err
    assert main([*command, "--overwrite", "true"]) == 0
    (folder / "mine.txt").touch()
    assert main([*command, "--overwrite", "true"]) == 2 and "mine.txt" in capsys.readouterr().err


def test_users_as_a_command(files, capsys):
    recipe = files / "recipe.yaml"
    recipe.write_text(f"profile: {files / 'profile.json'}\ntrace: closed\nusers: [1, 3]\nduration: 2\npolicy: [slo]\n")
    assert main(["simulate", str(recipe)]) == 0
    printed = capsys.readouterr().out
    assert "users" in printed and printed.count("slo") == 2 and "written" not in printed


BAD_COMMANDS = {
    "objective": (["--latency_objective", "1.5"], "1.5 ms is out of reach: on an idle machine the fastest size takes 2 ms"),
    "size": (["--policy", "static:huge"], "policy: 'huge' is no size of the profile; its sizes: full, half, tiny"),
    "trace": (["--trace", "posson"], "trace: 'posson' is neither poisson, burst, diurnal, closed nor a file"),
    "profile": (["--profile", "{files}/seconds.txt"], "seconds.txt is not a serving profile"),
    "output": (["--output_dir", "{files}"], "output_dir: {files} contains profile ({files}/profile.json); choose another one"),
    "output and trace": (["--trace", "{files}/seconds.txt", "--profile", "x", "--output_dir", "{files}"], "contains trace"),
}


@pytest.mark.parametrize("name", BAD_COMMANDS)
def test_bad_commands(name, files, capsys):
    arguments, message = BAD_COMMANDS[name]
    arguments = [argument.format(files=files) for argument in arguments]
    if "--profile" not in arguments:
        arguments += ["--profile", str(files / "profile.json")]
    assert main(["simulate", *arguments]) == 2
    printed = capsys.readouterr()
    assert message.format(files=files) in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_a_process_of_its_own(files):
    """The objective that nothing meets, as a user sees it."""
    command = [
        sys.executable,
        "-m",
        "hf_elastic.cli.main",
        "simulate",
        "--latency_objective=1",
        f"--profile={files}/profile.json",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("hf-elastic: error: latency_objective: 1 ms is out of reach")


def test_a_picture_of_one_load_and_one_size(tmp_path):
    config = SimulateConfig(rate=5.0, duration=4.0, policy=["static:a"])
    draw(compare(profile([("a", None, 1.0)]), config), tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 10_000


def test_ticks_of_latency(tmp_path):
    """1, 2 and 5 of each decade; of many decades 1 alone, so that no label is over another."""

    def labels(objective):
        config = SimulateConfig(load=[0.5], duration=20.0, policy=["static:a"], latency_objective=objective)
        draw(compare(profile([("a", None, 1.0)]), config), tmp_path / "picture.svg")
        return set(re.findall("<!-- ([0-9.]+) -->", (tmp_path / "picture.svg").read_text()))

    narrow = labels(100.0)
    assert {"20", "50", "100"} <= narrow and not {"30", "40", "60"} & narrow
    wide = labels(100_000.0)
    assert {"100", "1000", "100000"} <= wide and not {"2000", "5000", "20000", "50000"} & wide


def test_a_profile_of_one_point_is_enough(tmp_path):
    size = {"name": "a", "quality": None, "flops": 1, "seconds": [[0.01]]}
    data = {"model": "", "backend": "torch", "device": "cpu", "threads": 1, "batch_sizes": [1], "lengths": [8], "sizes": [size]}
    (tmp_path / "profile.json").write_text(json.dumps(data))
    found = compare(ServingProfile.load(tmp_path / "profile.json"), SimulateConfig(load=[0.5], duration=5.0))
    assert found.capacity == pytest.approx(100, rel=0.02) and found.mean_length < 8.01


@pytest.mark.benchmark
def test_the_benchmark(files, benchmark_module, monkeypatch, capsys):
    """Records, one for each trace and seed; what is there is not made again; the table."""
    (files / "traces").mkdir()
    table = "timestamp_ms,input_length\n" + "".join(f"{35 * i},{10 + i % 7}\n" for i in range(60))
    (files / "traces" / "mooncake_synthetic.csv.gz").write_text(table)
    command = [
        "serving_simulation",
        "run",
        "--data-dir",
        str(files),
        "--profile",
        str(files / "profile.json"),
        "--seeds",
        "0",
        "1",
    ]
    command += ["--traces", "mooncake", "--mean-length", "10", "--output", str(files / "records")]
    bench = benchmark_module("serving_simulation")
    monkeypatch.setattr(sys, "argv", command)
    bench.main()
    paths = sorted((files / "records").iterdir())
    assert [path.name for path in paths] == ["mooncake-100-0.json", "mooncake-100-1.json"]
    paths[1].unlink()
    before = paths[0].stat().st_mtime_ns
    bench.main()
    assert paths[0].stat().st_mtime_ns == before and paths[1].is_file()
    runs = json.loads(paths[0].read_text())["runs"]
    assert {(run["load"], run["policy"]) for run in runs} >= {(4.0, "slo"), (0.5, "table"), (1.0, "static:tiny")}
    monkeypatch.setattr(sys, "argv", ["serving_simulation", "table", "--output", str(files / "records")])
    bench.main()
    assert capsys.readouterr().out.count("mooncake") == 4


@pytest.mark.benchmark
def test_the_cells_of_the_benchmark(benchmark_module):
    """Twice as much in time as the best size of this quality; five points better than the best that is as often in time."""
    found = {"slo": (0.9, 85.0), "table": (0.8, 85.0), "static:a": (0.45, 90.0), "static:b": (0.9, 80.0)}
    runs = [
        {"load": 1.0, "policy": policy, "attainment": in_time, "quality": quality, "best_static": policy == "static:b"}
        for policy, (in_time, quality) in found.items()
    ]
    cells = benchmark_module("serving_simulation").row([{"runs": runs}], 1.0)
    assert cells == ["90.0%, 85.00", "80.0%, 85.00", "90.0%, 80.00 b", "45.0%, x 2.00", "80.00, +5.00"]

"""One study for several processes, some of which are killed: on SQLite, and on a PostgreSQL server where one is installed."""

import importlib.util
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from hf_elastic.core.space import Subnet
from hf_elastic.search import Frontier, Objective
from hf_elastic.search.study import Study

pytestmark = pytest.mark.one_lane

SCRIPT = Path(__file__).with_name("interrupted.py")
SERVER_PROGRAMS = [*Path("/usr/lib/postgresql").glob("*/bin"), *(Path(p) for p in os.environ.get("PATH", "").split(os.pathsep))]
GOALS = [Objective("score", "maximize")]


def start(storage, log: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), str(storage), str(log), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def evaluated(log: Path) -> list[list]:
    """For each process that finished, the sizes with a score."""
    frontiers = [Frontier.load(path) for path in sorted(log.parent.glob("frontier-*.json"))]
    return [[point.subnet for point in frontier.evaluated if "score" in point.values] for frontier in frontiers]


# --- a search that is killed, and goes on --------------------------------------------------------------------------


@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_a_killed_search_goes_on(tmp_path, how):
    log = tmp_path / "log"
    process = start(tmp_path / "folder", log, "7")
    assert process.stdout.readline() == "hanging\n"
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert how == signal.SIGKILL or "KeyboardInterrupt" in errors
    finish(start(tmp_path / "folder", log))
    lines = log.read_text().splitlines()
    assert lines.count(lines[6]) == 2  # what was under way starts again; everything else happened once
    assert len(lines) == 13 and len(set(lines)) == 12
    assert [len(found) for found in evaluated(log)] == [12]


# --- workers that share a study ------------------------------------------------------------------------------------


def check_workers(storage, log: Path) -> None:
    """Three workers, the first of which is killed in the middle of an evaluation."""
    victim = start(storage, log, "3")
    assert victim.stdout.readline() == "hanging\n"
    others = [start(storage, log, "0", "0.2") for _ in range(2)]
    victim.kill()
    victim.communicate()
    for process in others:
        finish(process)
    lines = log.read_text().splitlines()
    # Only what the victim was at when it was killed happened twice, and nothing is missing.
    assert len(set(lines)) == 12 and len(lines) == 13 and lines.count(lines[2]) == 2
    first, second = evaluated(log)
    assert len(first) == 12 and sorted(map(str, first)) == sorted(map(str, second))


@pytest.mark.slow
def test_workers_share_a_sqlite_file(tmp_path):
    check_workers(tmp_path / "search.db", tmp_path / "log")


@pytest.fixture
def postgresql(tmp_path_factory):
    """The URL of a database on a server of our own."""
    initdb = next((folder / "initdb" for folder in SERVER_PROGRAMS if (folder / "initdb").is_file()), None)
    if initdb is None or not (initdb.resolve().parent / "pg_ctl").is_file():
        pytest.skip("no PostgreSQL server is installed: there is no initdb with a pg_ctl beside it")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed: pip install 'hf-elastic[postgres]'")
    # The server refuses to run as root.
    user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    if user not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres")
    programs = initdb.resolve().parent
    folder = Path("/tmp") / f"hf-elastic-postgresql-{os.getpid()}"
    folder.mkdir()
    shutil.chown(folder, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(*command: str) -> None:
        subprocess.run(list(map(str, command)), check=True, user=user, cwd=folder, capture_output=True, timeout=120)

    options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off"
    try:
        run(programs / "initdb", "-D", folder / "data", "-U", "tester", "--auth=trust", "--no-sync")
        run(programs / "pg_ctl", "-D", folder / "data", "-o", options, "-l", folder / "log", "-w", "start")
        yield f"postgresql://tester@127.0.0.1:{port}/postgres"
        run(programs / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_workers_share_a_postgresql_server(tmp_path, postgresql):
    check_workers(postgresql, tmp_path / "log")
    # The killed worker's trial failed, and every size has one that is complete, whatever was on the way.
    trials = optuna.load_study(study_name="search", storage=postgresql.replace("://", "+psycopg://", 1)).trials
    by_size = {}
    for trial in trials:
        by_size.setdefault(trial.user_attrs["subnet"], []).append(trial.state.name)
    assert len(by_size) == 12
    assert all(states.count("COMPLETE") == 1 for states in by_size.values())
    assert all(state in ("COMPLETE", "FAIL") for states in by_size.values() for state in states)


@pytest.mark.slow
def test_a_database_that_is_not_there(postgresql):
    with pytest.raises(ValueError, match=r"storage postgresql.*/other: cannot be reached: .*\"other\" does not exist"):
        Study(postgresql.replace("/postgres", "/other"), "search", {}, GOALS, 60)


# --- the study ----------------------------------------------------------------------------------------------------

SUBNETS = [Subnet(num_hidden_layers=depth) for depth in range(1, 6)]


def studies(place, count: int = 2, **options) -> list[Study]:
    return [Study(place, "search", {"model": 1}, GOALS, options.get("stale_after", 60)) for _ in range(count)]


def test_a_claim_is_one_process_s_until_it_lets_go(tmp_path):
    one, two = studies(tmp_path)
    assert one.claim(SUBNETS[:3], 5) == SUBNETS[:3]
    assert two.claim(SUBNETS[1:4], 5) == SUBNETS[3:4]
    one.put("quality", {SUBNETS[0]: {"score": 1.0}, SUBNETS[1]: {"score": 2.0}})
    one.finish(SUBNETS[0], [1.0])
    one.close()
    two.refresh()
    assert list(two.finished()) == [(SUBNETS[0], None)] and not two.is_complete(5)
    assert two.free(5) == SUBNETS[1:3]
    assert two.get(SUBNETS[1], "quality") == {"score": 2.0}  # found before it was let go, and not to be found again
    assert two.claim(two.free(5), 5) == SUBNETS[1:3]
    two.close()


def test_no_more_are_claimed_than_the_study_may_have(tmp_path):
    one, two = studies(tmp_path)
    assert one.claim(SUBNETS[:2], 3) == SUBNETS[:2]
    assert two.claim(SUBNETS[2:], 3) == SUBNETS[2:3]
    one.refresh()
    assert len(one) == len(two) == 3
    assert one.claim(SUBNETS[3:], 5) == SUBNETS[3:]  # with a larger budget they may be had
    for study in (one, two):
        study.close()


@pytest.mark.parametrize("is_taken", [False, True])
def test_two_that_wait_in_line_for_one_subnet(tmp_path, monkeypatch, is_taken):
    one, two = studies(tmp_path)
    wait = one._wait_in_line

    def wait_behind_the_other(key: str) -> int:
        first = two._wait_in_line(key)
        trial = wait(key)
        if is_taken:
            two.refresh()
            assert two._take(key, two._entries[key].current)
        assert trial > first
        return trial

    monkeypatch.setattr(one, "_wait_in_line", wait_behind_the_other)
    assert one.claim(SUBNETS[:1]) == ([] if is_taken else SUBNETS[:1])  # what the other had put there, if it is still free
    (two if is_taken else one).finish(SUBNETS[0], [1.0])
    for study in (one, two):
        study.close()
    (study,) = optuna.get_all_study_names(f"sqlite:///{tmp_path}/search.db")
    trials = optuna.load_study(study_name=study, storage=f"sqlite:///{tmp_path}/search.db").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL"]  # and none that waits for ever


def test_one_too_many_that_another_process_has_taken_is_its_own(tmp_path):
    one, two = studies(tmp_path)
    trial = one._wait_in_line(json.dumps(SUBNETS[0].to_dict()))
    assert two.claim(SUBNETS[:1], 5) == SUBNETS[:1]  # with a larger budget
    one._step_back(trial, is_over=True)
    two.finish(SUBNETS[0], [1.0])
    one.refresh()
    assert list(one.finished()) == [(SUBNETS[0], None)]
    for study in (one, two):
        study.close()


def test_what_failed_is_not_evaluated_again(tmp_path):
    (one,) = studies(tmp_path, 1)
    one.claim(SUBNETS[:1])
    one.finish(SUBNETS[0], None, "score is not a finite number")
    one.close()
    (two,) = studies(tmp_path, 1)
    assert list(two.finished()) == [(SUBNETS[0], "score is not a finite number")]
    assert two.claim(SUBNETS[:1]) == []
    two.close()


def test_studies_side_by_side_in_one_storage(tmp_path):
    one = Study(tmp_path, "one", {"model": 1}, GOALS, 60)
    two = Study(tmp_path, "two", {"model": 2}, GOALS, 60)
    assert one.claim(SUBNETS[:1]) == two.claim(SUBNETS[:1]) == SUBNETS[:1]
    for study in (one, two):
        study.close()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("postgresql://user:secret@127.0.0.1:1/none", r"postgresql.*user:\*\*\*@127.0.0.1:1/none: cannot be reached: .*refused"),
        ("mysql://somewhere/db", "mysql://somewhere/db: unknown kind; allowed: a folder, .*postgresql://"),
        ("sqlite://", "names no file; allowed"),
        ("://", "is no URL; allowed"),
    ],
)
def test_storages_that_cannot_be_used(place, message):
    if place.startswith("postgresql"):
        pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'hf-elastic[postgres]'")
    with pytest.raises(ValueError, match=message):
        Study(place, "search", {}, GOALS, 60)


def test_without_a_driver_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)  # importing it then raises, as where it is not installed
    with pytest.raises(ImportError, match=r"\*\*\*@host/db: needs a driver: pip install 'hf-elastic\[postgres\]'"):
        Study("postgresql://user:secret@host/db", "search", {}, GOALS, 60)

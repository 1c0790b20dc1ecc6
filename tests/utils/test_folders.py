"""Folders that are filled: where they may be, and what a kill at any step leaves."""

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from hf_elastic.core.errors import UserError
from hf_elastic.utils import folders
from hf_elastic.utils.files import release, staged_file, try_lock, write_atomically
from hf_elastic.utils.folders import added, check_place, claimed, filled

NOBODY = 65534
STEPS = ("mkdir", "rename", "replace", "rmdir", "unlink", "chmod")


def write(folder, text, deadly=0, *, inside=False, user=None):
    """Fill a folder in another process, which ends itself at a step that changes the disk; returns its status."""
    process = multiprocessing.get_context("fork").Process(target=_write, args=(folder, text, deadly, inside, user))
    process.start()
    process.join()
    return process.exitcode


def _write(folder, text, deadly, inside, user):
    steps = itertools.count(1)

    def deadly_step(function):
        def call(*args, **kwargs):
            if next(steps) == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in STEPS:
        setattr(os, name, deadly_step(getattr(os, name)))
    shutil.rmtree = deadly_step(shutil.rmtree)
    folders._exchange = deadly_step(folders._exchange)
    if inside:
        folders._where_to_write = lambda folder: folder
    if user is not None:
        os.setgid(user)
        os.setuid(user)
    with filled(folder, overwrite=True) as new:
        for name in ("config.json", "model.safetensors", f"only-{text}"):
            (new / name).write_text(text)
        (new / "onnx").mkdir()
        (new / "onnx" / "model.onnx").write_text(text)


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".hf-elastic"))
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files if ".hf-elastic-" not in str(path)}


def generation(text):
    return {name: text for name in ("config.json", "model.safetensors", f"only-{text}", "onnx/model.onnx")}


@pytest.mark.parametrize("before", ["nothing", "old"])
def test_a_kill_at_any_step_leaves_the_old_or_the_new(before, tmp_path):
    expected = {"nothing": {}, "old": generation("old")}[before]
    for deadly in range(1, 100):
        folder = tmp_path / str(deadly) / "out"
        if before == "old":
            assert write(folder, "old") == 0
        status = write(folder, "new", deadly)
        found = contents(folder) if folder.exists() else {}
        assert found in (expected, generation("new")), deadly
        assert write(folder, "again") == 0
        assert contents(folder) == generation("again")
        assert os.listdir(folder.parent) == ["out"], "what the killed one left is cleaned up"
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert 5 < deadly < 99


def test_inside_a_folder_that_cannot_be_exchanged_the_next_one_goes_on(tmp_path):
    for deadly in range(1, 100):
        folder = tmp_path / str(deadly) / "out"
        assert write(folder, "old", inside=True) == 0
        inode = folder.stat().st_ino
        status = write(folder, "new", deadly, inside=True)
        with pytest.raises(UserError, match="is not empty"), filled(folder):
            pass
        assert contents(folder) in (generation("old"), generation("new")), deadly
        assert folder.stat().st_ino == inode and sorted(os.listdir(folder))[0] == ".hf-elastic.json"
        if status == 0:
            break
    assert 5 < deadly < 99


def test_a_link_and_a_mode_stay(tmp_path):
    (tmp_path / "target").mkdir(mode=0o750)
    (tmp_path / "link").symlink_to("target")
    for text in ("old", "new"):
        assert write(tmp_path / "link", text) == 0
        assert (tmp_path / "link").is_symlink() and contents(tmp_path / "target") == generation(text)
        assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == 0o750


def test_a_mount_point(tmp_path):
    folder = tmp_path / "mounted"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        for text in ("old", "new"):
            assert write(folder, text) == 0 and contents(folder) == generation(text)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_folder_that_is_mounted_from_the_same_disk(tmp_path):
    """Nothing tells such a one from a plain folder before it refuses to be exchanged."""
    folder, source = tmp_path / "mounted", tmp_path / "source"
    folder.mkdir()
    source.mkdir()
    if subprocess.run(["mount", "--bind", str(source), str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        for text in ("old", "new"):
            assert write(folder, text) == 0 and contents(source) == generation(text)
        with (
            pytest.raises(UserError, match=r"output_dir: .*source contains the model"),
            filled(source, overwrite=True, inputs={"the model": folder / "onnx"}),
        ):
            pass
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="becomes another user")
def test_a_folder_in_one_that_may_not_be_written_to(tmp_path, capfd):
    pytest_own = itertools.takewhile(lambda folder: folder.name.startswith(("pytest-", "popen-")), tmp_path.parents)
    for folder in (tmp_path, *pytest_own):
        folder.chmod(0o755)
    (tmp_path / "out").mkdir()
    os.chown(tmp_path / "out", NOBODY, NOBODY)
    for text in ("old", "new"):
        assert write(tmp_path / "out", text, user=NOBODY) == 0
        assert contents(tmp_path / "out") == generation(text)
        assert (tmp_path / "out").stat().st_uid == NOBODY
    (tmp_path / "closed").mkdir(mode=0o555)
    assert write(tmp_path / "closed", "new", user=NOBODY) == 1 and os.listdir(tmp_path / "closed") == []
    assert "may not be written to" in capfd.readouterr().err


def test_a_link_in_the_working_directory_is_no_reason(tmp_path, monkeypatch):
    """`ln -s runs/1 latest` is common, and so is a link that the output is given by."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    check_place("output_dir", "real", {})
    check_place("output_dir", "link", {})
    with pytest.raises(UserError, match="is the working directory"):
        check_place("output_dir", "link/..", {})


def test_names_that_are_as_long_as_they_can_be(tmp_path):
    folder = tmp_path / ("n" * 255)
    for text in ("old", "new"):
        assert write(folder, text) == 0 and contents(folder) == generation(text)
    write_atomically(tmp_path / ("m" * 255), "text")
    assert (tmp_path / ("m" * 255)).read_text() == "text"


def test_what_others_wrote_stays(tmp_path):
    assert write(tmp_path / "out", "old") == 0
    (tmp_path / "out" / "onnx" / "notes.txt").write_text("mine")
    with (
        pytest.raises(UserError, match=r"hf-elastic has not written there \(onnx/notes.txt\)"),
        filled(tmp_path / "out", overwrite=True),
    ):
        pass
    assert contents(tmp_path / "out") == {**generation("old"), "onnx/notes.txt": "mine"}
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="has not written there"), filled(tmp_path / "theirs", overwrite=True):
        pass
    (tmp_path / "late").mkdir()
    with pytest.raises(UserError, match="is not empty"), filled(tmp_path / "late"):
        (tmp_path / "late" / "notes.txt").write_text("mine")
    assert contents(tmp_path / "late") == {"notes.txt": "mine"}
    assert sorted(os.listdir(tmp_path)) == ["late", "out", "theirs"]


def test_empty_folders_are_not_kept(tmp_path):
    for _ in range(2):
        with filled(tmp_path / "out", overwrite=True) as new:
            (new / "config.json").write_text("{}")
            (new / "empty").mkdir()
        assert sorted(os.listdir(tmp_path / "out")) == [".hf-elastic.json", "config.json"]


def test_two_at_once(tmp_path):
    """The second is refused while the first writes, and not once that one is gone, killed or not."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    first = context.Process(target=_wait, args=(tmp_path / "out", ready))
    first.start()
    ready.wait()
    try:
        with pytest.raises(UserError, match=r"another process is writing to .*out"), filled(tmp_path / "out"):
            pass
    finally:
        first.kill()
        first.join()
    assert write(tmp_path / "out", "new") == 0 and os.listdir(tmp_path) == ["out"]


def _wait(folder, ready):
    with filled(folder):
        ready.set()
        signal.pause()


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), filled(tmp_path / "a" / "b") as new:
        (new / "config.json").write_text("{}")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
    with pytest.raises(UserError, match="nobody"), claimed(tmp_path / "a"):
        raise UserError("nobody")
    assert os.listdir(tmp_path) == []


PLACES = {
    "itself": ("model", "is the model"),
    "above": (".", "contains the model"),
    "through a link": ("link", "is the model"),
    "a link above": ("link-above", "contains the model"),
    "where its weights are": ("blobs", "contains the model"),
    "the working directory": ("here", "is the working directory"),
    "the home folder": ("home", "is the home folder"),
    "above the home folder": ("homes", "contains the home folder"),
    "the root": ("/", "contains"),
}


@pytest.mark.parametrize("name", PLACES)
def test_places_that_are_in_use(name, tmp_path, monkeypatch):
    for folder in ("all/model", "all/blobs", "all/here", "all/homes/home"):
        (tmp_path / folder).mkdir(parents=True)
    place = tmp_path / "all"
    (place / "blobs" / "weights").write_text("weights")
    (place / "model" / "model.safetensors").symlink_to("../blobs/weights")
    (place / "link").symlink_to("model")
    (place / "link-above").symlink_to("../all")
    (place / "home").symlink_to("homes/home")
    monkeypatch.chdir(place / "here")
    monkeypatch.setenv("HOME", str(place / "home"))
    where, words = PLACES[name]
    with pytest.raises(UserError, match=f"output_dir: .* {words}"):
        check_place("output_dir", place / where, {"the model": str(place / "model"), "dataset": "owner/name"})
    check_place("output_dir", place / "model" / "onnx", {"the model": str(place / "model")})


def test_files_are_added_together(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "config.json").write_text("old")
    (tmp_path / "config.json").chmod(0o640)
    with added(tmp_path) as new:
        (new / "config.json").write_text("new")
        (new / "model.safetensors").touch(mode=0o600)
        assert (tmp_path / "config.json").read_text() == "old"
    assert contents(tmp_path) == {"notes.txt": "mine", "config.json": "new", "model.safetensors": ""}
    assert stat.S_IMODE((tmp_path / "config.json").stat().st_mode) == 0o640
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "notes.txt").stat().st_mode


def test_a_file_is_written_where_its_link_leads(tmp_path):
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("real.json")
    write_atomically(tmp_path / "link.json", json.dumps(1))
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "real.json").read_text() == "1"
    with pytest.raises(UserError, match="/dev/null is not a file"), staged_file("/dev/null"):
        pass
    assert not Path("/dev/null").is_file()


def test_another_process_may_find_a_temporary_folder_before_it_is_locked(tmp_path, monkeypatch):
    """It locks it to clean it up, and is not done when we look."""
    make, found = tempfile.mkdtemp, []

    def make_and_find(**options):
        folder = make(**options)
        if not found:
            found.extend((folder, try_lock(Path(folder))))
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_find)
    with staged_file(tmp_path / "file") as staged:
        shutil.rmtree(found[0])
        release(found[1])
        staged.write_text("all")
    assert (tmp_path / "file").read_text() == "all"

"""Starts Python commands as real processes that need no imports: a server has made those once, and forks itself for each.

`forked.run([*forked.HF_ELASTIC, "train", ...])` is `subprocess.run` with all output captured; `forked.start(...)` returns a
`Process` with pid, send_signal, kill, poll and communicate, as `subprocess.Popen`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
HF_ELASTIC = (sys.executable, "-m", "hf_elastic.cli.main")
# hf_elastic.cli.main is left out: `python -m` warns of a module that is imported already.
PRELOADED = (
    "datasets", "optuna", "sklearn.metrics", "matplotlib.figure", "transformers.trainer", "hf_elastic.training.trainer",
    "hf_elastic.data.loading", "hf_elastic.search", "hf_elastic.export", "hf_elastic.measure", "hf_elastic.cli.common",
    "hf_elastic.core.modeling_elastic", "transformers.models.bert.modeling_bert",
)  # fmt: skip
# Libraries read these once, when they are imported: a command that needs others has a server of its own, or a plain process.
READ_AT_IMPORT = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "OMP_")


class Process:
    """A command that runs: what `subprocess.Popen` offers, with all that it prints kept in files."""

    def __init__(self, command: list, pid: int, reply: socket.socket, outputs: tuple):
        self.args, self.pid, self.returncode = command, pid, None
        self._reply, self._outputs = reply, outputs

    def printed(self) -> tuple[str, str | None]:
        """Standard output and error so far; None for an error output that went to the standard output."""
        texts = [Path(file.name).read_text() for file in self._outputs]
        return (*texts, None)[:2]

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; raises `subprocess.TimeoutExpired` after `timeout` seconds."""
        if self.returncode is None:
            if not select.select([self._reply], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            with self._reply.makefile() as reply:
                self.returncode = int(reply.readline())
            self._reply.close()
        return self.returncode

    def wait_for(self, text: str, timeout: float = 120) -> None:
        """Wait until the standard output has this text."""
        deadline = time.monotonic() + timeout
        while text not in self.printed()[0]:
            if self.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{text!r} was not printed: {self.printed()}")
            time.sleep(0.01)

    def communicate(self, timeout: float | None = None) -> tuple[str, str | None]:
        """Wait for the end, and read all that was printed."""
        self.wait(timeout)
        return self.printed()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process at once."""
        self.send_signal(signal.SIGKILL)


class Server:
    """A process with everything imported, in an environment of its own; `start` has it fork."""

    def __init__(self, env: dict[str, str] | None = None):
        self._env = {**(os.environ if env is None else env), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._control, theirs = socket.socketpair()
        command = [sys.executable, __file__, str(theirs.fileno())]
        self._process = subprocess.Popen(
            command, env=self._env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
        )
        theirs.close()

    def start(self, command: list, *, cwd=None, env=None, stderr: int = subprocess.PIPE) -> Process:
        """Start a command in a session, and so a process group, of its own.

        Args:
            command: `sys.executable`, then a script, `-m` and a module or `-c` and code, then arguments.
            cwd: The folder to run in; this one by default.
            env: All environment variables; those of this process by default.
            stderr: `subprocess.STDOUT` puts the error output among the standard output.
        """
        python, *rest = map(str, command)
        env = dict(os.environ if env is None else env)
        names = {name for name in (*env, *self._env) if name.startswith(READ_AT_IMPORT)}
        other = {name: env[name] for name in names if name in env and env[name] != self._env.get(name)}
        if python != sys.executable or other:
            raise ValueError(f"this server cannot run {python} with {other}")
        request = json.dumps({"command": rest, "cwd": str(cwd or Path.cwd()), "env": env}).encode()
        count = 1 if stderr == subprocess.STDOUT else 2
        outputs = tuple(tempfile.NamedTemporaryFile() for _ in range(count))  # noqa: SIM115
        ours, theirs = socket.socketpair()
        with theirs:
            files = [outputs[0].fileno(), outputs[-1].fileno(), theirs.fileno()]
            socket.send_fds(self._control, [len(request).to_bytes(4, "big")], files)
            self._control.sendall(request)
        pid = b""
        while not pid.endswith(b"\n"):
            received = ours.recv(1)
            assert received, "the server has ended"
            pid += received
        return Process(command, int(pid), ours, outputs)

    def run(self, command: list, *, timeout: float = 300, **options) -> subprocess.CompletedProcess:
        """Run a command to its end; with the options of `start`."""
        process = self.start(command, **options)
        try:
            printed = process.communicate(timeout)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(command, process.returncode, *printed)

    def close(self) -> None:
        """End the server; commands that it started go on."""
        self._control.close()
        self._process.wait()


@cache
def server() -> Server:
    """The server of these tests, in their environment."""
    created = Server()
    atexit.register(created.close)
    return created


def start(command: list, **options) -> Process:
    """As `Server.start`, in the environment of these tests."""
    return server().start(command, **options)


def run(command: list, **options) -> subprocess.CompletedProcess:
    """As `Server.run`, in the environment of these tests."""
    return server().run(command, **options)


# --- in the server ---------------------------------------------------------------------------------------------------


def serve(control: socket.socket) -> dict | None:
    """Fork a process for every request; returns the request in that process, and None in the server at its end."""
    children = {}
    while True:
        ready, _, _ = select.select([control], [], [], 0.01 if children else None)
        if ready:
            header, files, _, _ = socket.recv_fds(control, 4, 3)
            if not header:
                return None
            request = json.loads(control.recv(int.from_bytes(header, "big"), socket.MSG_WAITALL))
            output, error, reply = files
            pid = os.fork()
            if pid == 0:
                os.setsid()
                os.dup2(output, 1)
                os.dup2(error, 2)
                for left in (*files, control.detach(), *children.values()):
                    os.close(left)
                return request
            os.close(output)
            os.close(error)
            os.write(reply, f"{pid}\n".encode())
            children[pid] = reply
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
                os.write(children[pid], f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os.close(children.pop(pid))


def execute(command: list[str], cwd: str, env: dict[str, str]) -> None:
    """What `python` does with a command line."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if command[0] == "-m":
        sys.path[0], sys.argv = cwd, command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    elif command[0] == "-c":
        sys.path[0], sys.argv = "", ["-c", *command[2:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(command[1], "<string>", "exec"), vars(main))
    else:
        sys.path[0], sys.argv = str(Path(command[0]).parent), command
        runpy.run_path(command[0], run_name="__main__")


def main() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    # A fork has only the thread that forks: the locks of others would stay locked. (jemalloc, of Arrow, sees to its own.)
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert threads.count("jemalloc_bg_thd") >= len(threads) - 1, f"an import has started a thread: {threads}"
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    if request is not None:
        import numpy
        import torch

        numpy.random.seed()  # each process has seeds of its own; random sees to itself
        torch.seed()
        execute(**request)


if __name__ == "__main__":
    main()

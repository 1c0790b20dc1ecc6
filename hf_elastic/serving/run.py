"""`serve`: from a model to a listening port, and to its end."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from ..core.errors import UserError
from .config import SchedulerConfig
from .costs import CostModel
from .demo import DemoMetrics
from .engine import Engine
from .loading import load_engine
from .metrics import ServingMetrics
from .profiling import load_profile, measure_profile
from .qualities import read_qualities
from .scheduler import Scheduler
from .server import KEY_VARIABLE, key_of, make_app, refuse
from .server_config import ServerConfig
from .service import Service
from .worker import Worker

IDLE = 75  # seconds that a connection without a request stays open; longer than most pools of connections keep one
SLOW_CLIENTS = 10  # seconds for clients to send what they have begun and to take their answers, after the last one is there


def serve(model: str, config: ServerConfig, scheduling: SchedulerConfig, *, device: str = "cpu") -> None:
    """Serve a model until SIGTERM or Ctrl-C; what was accepted until then is answered.

    Args:
        model: see `load_engine`.
        config: what is served, where, and its limits.
        scheduling: how.
        device: for torch.

    Raises:
        UserError: the port is in use, the model cannot be served, a profile of something else, or a latency objective that no
            size meets; the message names the best possible.
        KeyboardInterrupt: it was ended by Ctrl-C.
    """
    if config.demo and key_of(config) is not None:
        raise UserError(f"demo: its page sends no key; leave out api_key and the variable {KEY_VARIABLE}")
    if config.otlp_endpoint is not None:
        import_module(f"{__package__}.tracing")  # what is not installed is told before a model is loaded
    with bind(config.host, config.port) as listener:
        metrics = DemoMetrics() if config.demo else ServingMetrics()
        service = start(model, config, scheduling, device, metrics)
        worker = service.worker
        server = Server(
            uvicorn.Config(
                to_the_end(make_app(service)),
                log_level="warning",
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_keep_alive=IDLE,
                timeout_graceful_shutdown=SLOW_CLIENTS,
            ),
            worker,
        )
        listen(listener, config)
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"listening on {url}", *([f"page: {url}/demo"] if config.demo else []), sep="\n", flush=True)
        server.run(sockets=[listener])
        if not server.force_exit:
            worker.close()
    if server.interrupted:
        raise KeyboardInterrupt


def start(model: str, config: ServerConfig, scheduling: SchedulerConfig, device: str, metrics: ServingMetrics) -> Service:
    """Load a model in a worker's thread, and wait until it is ready."""
    worker = Worker(lambda: make(model, config, scheduling, device), max_queue=config.max_queue, on_batch=metrics.on_batch)
    return Service(worker.start(), config, metrics)


def make(
    model: str,
    config: ServerConfig,
    scheduling: SchedulerConfig,
    device: str,
    report: Callable[[str], object] = lambda text: print(text, flush=True),
) -> tuple[Engine, Scheduler]:
    """Load a model, and measure it or read its profile; in the thread that will run it."""
    import torch

    if config.backend != "torch" and device != "cpu":
        raise UserError(f"device: {device!r} is for the backend torch; {config.backend} runs on the CPU")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    engine = load_engine(model, config.subnets, pooling=config.pooling, device=device, dtype=config.dtype, compile=config.compile)
    if config.backend != "torch":
        from .graphs import graph_towers

        options = {"threads": config.threads, "cache_dir": config.cache_dir}
        engine = replace(engine, towers=graph_towers(engine.towers, engine.encoder, config.backend, **options))
        engine.backend = config.backend
    qualities = read_qualities(config.quality, engine.sizes, engine.subnets, report)
    if config.profile is not None and Path(config.profile).exists():
        profile = load_profile(config.profile, engine, qualities)
    else:
        profile = measure_profile(
            engine,
            qualities,
            max_batch_size=scheduling.max_batch_size,
            max_batch_tokens=scheduling.max_batch_tokens,
            budget_seconds=config.profile_seconds,
            report=report,
        )
        if config.profile is not None:
            profile.save(config.profile)
            report(f"written: {config.profile}")
    return engine, Scheduler(CostModel(profile), scheduling)


def to_the_end(app: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """An application that answers 503 where uvicorn gives up at the end: a client has not sent all of its request."""

    async def run(scope: MutableMapping[str, Any], receive: Callable, send: Callable) -> None:
        has_begun = False

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await app(scope, receive, noted)
        except asyncio.CancelledError:
            if not has_begun:
                await refuse(scope["path"], 503, "the server is shutting down", "Unhealthy")(scope, receive, send)

    return run


def bind(host: str, port: int) -> socket.socket:
    """A socket of an address, which does not listen yet.

    Raises:
        UserError: it is in use, or no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise address_error(host, port, error) from error
    return listener


def listen(listener: socket.socket, config: ServerConfig) -> None:
    """Begin to listen; another server may have begun since the socket was bound."""
    try:
        listener.listen(2048)
    except OSError as error:
        raise address_error(config.host, config.port, error) from error


def address_error(host: str, port: int, error: OSError) -> UserError:
    """The error to raise for an address that cannot be listened on."""
    if error.errno == errno.EADDRINUSE:
        return UserError(f"port: {port} of {host} is in use; stop what listens there, or choose another --port")
    return UserError(f"host, port: cannot listen on {host}:{port}: {error.strerror or os.strerror(error.errno or 0)}")


class Server(uvicorn.Server):
    """uvicorn's server, which goes on after the first signal until everything that was accepted is answered.

    New requests get 503 meanwhile. A second signal ends it at once.

    Args:
        config: uvicorn's.
        worker: whose requests are waited for.
    """

    def __init__(self, config: uvicorn.Config, worker: Worker):
        super().__init__(config)
        self.worker, self.interrupted = worker, False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain."""
        if self.worker.is_draining:
            self.should_exit = self.force_exit = True
        self.interrupted = sig == signal.SIGINT
        self.worker.drain()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: end when there is nothing left to answer."""
        if self.worker.is_draining and not self.worker.unanswered:
            await asyncio.sleep(0)  # answers that are ready are written first
            self.should_exit = True
        return await super().on_tick(counter)

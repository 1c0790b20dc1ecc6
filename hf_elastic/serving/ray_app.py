"""More than one machine: the same engine and scheduler in replicas of Ray Serve.

`serve run hf_elastic.serving.ray_app:build model=FOLDER max_replicas=4`. A replica answers a burst from smaller sizes at once;
replicas come only for what lasts.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from ..core.errors import UserError
from ..utils.options import check_integers
from .config import SchedulerConfig
from .metrics import ServingMetrics
from .routes import DEADLINE_HEADER, read
from .run import start
from .server import guard, key_of, make_app, refuse
from .server_config import ServerConfig

ATTEMPTS = 5  # replicas that may die of, or during, one request
RAYS_OWN = {
    "host": "Ray Serve listens; see its http_options",
    "port": "Ray Serve listens; see its http_options",
    "demo": "one server",
}
SCOPE = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers")


@dataclass(kw_only=True)
class RayConfig:
    """What is served, and by how many replicas.

    Raises:
        UserError: a value that is not allowed.
    """

    model: str = field(metadata={"help": "Folder or Hub id, which every machine can read."})
    device: str = field(default="cpu", metadata={"help": "Device for torch; a replica on cuda takes a GPU."})
    min_replicas: int = field(default=1, metadata={"help": "Fewest replicas (count)."})
    max_replicas: int = field(default=1, metadata={"help": "Most replicas (count)."})
    target_ongoing_requests: int = field(
        default=64,
        metadata={"help": "Requests that wait or run in a replica, on average, above which Ray adds replicas (count)."},
    )

    def __post_init__(self):
        check_integers(1, min_replicas=self.min_replicas, target_ongoing_requests=self.target_ongoing_requests)
        check_integers(self.min_replicas, max_replicas=self.max_replicas)


class Replica:
    """A server without a port: model, queue and routes in an actor of Ray."""

    def __init__(self, ray_config: RayConfig, config: ServerConfig, scheduling: SchedulerConfig):
        self.metrics = ServingMetrics()
        service = start(ray_config.model, config, scheduling, ray_config.device, self.metrics)
        self.worker, self.app = service.worker, make_app(service)

    async def answer(self, scope: dict[str, Any], body: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Answer an HTTP request; the task is cancelled when the client leaves.

        Args:
            scope: ASGI's.
            body: all of it.

        Returns:
            Status, headers, body.
        """
        sent: list[dict[str, Any]] = []
        received = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict[str, Any]:
            if (message := next(received, None)) is None:
                await asyncio.Event().wait()
            return message

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.app({**scope, "asgi": {"version": "3.0"}}, receive, send)
        start, *rest = sent
        return start["status"], list(start["headers"]), b"".join(message.get("body", b"") for message in rest)

    async def read_metrics(self) -> tuple[str, str]:
        """Its name and its metrics."""
        return serve.get_replica_context().replica_id.unique_id, self.metrics.text().decode()

    async def check_health(self) -> None:
        """Ray replaces a replica for which this raises."""
        if not self.worker.is_healthy:
            raise RuntimeError("the worker has stopped")


class Gateway:
    """Hands requests to replicas, and to another one when that dies.

    Ray itself tries again only until a replica has accepted a request; if that dies afterwards, Ray's proxy answers 500. An
    answer depends on nothing but its request, so that asking twice does no harm.

    Args:
        replicas: of `Replica`.
        config: whose key, limit of a body and origins hold.
    """

    def __init__(self, replicas: DeploymentHandle, config: ServerConfig):
        self.replicas, self.config = replicas, config

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application that Ray Serve runs."""
        app = FastAPI(openapi_url=None)
        app.add_api_route("/metrics", self.metrics, methods=["GET"])
        app.add_api_route("/{path:path}", self.forward, methods=["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])

        @app.exception_handler(HTTPException)
        async def other(request: Request, error: HTTPException) -> Response:
            return refuse(request.url.path, error.status_code, error.detail, "Validation", error.headers)

        guard(app, self.config)
        return app

    async def forward(self, request: Request) -> Response:
        """A replica's answer."""
        begin, body = time.monotonic(), await request.body()
        scope = {name: request.scope[name] for name in SCOPE if name in request.scope}
        for _ in range(ATTEMPTS):
            try:
                status, headers, content = await self.replicas.answer.remote(scope, body)
            except RayActorError:
                scope["headers"], is_late = with_less_time(request.scope["headers"], time.monotonic() - begin)
                if is_late:
                    return refuse(request.url.path, 504, "the deadline has passed", "Overloaded")
                continue
            response = Response(content, status)
            response.raw_headers = headers
            return response
        return refuse(request.url.path, 424, f"{ATTEMPTS} replicas have died while they had this request", "Backend")

    async def metrics(self) -> Response:
        """Metrics of all replicas; the label `replica` tells them apart."""
        texts = dict(await self.replicas.broadcast("read_metrics").results_async())
        return Response(merge_metrics(texts), media_type="text/plain; version=0.0.4")


def with_less_time(headers: list[tuple[bytes, bytes]], spent: float) -> tuple[list[tuple[bytes, bytes]], bool]:
    """Headers whose deadline is nearer by what is spent (s), and whether it has passed."""
    found, is_late = [], False
    for name, value in headers:
        if name == DEADLINE_HEADER.encode():
            with contextlib.suppress(ValueError):  # refused by whoever reads it
                left = float(value) - 1000 * spent
                value, is_late = str(left).encode(), left <= 0
        found.append((name, value))
    return found, is_late


def merge_metrics(texts: Mapping[str, str]) -> bytes:
    """Metrics of several replicas as one text in Prometheus' format.

    Args:
        texts: by name of a replica.
    """
    families: dict[str, Metric] = {}
    for replica, text in texts.items():
        for one in text_string_to_metric_families(text):
            family = families.setdefault(one.name, Metric(one.name, one.documentation, one.type))
            for sample in one.samples:
                family.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
    registry = CollectorRegistry()
    registry.register(type("Merged", (), {"collect": lambda self: families.values()})())
    return generate_latest(registry)


def build(args: dict[str, Any]) -> Application:
    """The application, for `serve run hf_elastic.serving.ray_app:build`, for Ray's config files, or for `serve.run` in Python.

    Args:
        args: options of `RayConfig`, `ServerConfig` and `SchedulerConfig`.

    Raises:
        UserError: an option that is unknown or not for Ray, or a value that is not allowed.
    """
    if wrong := [name for name in args if name in RAYS_OWN]:
        raise UserError(f"{wrong[0]}: not with Ray: {RAYS_OWN[wrong[0]]}")
    kinds = {kind: {one.name for one in fields(kind)} for kind in (RayConfig, ServerConfig, SchedulerConfig)}
    known = set().union(*kinds.values())
    if unknown := [name for name in args if name not in known]:
        raise UserError(f"{unknown[0]}: unknown option; known: {', '.join(sorted(known - RAYS_OWN.keys()))}")
    ray_config, config, scheduling = (
        read(kind, {name: value for name, value in args.items() if name in names}) for kind, names in kinds.items()
    )
    config.api_key = key_of(config)  # of this machine, for all of them
    actor = {
        "num_cpus": config.threads or 1,
        "num_gpus": int(ray_config.device.startswith("cuda")),
        "runtime_env": {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},  # as the command sets it
    }
    scaling: dict[str, Any] = {"num_replicas": ray_config.min_replicas}
    if ray_config.max_replicas > ray_config.min_replicas:
        names = ("min_replicas", "max_replicas", "target_ongoing_requests")
        scaling = {"autoscaling_config": {name: getattr(ray_config, name) for name in names}}
    # Our queue says when it is full, with 429 and Retry-After, so Ray's limits are never reached before.
    replicas = serve.deployment(Replica, max_ongoing_requests=2 * config.max_queue, ray_actor_options=actor, **scaling)
    gateway = serve.deployment(serve.ingress()(Gateway), name="Gateway", max_ongoing_requests=100_000)
    return gateway.bind(replicas.bind(ray_config, config, scheduling), config)

"""`--demo`: a page that shows how a server changes size under load, and the load."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from time import monotonic
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, Field

from .engine import RERANKER, Row
from .metrics import ServingMetrics
from .scheduler import Batch, Request
from .service import Service
from .worker import DrainingError, OverloadedError

STEP = 0.5  # seconds that a point of the plots stands for
POINTS = 120
TICK = 0.005  # seconds between arrivals, at least
UNSEEN = 15  # seconds after which the load ends when no page looks
MOST_LOAD = 1.5  # times what the smallest size answers of the shortest texts
TEXTS = (
    "how do I cancel my order",
    "my parcel has not arrived yet",
    "the invoice shows the wrong amount",
    "please change the delivery address",
    "I forgot my password",
    "can I pay by bank transfer",
    "the screen stays black after the update",
    "do you ship to islands",
    "what a wonderful film",
    "the soup was cold and the waiter was rude",
    "rain is expected in the north tomorrow",
    "the parliament has passed the new law on water",
)
# Nothing comes from elsewhere, and nothing goes there.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'"


@dataclass
class Step:
    """What happened in one step.

    Attributes:
        came: texts that the load has sent.
        refused: of these, because the queue was full.
        missed: texts that were answered too late.
        answered: texts by size, whoever sent them.
        seconds: from the arrival of each to its answer.
    """

    came: int = 0
    refused: int = 0
    missed: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


class DemoMetrics(ServingMetrics):
    """Counts for the page as well, step by step.

    Args:
        clock: that of the worker.
    """

    def __init__(self, clock: Callable[[], float] = monotonic):
        super().__init__()
        self.clock = clock
        self._lock = threading.Lock()
        self._steps: deque[tuple[int, Step]] = deque(maxlen=POINTS + 1)

    def _now(self) -> Step:
        number = int(self.clock() / STEP)
        if not self._steps or self._steps[-1][0] != number:
            self._steps.append((number, Step()))
        return self._steps[-1][1]

    def on_batch(self, batch: Batch, seconds: float, late: int) -> None:
        """Count a batch; called in the worker's thread."""
        super().on_batch(batch, seconds, late)
        now = self.clock()
        with self._lock:
            step = self._now()
            step.answered[batch.subnet] += len(batch.requests)
            step.missed += late
            step.seconds += [now - request.arrival for request in batch.requests]

    def on_arrival(self, *, refused: bool) -> None:
        """Count a text of the load."""
        with self._lock:
            step = self._now()
            step.came += 1
            step.refused += refused

    def points(self) -> list[dict[str, Any]]:
        """Steps that are over, the oldest first; all counts per second, times in milliseconds."""
        now = int(self.clock() / STEP)
        with self._lock:
            steps = [(number, step) for number, step in self._steps if now - POINTS <= number < now]
            return [
                {
                    "age": (now - number) * STEP,
                    "came": step.came / STEP,
                    "refused": step.refused / STEP,
                    "missed": step.missed / STEP,
                    "answered": {name: count / STEP for name, count in step.answered.items()},
                    "p50": 1000 * float(np.quantile(step.seconds, 0.5)) if step.seconds else None,
                    "p95": 1000 * float(np.quantile(step.seconds, 0.95)) if step.seconds else None,
                }
                for number, step in steps
            ]


class Wanted(BaseModel):
    """The load that a page asks for."""

    rate: Annotated[float, Field(ge=0, allow_inf_nan=False, description="Texts per second.")]
    subnet: str | None = Field(None, description="The size that has to answer; default: any.")


class Load:
    """Sends texts to the queue at random times (Poisson), and does not wait for answers.

    Args:
        service: whose metrics are `DemoMetrics`.
    """

    def __init__(self, service: Service):
        self.service, self.metrics = service, service.metrics
        costs, config = service.scheduler.costs, service.scheduler.config
        batch, length = config.max_batch_size, costs.profile.lengths[0]
        self.most = MOST_LOAD * batch / costs.seconds(costs.profile.names[-1], batch, length)
        texts = TEXTS if service.engine.kind != RERANKER else [(TEXTS[0], text) for text in TEXTS]
        self.rows = [Row(tokens) for tokens in service.engine.encoder.encode(texts, truncate=True)]
        self.wanted = Wanted(rate=0)
        self.seen = self.metrics.clock()
        self._task: asyncio.Task | None = None

    def set(self, wanted: Wanted) -> None:
        """Change the load; a rate above the highest is the highest.

        Raises:
            UserError: no such size.
        """
        self.service.scheduler.check(Request(0, 0.0, 1, subnet=wanted.subnet))
        self.seen = self.metrics.clock()
        self.wanted = Wanted(rate=min(wanted.rate, self.most), subnet=wanted.subnet)
        if self.wanted.rate and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        generator, last = np.random.default_rng(), self.metrics.clock()
        while self.wanted.rate:
            await asyncio.sleep(TICK)
            now = self.metrics.clock()
            if now - self.seen > UNSEEN:
                self.wanted = Wanted(rate=0)
            for place in generator.integers(len(self.rows), size=generator.poisson(self.wanted.rate * (now - last))):
                self._send(self.rows[place])
            last = now

    def _send(self, row: Row) -> None:
        try:
            self.service.worker.submit([row], subnet=self.wanted.subnet)
        except OverloadedError:
            self.metrics.on_arrival(refused=True)
        except DrainingError:
            self.wanted = Wanted(rate=0)
        else:
            self.metrics.on_arrival(refused=False)


def demo_routes(router: APIRouter, service: Service) -> None:
    """The page, what it shows, and the load that it asks for."""
    load, metrics = Load(service), service.metrics
    engine, scheduler = service.engine, service.scheduler
    page = files("hf_elastic.serving").joinpath("demo.html").read_text(encoding="utf-8")

    @router.get("/demo", include_in_schema=False)
    async def demo() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    @router.get("/demo/state", include_in_schema=False)
    async def state() -> dict[str, Any]:
        load.seen = metrics.clock()
        return {
            "model": engine.name,
            "kind": engine.kind,
            "policy": scheduler.config.policy,
            "objective": scheduler.config.latency_objective,
            "sizes": [{"name": size.name, "quality": size.quality} for size in scheduler.costs.profile.sizes],
            "texts": TEXTS,
            "most": load.most,
            "load": load.wanted,
            "waiting": service.worker.waiting,
            "step": STEP,
            "span": STEP * POINTS,
            "points": metrics.points(),
        }

    @router.put("/demo/load", include_in_schema=False)
    async def change(wanted: Wanted) -> Wanted:
        load.set(wanted)
        return load.wanted

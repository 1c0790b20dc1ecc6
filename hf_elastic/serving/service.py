"""Between HTTP and the worker: tokens of a request, its place in the queue, its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Header, Request

from ..core.configuration_elastic import FULL
from ..core.errors import UserError
from ..retrieval.fingerprint import DOCUMENT_PROMPTS
from .engine import Engine, Row
from .metrics import ServingMetrics
from .scheduler import Scheduler
from .server_config import ServerConfig
from .tokens import EmptyError, InputError, Text, Tokens
from .worker import Answer, Worker

# Shorter requests are tokenized at once: handing them to another thread takes longer.
INLINE = 5000  # characters


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a request asks of whoever answers it.

    Attributes:
        subnet: the size.
        seconds: how long the answer is worth something.
        min_quality: the least quality of the size.
        priority: see `scheduler.Request`.
    """

    subnet: str | None = None
    seconds: float | None = None
    min_quality: float | None = None
    priority: int = 0


async def wishes(
    x_elastic_subnet: Annotated[str | None, Header(description="The size that has to answer; default: any.")] = None,
    x_elastic_deadline_ms: Annotated[
        float | None,
        Header(description="Milliseconds after which no answer is wanted.", gt=0, allow_inf_nan=False),
    ] = None,
    x_elastic_min_quality: Annotated[
        float | None, Header(description="The least quality of the size that answers.", allow_inf_nan=False)
    ] = None,
    x_elastic_priority: Annotated[
        int, Header(description="Latency objectives by which it goes before others.", ge=-10, le=10)
    ] = 0,
) -> Wishes:
    """The headers of a request that are ours."""
    seconds = None if x_elastic_deadline_ms is None else x_elastic_deadline_ms / 1000
    return Wishes(x_elastic_subnet, seconds, x_elastic_min_quality, x_elastic_priority)


class Service:
    """A loaded model behind a queue.

    Args:
        worker: ready.
        config: limits.
        metrics: what is counted.

    Attributes:
        on_answer: is told each answer, in the task of its request.
    """

    def __init__(self, worker: Worker, config: ServerConfig, metrics: ServingMetrics):
        self.worker, self.config, self.metrics = worker, config, metrics
        self.on_answer: Callable[[Answer], object] = lambda answer: None
        ready: tuple[Engine, Scheduler] = worker.ready.result()
        self.engine, self.scheduler = ready
        metrics.start(worker, self.engine, self.scheduler)

    def check(self, texts: Sequence[Text], name: str = "inputs") -> None:
        """Refuse a request without texts, with an empty one (of a pair only one may be empty), or with too many.

        Raises:
            EmptyError: names the field.
            InputError: names both numbers.
        """
        if not texts or not all(any(text) if isinstance(text, tuple) else text for text in texts):
            raise EmptyError(name)
        if len(texts) > self.config.max_client_batch_size:
            raise InputError(f"batch size {len(texts)} > maximum allowed batch size {self.config.max_client_batch_size}")

    def prompt(self, name: str | None) -> str:
        """A prompt by its name.

        Raises:
            InputError: there is none of that name.
        """
        name = self.engine.default_prompt if name is None else name
        if name is None:
            return ""
        if name not in self.engine.prompts:
            raise InputError(f"`prompt_name`: {name!r} is unknown; known: {', '.join(self.engine.prompts) or 'none'}")
        return self.engine.prompts[name]

    async def encode(
        self, texts: Sequence[Text], *, prompt_name: str | None = None, truncate: bool | None = None, direction: str = "right"
    ) -> list[Tokens]:
        """The tokens of the texts of a request; errors are those of `check`, `prompt` and `TextEncoder.encode`."""
        self.check(texts)
        prompt = self.prompt(prompt_name)
        truncate = self.config.auto_truncate if truncate is None else truncate

        def run() -> list[Tokens]:
            return self.engine.encoder.encode(texts, prompt=prompt, truncate=truncate, direction=direction)

        if sum(len(part) for text in texts for part in (text if isinstance(text, tuple) else (text,))) < INLINE:
            return run()
        return await asyncio.get_running_loop().run_in_executor(None, run)

    def for_prompt(self, wanted: Wishes, prompt_name: str | None) -> Wishes:
        """Documents of an asymmetric model are for the full size.

        Raises:
            UserError: another size is asked for.
        """
        if not self.engine.documents_at_full or prompt_name not in DOCUMENT_PROMPTS:
            return wanted
        if wanted.subnet not in (None, FULL):
            raise UserError(f"subnet: {wanted.subnet!r} for documents, which this model encodes at the full size only")
        return replace(wanted, subnet=FULL)

    async def answer(self, request: Request, rows: Sequence[Row], wanted: Wishes) -> Answer:
        """Wait in the queue, and for the model; give up when the client leaves.

        Raises:
            ClientGoneError: it has left.
            OverloadedError, DrainingError, DeadlineError, BackendError, UserError: see `Worker.submit`.
        """
        begin = self.worker.clock()
        future: Future[Answer] = self.worker.submit(
            rows,
            subnet=wanted.subnet,
            min_quality=wanted.min_quality,
            deadline=None if wanted.seconds is None else begin + wanted.seconds,
            priority=wanted.priority,
        )
        answered, left = asyncio.wrap_future(future), asyncio.ensure_future(_disconnect(request))
        try:
            await asyncio.wait({answered, left}, return_when=asyncio.FIRST_COMPLETED)
            if not answered.done():
                raise ClientGoneError
            answer = answered.result()
        finally:
            left.cancel()
            answered.cancel()
        self.metrics.latency.labels(answer.subnet).observe(self.worker.clock() - begin)
        self.on_answer(answer)
        return answer


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

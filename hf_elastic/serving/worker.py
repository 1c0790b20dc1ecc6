"""The one thread that runs the model, and the queue before it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field, replace

from ..utils.memory import give_back_memory
from .engine import Engine, Output, Row
from .scheduler import Batch, Request, Scheduler

logger = logging.getLogger(__name__)
RATE_WEIGHT = 0.2  # of the last batch in the mean rate
TIDY_EVERY = 2.0  # seconds; it takes about 2 milliseconds, and batches after it are no slower


class OverloadedError(Exception):
    """The queue has no room for so many texts now.

    Args:
        retry_after: seconds after which it probably has.
    """

    def __init__(self, retry_after: int):
        super().__init__("the queue is full")
        self.retry_after = retry_after


class DrainingError(Exception):
    """Nothing is accepted any more."""


class DeadlineError(Exception):
    """The deadline of a request has passed before it was answered."""


class BackendError(Exception):
    """The model has failed on a batch."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request gets: all of it from one size.

    Attributes:
        subnet: name of that size.
        outputs: one for each text.
        waited: seconds from the request until the last of its batches began.
    """

    subnet: str
    outputs: list[Output]
    waited: float


@dataclass(eq=False)
class Job:
    """A request of one or more texts that is waiting or running. Its future gives the `Answer`; cancelling it gives it up."""

    rows: Sequence[Row]
    future: Future = field(default_factory=Future)
    outputs: dict[int, Output] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)


class Worker:
    """Loads a model in a thread of its own, and runs there whatever the scheduler says.

    The model is made, warmed up, profiled and run in that one thread: with OpenMP each thread that runs a model gets a team
    of threads, and two teams on the same cores get into each other's way. Changing the size needs no lock: nobody else runs
    the model.

    The queue is counted in texts: a request of eight takes as much room as eight requests of one, and waits or is refused as
    they are.

    Args:
        make: gives the engine and the scheduler; called in the thread.
        max_queue: the most texts that wait.
        on_batch: is told of each batch, how many seconds it took, and how many of its texts were late.
        clock: gives seconds.
    """

    def __init__(
        self,
        make: Callable[[], tuple[Engine, Scheduler]],
        *,
        max_queue: int,
        on_batch: Callable[[Batch, float, int], object] = lambda batch, seconds, late: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.max_queue, self.clock = max_queue, clock
        self.ready: Future[tuple[Engine, Scheduler]] = Future()
        self._make, self._on_batch = make, on_batch
        self._changed = threading.Condition()
        self._waiting: dict[int, tuple[Request, Job, int]] = {}
        self._jobs: set[Job] = set()
        self._numbers = itertools.count()
        self._is_draining = self._is_closed = False
        self._rate: float | None = None  # texts per second
        self._tidied = clock()
        self._thread = threading.Thread(target=self._main, name="hf-elastic-worker", daemon=True)

    def start(self) -> Worker:
        """Begin to load; `ready` has the engine and the scheduler, or the error."""
        self._thread.start()
        return self

    @property
    def is_healthy(self) -> bool:
        """Whether requests are taken and answered."""
        return self._thread.is_alive() and self.ready.done() and not self._is_draining

    @property
    def is_draining(self) -> bool:
        """Whether nothing is accepted any more."""
        return self._is_draining

    @property
    def waiting(self) -> int:
        """How many texts wait."""
        return len(self._waiting)

    @property
    def unanswered(self) -> int:
        """How many requests wait or run."""
        return len(self._jobs)

    def submit(
        self,
        rows: Sequence[Row],
        *,
        subnet: str | None = None,
        min_quality: float | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> Future[Answer]:
        """Put a request into the queue; may be called from any thread.

        Args:
            rows: its texts, at least one.
            subnet: the size that has to answer it.
            min_quality: the least quality of that.
            deadline: on the worker's clock; after it nothing is answered.
            priority: see `Request`.

        Returns:
            A future. All texts of a request are answered at one size: that of the first batch that has some of them.

        Raises:
            OverloadedError: there is no room for all of them.
            DrainingError: nothing is accepted any more.
            UserError: no such size or quality.
        """
        _, scheduler = self.ready.result()
        job, arrival = Job(rows), self.clock()
        requests = [
            Request(next(self._numbers), arrival, len(row.tokens), deadline, subnet, min_quality, priority) for row in rows
        ]
        scheduler.check(requests[0])
        with self._changed:
            if self._is_draining or not self._thread.is_alive():
                raise DrainingError("the server is shutting down")
            if (room := self.max_queue - len(self._waiting)) < len(rows):
                raise OverloadedError(self._retry_after(len(rows) - room))
            self._waiting |= {request.id: (request, job, place) for place, request in enumerate(requests)}
            job.ids = [request.id for request in requests]
            self._jobs.add(job)
            self._changed.notify_all()
        job.future.add_done_callback(lambda _: self._forget(job))
        return job.future

    def _retry_after(self, missing: int) -> int:
        """Whole seconds until so many texts have been answered at the rate of late; at least one."""
        return 1 if not self._rate else max(1, math.ceil(missing / self._rate))

    def _forget(self, job: Job) -> None:
        with self._changed:
            for number in job.ids:
                self._waiting.pop(number, None)
            self._jobs.discard(job)
            self._changed.notify_all()

    def drain(self) -> None:
        """Accept nothing any more; what was accepted is answered."""
        with self._changed:
            self._is_draining = True
            self._changed.notify_all()

    def close(self) -> None:
        """Drain, and end the thread when everything is answered."""
        self.drain()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def _main(self) -> None:
        try:
            engine, scheduler = self._make()
        except BaseException as error:
            self.ready.set_exception(error)
            return
        self.ready.set_result((engine, scheduler))
        try:
            while self._step(engine, scheduler):
                pass
        except BaseException as error:
            for job in list(self._jobs):
                _fail(job, BackendError(f"the worker has stopped: {type(error).__name__}"))
            raise

    def _step(self, engine: Engine, scheduler: Scheduler) -> bool:
        """Wait for work and do some; False when there is none left and the worker is closed."""
        with self._changed:
            while not self._waiting and not self._is_closed:
                self._changed.wait()
            if not self._waiting:
                return False
            queue = [request for request, _, _ in self._waiting.values()]
        begin = self.clock()
        decision = scheduler.next(begin, queue)
        for request in decision.expired:
            if (entry := self._waiting.get(request.id)) is not None:
                _fail(entry[1], DeadlineError("the deadline has passed"))
        if decision.batch is not None and (entries := self._take(decision.batch)):
            self._run(engine, scheduler, decision.batch.subnet, entries, begin)
        return True

    def _take(self, batch: Batch) -> list[tuple[Request, Job, int]]:
        """Take a batch out of the queue, but for what was cancelled meanwhile; the rest of its requests is for its size."""
        with self._changed:
            entries = [entry for request in batch.requests if (entry := self._waiting.pop(request.id, None)) is not None]
            for _, job, _ in entries:
                for number in job.ids:
                    if (left := self._waiting.get(number)) is not None and left[0].subnet is None:
                        self._waiting[number] = (replace(left[0], subnet=batch.subnet), *left[1:])
        return entries

    def _run(
        self, engine: Engine, scheduler: Scheduler, subnet: str, entries: list[tuple[Request, Job, int]], begin: float
    ) -> None:
        """Run a batch and hand out its answers. What that takes, and the decision before it, is part of its duration."""
        requests = tuple(request for request, _, _ in entries)
        try:
            outputs = engine.run(subnet, [job.rows[place] for _, job, place in entries])
        except Exception as error:  # such as too little memory: this batch fails, and the next one may not
            logger.exception("a batch of %d texts has failed at the size %s", len(entries), subnet)
            for _, job, _ in entries:
                _fail(job, BackendError(f"the model has failed: {type(error).__name__}"))
            return
        for (_, job, place), output in zip(entries, outputs):
            job.outputs[place] = output
        for job, arrival in {id(job): (job, request.arrival) for request, job, _ in entries}.values():
            if len(job.outputs) == len(job.rows):
                _finish(job, Answer(subnet, [job.outputs[place] for place in range(len(job.rows))], begin - arrival))
        end = self.clock()
        batch = Batch(requests, subnet, end - begin)
        scheduler.observe(batch, end - begin)
        rate = len(entries) / max(end - begin, 1e-9)
        self._rate = rate if self._rate is None else self._rate + RATE_WEIGHT * (rate - self._rate)
        self._on_batch(batch, end - begin, sum(end > scheduler.due(request) for request in requests))
        if end - self._tidied > TIDY_EVERY:  # batches of all shapes leave holes, and the process would grow for hours
            self._tidied = end
            give_back_memory()


def _finish(job: Job, answer: Answer) -> None:
    with contextlib.suppress(InvalidStateError):  # cancelled while it ran
        job.future.set_result(answer)


def _fail(job: Job, error: Exception) -> None:
    with contextlib.suppress(InvalidStateError):
        job.future.set_exception(error)

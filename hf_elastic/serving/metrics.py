"""What a server tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .engine import Engine
from .scheduler import Batch, Scheduler
from .worker import Worker

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128)


class ServingMetrics:
    """Counters of one server, in a registry of their own.

    Names begin with `hf_elastic_`; times are in seconds.
    """

    def __init__(self):
        self.registry = CollectorRegistry()
        shared = {"registry": self.registry, "namespace": "hf_elastic"}
        self.requests = Counter("requests", "Requests by route and status.", ["route", "status"], **shared)
        self.latency = Histogram(
            "request_seconds", "From a request to its answer, by size.", ["subnet"], buckets=SECONDS, **shared
        )
        self.texts = Counter("texts", "Texts that were answered, by size.", ["subnet"], **shared)
        self.batch_seconds = Histogram(
            "batch_seconds", "How long the model took, by size.", ["subnet"], buckets=SECONDS, **shared
        )
        self.batch_texts = Histogram("batch_texts", "Texts of a batch, by size.", ["subnet"], buckets=TEXTS, **shared)
        self.switches = Counter("switches", "Batches at another size than the one before.", **shared)
        # Those that were not run for that are requests with status 504.
        self.missed = Counter("deadline_misses", "Texts that were answered too late.", **shared)
        self.queue = Gauge("queue_texts", "Texts that wait.", **shared)
        self.correction = Gauge(
            "cost_correction", "Observed time of a batch over the predicted one, by size.", ["subnet"], **shared
        )
        self._last: str | None = None

    def start(self, worker: Worker, engine: Engine, scheduler: Scheduler) -> None:
        """Follow the queue and the cost model, and show each size from the beginning."""
        self.queue.set_function(lambda: worker.waiting)
        for name in engine.sizes:
            for metric in (self.latency, self.texts, self.batch_seconds, self.batch_texts):
                metric.labels(name)
            self.correction.labels(name).set_function(lambda name=name: scheduler.costs.correction[name])

    def on_batch(self, batch: Batch, seconds: float, late: int) -> None:
        """Count a batch; called in the worker's thread."""
        self.batch_seconds.labels(batch.subnet).observe(seconds)
        self.batch_texts.labels(batch.subnet).observe(len(batch.requests))
        self.texts.labels(batch.subnet).inc(len(batch.requests))
        self.missed.inc(late)
        if self._last not in (None, batch.subnet):
            self.switches.inc()
        self._last = batch.subnet

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        return generate_latest(self.registry)

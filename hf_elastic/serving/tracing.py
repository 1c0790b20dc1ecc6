"""OpenTelemetry: a span for each request, with nothing of what was sent."""

from __future__ import annotations

import os

from fastapi import FastAPI

from ..graphs.exporters import missing_extra
from .routes import VERSION
from .service import Service
from .worker import Answer

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.metrics import NoOpMeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import get_current_span
except ImportError as error:
    raise missing_extra(error, "otlp_endpoint", "hf-elastic[otel]") from error

UNTRACED = "/health$,/metrics$,/demo"


def trace_requests(app: FastAPI, service: Service, endpoint: str) -> None:
    """Send a span for each request to a collector; those that are left go out when the process ends.

    A span has the size that answered, and for how many seconds the request waited until the last of its batches began. It
    continues the trace of the header `traceparent`. The variable `OTEL_SERVICE_NAME` renames the service.

    Args:
        app: whose requests.
        service: which answers them.
        endpoint: base URL of the collector's OTLP over HTTP.
    """
    name = os.environ.get("OTEL_SERVICE_NAME", "hf-elastic")
    provider = TracerProvider(resource=Resource.create({"service.name": name, "service.version": VERSION}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")))
    FastAPIInstrumentor.instrument_app(
        app,
        tracer_provider=provider,
        meter_provider=NoOpMeterProvider(),
        excluded_urls=UNTRACED,
        exclude_spans=["receive", "send"],
    )
    service.on_answer = note


def note(answer: Answer) -> None:
    """Write an answer's size and wait into the span of its request."""
    get_current_span().set_attributes({"hf_elastic.subnet": answer.subnet, "hf_elastic.wait_seconds": answer.waited})

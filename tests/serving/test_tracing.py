"""Spans of requests at a real collector's port."""

import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from served import Client, save, serving_process

import hf_elastic_cli
from hf_elastic.core.errors import UserError
from hf_elastic.serving.server_config import ServerConfig

pytestmark = pytest.mark.one_lane


@contextmanager
def collector():
    """A port that takes spans: gives its URL, and what came, as path and bytes."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *given):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_spans(tmp_path, monkeypatch):
    pytest.importorskip("opentelemetry.instrumentation.fastapi")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "none")
    with (
        collector() as (endpoint, received),
        serving_process(save("symmetric", tmp_path), "--otlp_endpoint", f"{endpoint}/") as (url, process),
        Client(url) as client,
    ):
        asked = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "x-elastic-subnet": "tiny"}
        assert client.post("/embed", json={"inputs": ["word1 xyzzy", "word2"]}, headers=asked).status_code == 200
        assert client.post("/embed", json={"inputs": "word1 xyzzy", "prompt_name": "none"}).status_code == 413
        assert client.get("/health").status_code == client.get("/metrics").status_code == 200
        process.terminate()
        assert process.wait(60) == 0
    assert {path for path, _ in received} == {"/v1/traces"} and not any(b"xyzzy" in content for _, content in received)
    requests = [ExportTraceServiceRequest.FromString(content) for _, content in received]
    scopes = [scope for one in requests for resource in one.resource_spans for scope in resource.scope_spans]
    first, second = [span for scope in scopes for span in scope.spans]
    assert first.name == second.name == "POST /embed"
    assert first.trace_id.hex() == "ab" * 16 and first.parent_span_id.hex() == "cd" * 8
    answered, refused = ({one.key: one.value for one in span.attributes} for span in (first, second))
    assert answered["hf_elastic.subnet"].string_value == "tiny"
    seconds = (first.end_time_unix_nano - first.start_time_unix_nano) / 1e9
    assert 0 < answered["hf_elastic.wait_seconds"].double_value < seconds
    assert refused["http.status_code"].int_value == 413 and "hf_elastic.subnet" not in refused
    names = {one.key: one.value.string_value for one in requests[0].resource_spans[0].resource.attributes}
    assert names["service.name"] == "hf-elastic"


def test_what_is_not_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "hf_elastic.serving.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert hf_elastic_cli.main(["serve", str(tmp_path), "--otlp_endpoint", "http://127.0.0.1:4318"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hf-elastic: error: otlp_endpoint needs opentelemetry.")
    assert line.endswith("which is not installed: run pip install 'hf-elastic[otel]'")


def test_what_is_no_url():
    with pytest.raises(UserError, match="otlp_endpoint must begin with http:// or https://, got"):
        ServerConfig(otlp_endpoint="127.0.0.1:4318")

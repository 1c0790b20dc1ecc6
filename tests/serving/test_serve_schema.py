"""Whatever fits the OpenAPI schema, or nearly does, gets an answer that the schema knows."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from served import save, serving

pytest.importorskip("schemathesis")
pytestmark = [pytest.mark.one_lane, pytest.mark.slow]

# Deadlines that pass are a status of 504, so server errors are counted below.
CHECKS = "status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method"


@pytest.mark.parametrize("kind", ["symmetric", "ranker"])
def test_no_request_breaks_the_server(kind, tmp_path):
    program = shutil.which("schemathesis", path=Path(sys.executable).parent)
    options = ["--checks", CHECKS, "--max-examples", "20", "--seed", "1", "--no-color", "--generation-database", "none"]
    with serving(save(kind, tmp_path)) as (client, worker):
        command = [program, "run", f"{client.url}/openapi.json", *options]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=500)
        assert result.returncode == 0, result.stdout[-6000:]
        lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith("hf_elastic_requests_total")]
        statuses = {line.partition('status="')[2][:3] for line in lines}
        assert {"200", "422"} < statuses and {one for one in statuses if one >= "424"} <= {"504"}
        assert client.get("/health").status_code == 200 and worker.waiting == worker.unanswered == 0

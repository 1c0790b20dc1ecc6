"""Whatever fits the OpenAPI schema, or nearly does, gets an answer that the schema knows."""

import pytest
from served import save, serving

schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, Phase, settings

pytestmark = [pytest.mark.one_lane, pytest.mark.slow]

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


@pytest.mark.parametrize("kind", ["symmetric", "ranker"])
def test_no_request_breaks_the_server(kind, tmp_path):
    checks = [schemathesis.checks.CHECKS.get_one(name) for name in CHECKS]
    with serving(save(kind, tmp_path)) as (client, _):
        schema = schemathesis.openapi.from_url(f"{client.url}/openapi.json")
        tried = {}
        for result in schema.get_all_operations():
            operation = result.ok()

            @settings(max_examples=60, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
                      suppress_health_check=list(HealthCheck))  # fmt: skip
            @operation_given(operation)
            def ask(case):
                response = case.call(base_url=client.url)
                tried.setdefault(operation.path, set()).add(response.status_code)
                case.validate_response(response, checks=checks)

            ask()
        assert 200 in tried["/tokenize"] and 422 in tried["/tokenize"] and client.get("/health").status_code == 200


def operation_given(operation):
    """Cases that fit the schema of an operation, and cases that do not."""
    from hypothesis import given

    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    strategies = [operation.as_strategy(generation_mode=mode) for mode in modes]
    return given(case=strategies[0] | strategies[1])

"""The OpenAPI schema, held against the server: what it allows is answered in the shape it says."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from tests.serving.server import HTTP, NAME, Running

CHECKS = [not_a_server_error, response_schema_conformance, status_code_conformance]


def described(server: Running) -> Any:
    """The schema as the server gives it, with short answers of the model that exists."""
    document = HTTP.get(f"{server.url}/openapi.json").json()
    for name in ("ChatRequest", "CompletionRequest"):
        properties = document["components"]["schemas"][name]["properties"]
        properties["model"] = {"const": NAME}
        properties["n"] = {"enum": [1, 2]}
        for limit in {"max_tokens", "max_completion_tokens"} & properties.keys():
            properties[limit] = {"const": 1}
    found = schemathesis.openapi.from_dict(document)
    found.config.update(base_url=server.url)
    return found


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/health"),
    ],
)
def test_the_schema_holds(server: Running, method: str, path: str) -> None:
    operation = described(server)[path][method]

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def holds(case: Any) -> None:
        case.validate_response(case.call(), checks=CHECKS)

    holds()
    assert server.service.status == "ok"

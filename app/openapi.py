from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import FastAPI

from app.outcomes import OutcomesIn, OutcomesOut
from app.predict import Answer
from app.watcher import Watcher
from mlops.rows import moment_schema

_REFUSALS = {"401": "no valid API key", "403": "wrong scope", "429": "rate limit", "503": "overloaded, or no model"}
_INVALID = {"413": "too large", "422": "a field is invalid"}


def openapi(pages: FastAPI, generate: Callable[[], dict[str, Any]], watcher: Watcher) -> dict[str, Any]:
    """FastAPI's schema, and the routes past it: `/predict` as the served contract defines it, `/outcomes`."""
    pages.openapi_schema = None  # that contract may have changed
    schema: Any = generate()
    request = [watcher.live.model.schema.Request] if watcher.live else []
    (answer, received, sent, *asked), components = msgspec.json.schema_components(
        [Answer, OutcomesOut, OutcomesIn, *request],
        schema_hook=moment_schema,
        ref_template="#/components/schemas/{name}",
    )
    schema.setdefault("components", {}).setdefault("schemas", {}).update(components)
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{"key": []}]
    schema["paths"] = {
        "/predict": {"post": _post("predictions", "Predict one row or many", (asked or [{}])[0], answer)},
        "/outcomes": {"post": _post("outcomes", "Report the true values of earlier predictions", sent, received)},
        **schema["paths"],
    }
    for operations in schema["paths"].values():
        for each in operations.values():
            for status, text in _REFUSALS.items():
                each["responses"].setdefault(status, {"description": text})
    return schema


def _post(tag: str, summary: str, body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {status: {"description": text} for status, text in _INVALID.items()}
    responses["200"] = {"description": "One for each", "content": {"application/json": {"schema": answer}}}
    content = {"required": True, "content": {"application/json": {"schema": body}}}
    return {"tags": [tag], "summary": summary, "requestBody": content, "responses": responses}

"""Holds requests to GitHub, and our own answers, against GitHub's OpenAPI description (github.json, see cut_openapi.py)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator

WHOLE = json.loads((Path(__file__).parent / "github.json").read_text())
OPERATIONS: dict[str, dict[str, Any]] = WHOLE["operations"]
SLASHES = ("ref", "path", "basehead")  # parameters that may hold some
PATHS = {
    name: re.compile(re.sub(r"\\{(\w+)\\}", lambda m: f"(?P<{m[1]}>{'.+' if m[1] in SLASHES else '[^/]+'})", re.escape(each["path"])))
    for name, each in OPERATIONS.items()
}  # fmt: skip
NONE = object()


def find(verb: str, path: str) -> tuple[str, dict[str, str]] | None:
    """The operation and its path's parameters; of several the most literal."""
    found = [
        (name, match.groupdict())
        for name, pattern in PATHS.items()
        if OPERATIONS[name]["verb"] == verb and (match := pattern.fullmatch(path))
    ]
    return min(found, key=lambda each: OPERATIONS[each[0]]["path"].count("{"), default=None)


@cache
def _validator(schema: str) -> Validator:
    return Draft202012Validator(json.loads(schema) | {"$defs": WHOLE["$defs"]})


def _wrong(schema: dict[str, Any], value: Any, where: str) -> list[str]:
    errors = _validator(json.dumps(schema)).iter_errors(value)
    return [f"{where}{each.json_path[1:]}: {each.message[:200]}" for each in errors] + [
        *_unknown([schema], value, where)
    ]


def _flat(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schema with all its references and alternatives."""
    if "$ref" in schema:
        yield from _flat(WHOLE["$defs"][schema["$ref"].rpartition("/")[2]])
    yield schema
    for each in (each for key in ("allOf", "anyOf", "oneOf") for each in schema.get(key, ())):
        yield from _flat(each)


def _unknown(schemas: list[dict[str, Any]], value: Any, where: str) -> Iterator[str]:
    """Fields that the description does not name: it leaves objects open, GitHub ignores them without a word."""
    flat = [each for schema in schemas for each in _flat(schema)]
    if isinstance(value, list):
        for n, item in enumerate(value):
            yield from _unknown([each["items"] for each in flat if "items" in each], item, f"{where}[{n}]")
    elif isinstance(value, dict) and any("properties" in each for each in flat):
        closed = not any(each.get("additionalProperties") for each in flat)
        for name, item in value.items():
            if named := [each["properties"][name] for each in flat if name in each.get("properties", {})]:
                yield from _unknown(named, item, f"{where}.{name}")
            elif closed:
                yield f"{where}.{name}: GitHub knows no such field"


def _typed(schema: dict[str, Any], text: str) -> Any:
    kinds = {kind for each in _flat(schema) for kind in (each.get("type", ()),) if isinstance(kind, str)}
    if "array" in kinds:
        return text.split(",")
    if "boolean" in kinds and text in ("true", "false"):
        return text == "true"
    return int(text) if kinds & {"integer", "number"} and text.isdigit() else text


def asked(operation: str, path: dict[str, str], query: dict[str, str], body: Any) -> list[str]:
    """What is wrong with a request."""
    told, found = OPERATIONS[operation], []
    for each in told["parameters"]:
        given = {"path": path, "query": query}.get(each["in"], {})
        if each["name"] in given:
            found += _wrong(each["schema"], _typed(each["schema"], given[each["name"]]), each["name"])
        elif each["required"] and each["in"] == "query":
            found.append(f"{each['name']}: missing")
    known = {each["name"] for each in told["parameters"] if each["in"] == "query"}
    found += [f"{name}: GitHub knows no such parameter" for name in query.keys() - known]
    if body is None:
        return found + (["body: missing"] if told["body_required"] else [])
    return found + (["body: none is expected"] if told["body"] is None else _wrong(told["body"], body, "body"))


def success(operation: str) -> int:
    return min(int(code) for code in OPERATIONS[operation]["answers"] if code.startswith("2"))


def answered(operation: str, status: int, value: Any) -> list[str]:
    """What is wrong with an answer of ours."""
    answers = OPERATIONS[operation]["answers"]
    if str(status) not in answers:
        return [] if status >= 400 and {*value} >= {"message"} else [f"answer: {status} is none of {[*answers]}"]
    schema = answers[str(status)]
    if schema is None:
        return [] if value is None else [f"answer: {status} has no body"]
    return _wrong(schema, value, "answer")


def complete(operation: str, status: int, value: Any) -> Any:
    """The answer with all that GitHub always tells and nobody here asks for, as empty as its type allows."""
    schema = OPERATIONS[operation]["answers"].get(str(status))
    return _fill(schema, value) if schema else value


def _fill(schema: dict[str, Any], value: Any = NONE) -> Any:
    if "$ref" in schema:
        return _fill(WHOLE["$defs"][schema["$ref"].rpartition("/")[2]], value)
    kinds = schema.get("type", "object" if "properties" in schema else ())
    if value is NONE and not schema.keys() & {"allOf", "anyOf", "oneOf"}:
        if "null" in kinds or not kinds:
            return None
        empty = {"object": {}, "array": [], "string": "", "integer": 0, "number": 0, "boolean": False}
        value = schema["enum"][0] if "enum" in schema else empty[kinds if isinstance(kinds, str) else kinds[0]]
    for each in schema.get("allOf", ()):
        value = _fill(each, value)
    for alternatives in (schema[key] for key in ("anyOf", "oneOf") if key in schema):
        filled = [_fill(each, value) for each in reversed(alternatives)]  # null stands last
        value = next((each for each in filled if _validator(json.dumps(schema)).is_valid(each)), value)
    if isinstance(value, list) and "items" in schema:
        return [_fill(schema["items"], each) for each in value]
    if isinstance(value, dict):
        fields = schema.get("properties", {})
        needed = [*value, *(each for each in schema.get("required", ()) if each not in value)]
        return value | {name: _fill(fields[name], value.get(name, NONE)) for name in needed if name in fields}
    return value

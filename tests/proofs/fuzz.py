"""Bad input of every kind against the running app: no 5xx, 422 names the field, memory stays."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from mlops import promotion
from tests import synthetic
from tests.service import BODY, Service
from tests.service import environment as make_environment

MEMORY_GROWTH = 0.10
_ROW = json.dumps(synthetic.request())


def with_value(field: str, raw: str) -> bytes:
    """A request of one row, in which that field is this text, JSON or not."""
    row = synthetic.request()
    row.pop(field, None)
    return f'{{"rows":[{json.dumps(row)[:-1]}, {json.dumps(field)}: {raw}}}]}}'.encode()


def nasty() -> Iterator[tuple[str, bytes, int]]:
    """What no schema generates: a name, a body, the status that it deserves."""
    good = f'{{"rows":[{_ROW}]}}'
    for number in (
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "-1e999",
        "1" * 5_000,
        "0x10",
        "1_000",
        "01",
        "+1",
        ".5",
        "1.",
        "--1",
    ):
        yield f"number {number[:10]}", with_value("size", number), 422
    for text in ('"\\ud800"', '"\\udc00\\ud800"', '"\\u00"', '"\t"', '"\\x41"', "'red'", "red", '"red'):
        yield f"text {text}", with_value("color", text), 422
    for field in (
        "²",
        "١",
        "a`b",
        " - at `$.rows[0].size",
        "x" * 100_000,
        "\u0000",
        "__class__",
        "$.rows[0]",
        "[0]",
        "%s%n",
        "'; drop",
    ):
        yield f"field {field[:10]!r}", with_value(field, "1"), 422
    for text in ("", "\u0000", "²", "🦊" * 50, "\u202e", "${jndi:x}", "%s", "a" * 200):
        yield f"category {text[:5]!r}", with_value("color", json.dumps(text)), 200
    for depth in (100, 10_000, 250_000):
        for opening, closing in (("[", "]"), ('{"a":', "}")):
            yield f"{depth} deep {opening}", (opening * depth + closing * depth).encode(), 422
            yield f"rows {depth} deep {opening}", ('{"rows":' + opening * depth + closing * depth + "}").encode(), 422
            yield f"unclosed {depth} deep {opening}", (opening * depth).encode(), 422
    for encoding in ("utf-16", "utf-32", "utf-8-sig", "utf-7", "cp037"):
        yield (
            f"encoding {encoding}",
            good.encode(encoding),
            200 if encoding == "utf-7" and good.encode(encoding) == good.encode() else 422,
        )
    for body in (
        b"",
        b" ",
        b"null",
        b"true",
        b"0",
        b'""',
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"\x00" * 100,
        b"\x1f\x8b\x08",
        b"rows=1",
        b"<rows/>",
    ):
        yield f"body {body[:6]!r}", body, 422
    yield "trailing", good.encode() + b"x", 422
    yield "twice", good.encode() * 2, 422
    yield "comment", b"/* */" + good.encode(), 422
    yield "half", good.encode()[: len(good) // 2], 422
    yield "invalid UTF-8", good.encode().replace(b"red", b"\xc3\x28"), 422
    yield "overlong UTF-8", good.encode().replace(b"red", b"\xc0\xaf"), 422
    yield "no rows", b'{"rows":[]}', 422
    yield "too many rows", f'{{"rows":[{",".join([_ROW] * 10_001)}]}}'.encode(), 422
    yield "many nulls", b'{"rows":[' + b"null," * 400_000 + b"null]}", 422
    yield "just over the limit", b'{"rows":["' + b"x" * BODY + b'"]}', 413
    yield "50 MB", b'{"rows":["' + b"x" * (50 * 2**20) + b'"]}', 413


def throw_nasty(service: Service) -> list[str]:
    """What was not answered as it deserves."""
    wrong = []
    for name, body, status in nasty():
        for path in ("/predict", "/outcomes"):
            expected = (status,) if path == "/predict" else (400, 413, 422)
            try:
                answer = service.http.post(path, content=body, headers={"content-type": "application/json"}, timeout=60)
            except httpx.HTTPError as error:
                wrong.append(f"{path} {name}: {error!r}")
                continue
            if answer.status_code not in expected:
                wrong.append(f"{path} {name}: {answer.status_code}")
    return wrong


def names_the_field(sent: Any, answer: dict[str, Any]) -> bool:
    """Each fault says where; only what is no object at all has no field to be named."""
    faults = answer["detail"]
    return isinstance(faults, list) and all(
        fault["msg"] and fault["loc"][0] == "body" and (len(fault["loc"]) > 1 or not isinstance(sent, dict))
        for fault in faults
    )


def fuzz(service: Service, cases: int, derandomize: bool = False) -> dict[str, Any]:
    """Requests generated from the OpenAPI page: half of them within the schema, half of them not."""
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    statuses: Counter[str] = Counter()
    wrong: list[str] = []

    def send(case: schemathesis.Case) -> None:
        answer = case.call(headers={"authorization": f"Bearer {service.key}"}, timeout=30)
        statuses[f"{case.path} {answer.status_code}"] += 1
        if answer.status_code >= 500:
            wrong.append(f"{case.path} {answer.status_code}: {case.body!r}"[:500])
        if answer.status_code == 422 and not names_the_field(case.body, answer.json()):
            wrong.append(f"{case.path} does not name the field of {case.body!r}: {answer.text}"[:500])

    kinds = [(path, mode) for path in ("/predict", "/outcomes") for mode in schemathesis.GenerationMode]
    how = settings(
        max_examples=cases // len(kinds),
        database=None,
        deadline=None,
        derandomize=derandomize,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    for path, mode in kinds:
        how(given(case=schema[path]["POST"].as_strategy(generation_mode=mode))(send))()
    return {"cases": statuses.total(), "statuses": dict(sorted(statuses.items())), "wrong": wrong}


def attack(service: Service, cases: int, derandomize: bool = False) -> dict[str, Any]:
    """All of it, and what it did to the memory and to the answers of a good request."""
    assert service.process
    process = psutil.Process(service.process.pid)
    before = service.predict(*[synthetic.request()] * 500)
    for _ in range(100):
        service.predict(synthetic.request())
        service.http.post("/outcomes", json={"outcomes": [{"id": before["predictions"][0]["id"], "value": 1}]})
    memory = process.memory_info().rss / 2**20
    wrong = throw_nasty(service)
    found = fuzz(service, cases, derandomize)
    after = service.predict(synthetic.request())
    return {
        "cases": found["cases"],
        "statuses": found["statuses"],
        "nasty": sum(2 for _ in nasty()),
        "wrong": [*wrong, *found["wrong"]][:20],
        "same_answer": after["predictions"][0]["score"] == before["predictions"][0]["score"],
        "server_errors": sum(service.metric("http_requests_total", status=status) for status in ("500", "502", "503")),
        "memory_mb": round(memory, 1),
        "memory_growth": round(process.memory_info().rss / 2**20 / memory - 1, 3),
    }


def prove(folder: Path) -> dict[str, Any]:
    environment = make_environment(folder)
    digest = synthetic.publish(environment, synthetic.build(seed=1))
    promotion.release(environment.model(synthetic.MODEL), digest, "proof")
    with Service(environment, synthetic.MODEL) as service:
        service.serves(1)
        found = attack(service, 5_000)
    faults = list(found["wrong"])
    if not found["same_answer"] or found["server_errors"]:
        faults.append("a good request is answered otherwise, or a 5xx was counted")
    if found["cases"] < 4_500:  # hypothesis ends early where a strategy has no more to say
        faults.append(f"only {found['cases']} cases were made")
    if found["memory_growth"] > MEMORY_GROWTH:
        faults.append(f"memory grew by {found['memory_growth']:.0%}")
    return found | {"holds": not faults, "reason": "; ".join(faults)}

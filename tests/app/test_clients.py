"""Hostile clients for a second each; how long an honest one waits is for `make prove clients`."""

from pathlib import Path

from tests.proofs import clients

KINDS = (
    "half a head",
    "no HTTP",
    "a large body without a key",
    "its scripts, unread",
    "pipelines",
    "trailers",
    "half bodies",
    "half of large bodies",
    "bodies beyond the limit",
    "unknown outcomes",
    "large requests, unread",
    "requests beyond its rate",
)


def test_an_honest_client_is_answered_beside_hostile_ones_and_nothing_of_them_stays(tmp_path: Path) -> None:
    found = clients.prove(tmp_path, 1, KINDS)
    kinds = found["kinds"]
    assert {name: kind["failed"] for name, kind in kinds.items() if kind["failed"]} == {}
    assert {name: kind["held"] for name, kind in kinds.items() if kind["held"]} == {}
    assert max(kind["memory_mb"] for kind in kinds.values()) <= found["memory_mb"] + clients.GROWTH_MB

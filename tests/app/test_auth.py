from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from mlops import access, promotion
from mlops.bundle import Bundle
from tests import synthetic
from tests.service import Service, environment

ROW = {"rows": [synthetic.request()]}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, first_bundle: Bundle) -> Iterator[Service]:
    """With the usual poll."""
    made = environment(tmp_path_factory.mktemp("auth"))
    promotion.release(made.model(synthetic.MODEL), synthetic.publish(made, first_bundle), "test")
    with Service(made, synthetic.MODEL, poll_seconds=2.0) as service:
        service.serves(1)
        yield service


def ask(service: Service, authorization: str | None, path: str = "/predict") -> httpx.Response:
    headers = {"authorization": authorization} if authorization is not None else {}
    body = ROW if path == "/predict" else {"outcomes": [{"id": "x", "value": 1}]}
    with httpx.Client(base_url=service.url, headers=headers, timeout=10) as http:
        return http.get(path) if path == "/model" else http.post(path, json=body)


def until_seen(service: Service, key: str, status: int) -> None:
    service.until(lambda: ask(service, f"Bearer {key}").status_code == status)


@pytest.fixture(scope="module")
def keys(service: Service) -> dict[str, str]:
    """Created together, so that their tests wait for one poll."""
    store = service.environment.store
    made = {
        "predict": access.new(store, "predict", ["predict"], 1000)[1],
        "outcomes": access.new(store, "outcomes", ["outcomes"], 1000)[1],
        "expired": access.new(store, "expired", ["predict"], 1000, datetime.now(UTC) - timedelta(seconds=1))[1],
        "expires": access.new(store, "expires", ["predict"], 1000, datetime.now(UTC) + timedelta(hours=1))[1],
        "slow": access.new(store, "slow", ["predict"], 0.25)[1],
        "slowest": access.new(store, "slowest", ["predict"], 0.01)[1],
    }
    until_seen(service, made["slowest"], 200)
    return made


def test_a_new_key_works_without_a_restart(service: Service) -> None:
    _, key = access.new(service.environment.store, "new", ["predict"], 100)
    assert ask(service, f"Bearer {key}").status_code == 401
    until_seen(service, key, 200)


def test_a_revoked_key_is_refused_without_a_restart(service: Service) -> None:
    made, key = access.new(service.environment.store, "leaves", ["predict", "outcomes"], 100)
    until_seen(service, key, 200)
    access.revoke(service.environment.store, made.id)
    until_seen(service, key, 401)
    refused = ask(service, f"Bearer {key}", "/outcomes")
    assert (refused.status_code, refused.json()["detail"]) == (401, "the API key was revoked")


@pytest.mark.parametrize("path", ["/predict", "/outcomes", "/model"])
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer x",
        "Bearer mlops_",
        "Bearer mlops_00000000_" + "x" * 43,
        "Bearer " + "x" * 8_000,
        "Basic dXNlcjpwYXNz",
        "Bearer mlops_\xe4\xf6\xfc\xdf\xe4\xf6\xfc\xdf_secret",
    ],
    ids=["missing", "empty", "bare", "short", "prefix", "unknown", "long", "basic", "not ascii"],
)
def test_no_key_or_one_that_nobody_was_given_is_refused(service: Service, path: str, authorization: str | None) -> None:
    with httpx.Client(base_url=service.url, timeout=10) as http:
        headers = {} if authorization is None else {b"authorization": authorization.encode("latin-1")}
        answer = http.request("GET" if path == "/model" else "POST", path, headers=headers, content=b"{}")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_key_needs_its_whole_secret_and_the_word_bearer(service: Service, keys: dict[str, str]) -> None:
    key = keys["predict"]
    assert ask(service, f"bearer {key}").status_code == 200
    for wrong in (f"Bearer {key[:-1]}", f"Bearer {key}x", f"Bearer {key[:14]}_{'x' * 43}", f"Basic {key}", key):
        assert ask(service, wrong).status_code == 401, wrong


def test_an_expired_key_is_refused_and_one_that_expires_later_is_not(service: Service, keys: dict[str, str]) -> None:
    refused = ask(service, f"Bearer {keys['expired']}")
    assert (refused.status_code, refused.json()["detail"]) == (401, "the API key has expired")
    assert ask(service, f"Bearer {keys['expires']}").status_code == 200


@pytest.mark.parametrize(
    ("key", "path", "status"),
    [
        ("predict", "/predict", 200),
        ("predict", "/model", 200),
        ("predict", "/outcomes", 403),
        ("outcomes", "/outcomes", 200),
        ("outcomes", "/predict", 403),
        ("outcomes", "/model", 403),
    ],
)
def test_a_key_opens_what_its_scopes_say(
    service: Service, keys: dict[str, str], key: str, path: str, status: int
) -> None:
    assert ask(service, f"Bearer {keys[key]}", path).status_code == status


def test_beyond_its_limit_a_key_is_told_when_to_come_again_and_others_are_not_affected(
    service: Service, keys: dict[str, str]
) -> None:
    answers = [ask(service, f"Bearer {keys['slow']}") for _ in range(3)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert [ask(service, f"Bearer {keys['predict']}").status_code for _ in range(12)] == [200] * 12
    time.sleep(int(refused[-1].headers["retry-after"]))
    assert ask(service, f"Bearer {keys['slow']}").status_code == 200


def test_a_key_of_less_than_a_request_a_second_has_its_one_request(service: Service, keys: dict[str, str]) -> None:
    refused = ask(service, f"Bearer {keys['slowest']}")  # its one request was that of the fixture
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 100


def test_a_limit_holds_over_the_arrival_of_other_keys(service: Service) -> None:
    _, key = access.new(service.environment.store, "patient", ["predict"], 0.02)
    until_seen(service, key, 200)  # its one request for a long while
    _, other = access.new(service.environment.store, "other", ["predict"], 100)
    until_seen(service, other, 200)
    assert ask(service, f"Bearer {key}").status_code == 429


def test_refusals_are_counted_by_their_reason(service: Service, keys: dict[str, str]) -> None:
    reasons = {
        "missing": None,
        "unknown": "Bearer x",
        "expired": f"Bearer {keys['expired']}",
        "scope": f"Bearer {keys['outcomes']}",
    }
    for reason, authorization in reasons.items():
        before = service.metric("mlops_auth_refused_total", reason=reason)
        ask(service, authorization)
        assert service.metric("mlops_auth_refused_total", reason=reason) == before + 1


def test_the_bucket_holds_hashes_of_keys_and_no_key(service: Service, keys: dict[str, str]) -> None:
    store = service.environment.store
    everything = b"".join(store.get(key) or b"" for key in store.keys(""))
    newest = store.get(store.keys("access")[-1]) or b""
    for key in (*keys.values(), service.key):
        assert access.sha256(key).encode() in newest
        assert key.encode() not in everything
        assert key[15:].encode() not in everything
    assert not re.search(rb"mlops_[0-9a-f]{8}_", everything + service.log.read_bytes())


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"])
def test_probes_metrics_and_the_pages_need_no_key(service: Service, path: str) -> None:
    assert httpx.get(service.url + path).status_code == 200

"""The status page: what it says in each state, and to whom; what hostile texts and clients can do to it."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import polars as pl
import pytest
from prometheus_client import CollectorRegistry

from environments.local.platform import free_port
from mlops import access, promotion, rollout
from mlops.bundle import Bundle
from mlops.environment import Environment
from mlops.releases import Release
from mlops.retraining import Event
from mlops.store import Store
from mlops.verdict import Verdict, check
from monitoring import alerts, charts
from monitoring.alerts import Alert
from monitoring.approver import Approver
from monitoring.controller import Controller
from monitoring.drift import Shift
from monitoring.page import Site
from monitoring.series import Series
from tests import synthetic, watched
from tests.rollout_log import Log, Rows

HOSTILE = """<script>alert(1)</script> "><img src=x onerror='alert(2)'> \x1b[2J\x00\u202e{{ 7 * 7 }}"""


class Tags(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.names, self.attributes, self.links, self.text = set[str](), set[str](), list[str](), ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def asked() -> list[int]:
    return []


@pytest.fixture
def site(environment: Environment, asked: list[int]) -> Site:
    return Site(environment.model(watched.NAME), CollectorRegistry(), lambda: asked.append(1))


@contextmanager
def served(site: Site) -> Generator[httpx.Client]:
    server = site.serve("127.0.0.1", port := free_port(29000 + os.getpid() % 997 * 3))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        yield client
    server.should_exit = True


@pytest.fixture
def anyone(site: Site) -> Iterator[httpx.Client]:
    """Without a key."""
    with served(site) as client:
        yield client


@pytest.fixture
def client(environment: Environment, site: Site, anyone: httpx.Client) -> httpx.Client:
    """With a key that opens the page."""
    _, key = access.new(environment.store, "test", ["status", "analysis"], 1000)
    site.keys.replace(access.read(environment.store))
    anyone.headers["authorization"] = f"Bearer {key}"
    return anyone


@pytest.fixture
def page(environment: Environment, site: Site, client: httpx.Client) -> Callable[..., Tags]:
    def show(state: str, **changes: Any) -> Tags:
        site.snapshot = replace(watched.snapshot(environment, state), **changes)
        answer = client.get("/")
        assert answer.status_code == 200
        return Tags(answer.text)

    return show


def test_nothing_released(page: Callable[..., Tags]) -> None:
    text = page("nothing").text
    assert "Nothing is released yet." in text
    assert "no challenger so far" in text
    assert "Not analysed yet." in text
    assert "loss 0.741" in text  # of the gate


def test_serving(environment: Environment, page: Callable[..., Tags]) -> None:
    shown = page("serving")
    champion = environment.model(watched.NAME).releases.read()[-1].champion
    assert f"Serves {champion[:12]} for 36 days" in shown.text
    assert "Will this customer leave within 30 days?" in shown.text
    assert "2 of 2" in shown.text
    assert "serving-6d9f-k2x7p" in shown.text
    assert "Promoted" in shown.text
    assert "data_used_gb" in shown.text
    assert "1480 rows with an outcome, 2000 are needed" in shown.text
    assert "over the newest 14 days loss 0.7" in shown.text
    assert re.search(rf"{champion[:12]} [\d,]+ on the last day", shown.text)


def test_a_canary_in_progress(page: Callable[..., Tags], site: Site) -> None:
    shown = page("canary")
    assert "canary 25 %" in shown.text
    assert "The judge has not seen enough yet." in shown.text
    assert "48,000 rows scored by both" in shown.text
    since, _, lately = shown.text.partition("since the start")[2].partition("lately")
    assert [part.count("48,000 requests") for part in (since, lately)] == [2, 0]
    assert [part.count("14,400 requests") for part in (since, lately)] == [0, 2]
    assert ("13 days" in since, "16,000 entities" in lately) == (True, True)
    assert site.snapshot
    assert site.snapshot.rollout
    assert site.snapshot.rollout.steps == {
        "shadow": "done", "1%": "done", "5%": "done", "25%": "now", "50%": "ahead", "100%": "ahead", "champion": "ahead",
    }  # fmt: skip
    lines = site.snapshot.rollout.lines
    assert set(list(lines)[:2]) == {"loss", "split"}
    assert len(lines) == 12
    assert all(line and line.path.count(" ") >= 50 for line in lines.values())
    assert "plan=basic" in shown.text


def test_an_aborted_rollout_stays_in_sight(page: Callable[..., Tags]) -> None:
    shown = page("aborted")
    assert "The last rollout" in shown.text
    assert re.search(r"Ended [\d: -]+ by \w+: aborted: \d+ of 18000 requests failed", shown.text)
    assert "tracking does not answer" in shown.text
    assert "support_calls: PSI 0.24, against 0.1" in shown.text
    assert "< 0.001" in shown.text


@pytest.mark.parametrize("state", watched.STATES)
def test_every_link_of_the_page_is_answered_and_none_leaves_it(
    page: Callable[..., Tags], client: httpx.Client, state: str
) -> None:
    links = set(page(state).links) - {"http://127.0.0.1:1", "data:,"}  # MLflow, and no icon
    assert {client.get(link).status_code for link in links} == {200}
    assert len([link for link in links if link.startswith("reports/")]) >= 3
    assert any(link.startswith("rollouts/") for link in links) == (state != "nothing")


def test_hostile_texts_are_shown_and_do_nothing(
    environment: Environment, site: Site, client: httpx.Client, page: Callable[..., Tags]
) -> None:
    plain = page("canary")
    model = environment.model(watched.NAME)
    record = Release(
        revision=9, at=datetime.now(UTC), by=HOSTILE, why=HOSTILE, mode="canary", champion="a" * 64, challenger="b" * 64,
        weight=0.25, cohort={"plan": HOSTILE}, rollout="c41d9e02", nonce="",
    )  # fmt: skip
    series = Series(model, record)
    checks = [
        check(f"plan={HOSTILE}", True, 0.1, 0.2, HOSTILE, low=0.0, high=0.2),
        check(HOSTILE, False, 0.1, 0.2, HOSTILE),
    ]
    series.add(datetime.now(UTC), record, Verdict("abort", [HOSTILE], checks, []))
    assert site.snapshot
    assert site.snapshot.analysis
    rollout_shown = site.snapshot.rollout
    assert rollout_shown
    contract = watched.Watched(environment).contract.model_copy(update={"question": HOSTILE})
    event = Event(
        run="1",
        event="failed",
        action="retrain",
        day=datetime.now(UTC).date(),
        at=datetime.now(UTC),
        by="x",
        why=HOSTILE,
        host="",
        pid=1,
    )
    shift = Shift(HOSTILE, "distribution", "integrity", 0.5, 0.1, 0.001, 0.2, [0.1, 0.5], True)
    details = {"reasons": [HOSTILE], "metrics": {HOSTILE: 0.5}, "champion": HOSTILE}
    gate = site.snapshot.gates[0].model_copy(update={"details": details})
    shown = page(
        "canary", contract=contract, history=[record], since=record, alerts=[Alert(HOSTILE, HOSTILE, HOSTILE)], gates=[gate],
        rollout=replace(rollout_shown, began=record, ended=record, figures=series.points[-1].figures, lines={HOSTILE: None}),
        runs=[(event, event)], verdict=Verdict("abort", [HOSTILE], checks, []), tracking="javascript:alert(1)",
        analysis=replace(site.snapshot.analysis, why=HOSTILE, untestable=[HOSTILE]),
        features={HOSTILE: (shift, None)}, environment=HOSTILE, model=HOSTILE,
    )  # fmt: skip
    assert shown.names - {"div"} <= plain.names | {"p", "table"}
    assert not {name for name in shown.attributes if name.startswith("on")}
    assert not [link for link in shown.links if "javascript" in link]
    assert shown.text.count("<script>alert(1)</script>") >= 12
    assert r"\x1b[2J\x00\u202e{{ 7 * 7 }}" in shown.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", client.get("/").text)


def test_the_page_may_load_nothing_and_a_report_may_not_even_run(
    environment: Environment, page: Callable[..., Tags], client: httpx.Client
) -> None:
    page("nothing")
    digest = watched.Watched(environment).digests[0]
    report = client.get(f"/reports/{digest}/report.html").headers["content-security-policy"]
    assert set(report.split("; ")) == {"default-src 'none'", "img-src data:", "style-src 'unsafe-inline'", "sandbox"}
    own = client.get("/").headers
    assert "default-src 'none'" in own["content-security-policy"]
    assert "frame-ancestors 'none'" in own["content-security-policy"]
    assert (own["cache-control"], own["x-content-type-options"]) == ("no-store", "nosniff")


def basic(secret: str, user: str = "client") -> str:
    return f"Basic {base64.b64encode(f'{user}:{secret}'.encode()).decode()}"


@pytest.fixture
def keys(environment: Environment, site: Site) -> dict[str, str]:
    store, past = environment.store, datetime.now(UTC) - timedelta(seconds=1)
    made = {
        "status": access.new(store, "status", ["status"], 1000)[1],
        "analysis": access.new(store, "analysis", ["analysis"], 1000)[1],
        "predict": access.new(store, "predict", ["predict", "outcomes"], 1000)[1],
        "expired": access.new(store, "expired", ["status"], 1000, past)[1],
        "slow": access.new(store, "slow", ["status"], 0.01)[1],
    }
    made["altered"] = made["status"][:-1]
    revoked, made["revoked"] = access.new(store, "revoked", ["status"], 1000)
    access.revoke(store, revoked.id)
    site.keys.replace(access.read(store))
    return made


@pytest.mark.parametrize("path", ["/", "/reports/x/report.html", "/rollouts/x", "/analysis"])
@pytest.mark.parametrize("form", ["Bearer", "Basic"])
@pytest.mark.parametrize(
    ("key", "status"),
    [
        (None, 401),
        ("wrong", 401),
        ("altered", 401),
        ("revoked", 401),
        ("expired", 401),
        ("predict", 403),
        ("status", 0),
        ("analysis", 0),
    ],
)
def test_a_key_opens_what_its_scopes_say(
    anyone: httpx.Client, keys: dict[str, str], asked: list[int], path: str, form: str, key: str | None, status: int
) -> None:
    secret = keys.get(key or "", f"mlops_00000000_{'x' * 43}")
    header = {} if key is None else {"authorization": basic(secret) if form == "Basic" else f"Bearer {secret}"}
    answer = anyone.request("POST" if path == "/analysis" else "GET", path, headers=header)
    opened = key == ("analysis" if path == "/analysis" else "status")
    behind = {"/": 503, "/analysis": 202}.get(path, 404)
    assert answer.status_code == (behind if opened else status or 403)
    assert answer.headers.get("www-authenticate", "").startswith("Basic ") == (answer.status_code == 401)
    assert len(asked) == (path == "/analysis" and opened)


@pytest.mark.parametrize(
    "header", ["", "Basic", "Basic x", "Basic !!!", "Basic w7Y=", "Bearer", "Digest abc", "basic Og=="]
)
def test_a_header_that_is_none_opens_nothing(anyone: httpx.Client, keys: dict[str, str], header: str) -> None:
    assert anyone.get("/", headers={"authorization": header}).status_code == 401


def test_a_key_has_its_limit(anyone: httpx.Client, keys: dict[str, str]) -> None:
    slow = {"authorization": f"Bearer {keys['slow']}"}
    assert [anyone.get("/", headers=slow).status_code for _ in range(2)] == [503, 429]
    assert int(anyone.get("/", headers=slow).headers["retry-after"]) >= 1


def test_metrics_are_open_and_nothing_else_is(anyone: httpx.Client) -> None:
    assert anyone.get("/metrics").status_code == 200
    for path in ("/favicon.ico", "/docs", "/openapi.json", "/metrics/", "/analysis/x"):
        assert anyone.get(path).status_code == 404, path


def test_an_analysis_can_be_asked_for_and_nothing_else(
    client: httpx.Client, asked: list[int], environment: Environment
) -> None:
    before = environment.store.keys("")
    body = json.dumps({"alerts": [{"labels": {"alertname": "FeatureDrift"}}]})
    assert client.post("/analysis", content=body).status_code == 202
    assert asked == [1]
    for method in ("GET", "PUT", "DELETE"):
        assert client.request(method, "/analysis").status_code == 405
    assert client.post("/").status_code == 405
    assert (asked, environment.store.keys("")) == ([1], before)


def as_it_is(client: httpx.Client, path: str) -> tuple[int, bytes]:
    """The answer to a path that httpx would clean up."""
    connection = HTTPConnection(client.base_url.host, client.base_url.port or 0, timeout=20)
    connection.request("GET", path, headers=dict(client.headers))
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_only_reports_of_the_model_can_be_read(environment: Environment, client: httpx.Client) -> None:
    store, digest, other = environment.store, "a" * 64, "b" * 64
    store.put(f"models/{watched.NAME}/reports/{digest}/report.html", b"<p>mine</p>")
    store.put(f"models/{watched.NAME}/reports/{digest}/report.json", b"{}")
    store.put(f"models/other/reports/{other}/report.html", b"<p>theirs</p>")
    store.put("secret.html", b"<p>secret</p>")
    assert client.get(f"/reports/{digest}/report.html").text == "<p>mine</p>"
    for path in (
        f"{other}/report.html", f"{digest}/report.json", f"{digest}/manifest.json", f"{digest}/report.html/", f"{digest}/",
        f"{digest[:12]}/report.html", f"{digest.upper()}/report.html", f"{digest}/..%2f..%2f..%2fsecret.html",
        f"%2e%2e/%2e%2e/%2e%2e/other/reports/{other}/report.html", f"../../other/reports/{other}/report.html",
        f"..%2f..%2f..%2fother%2freports%2f{other}/report.html", "%2fetc/passwd", f"{digest}%00/report.html",
    ):  # fmt: skip
        assert as_it_is(client, f"/reports/{path}") == (404, b"Not Found"), path
    for rollout_id in ("..", "%2e%2e", "..%2freports", "None", ""):
        assert as_it_is(client, f"/rollouts/{rollout_id}") == (404, b"Not Found"), rollout_id


def test_a_page_is_rendered_once_for_a_snapshot_and_reads_nothing(
    environment: Environment,
    site: Site,
    client: httpx.Client,
    page: Callable[..., Tags],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page("canary")

    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("a request must neither read the bucket nor render again")

    monkeypatch.setattr("monitoring.page.render", refused)
    for name in ("get", "keys"):
        monkeypatch.setattr(Store, name, refused)
    assert client.get("/").status_code == 200
    site.snapshot = replace(site.snapshot) if site.snapshot else None
    assert client.get("/").status_code == 500


def test_a_page_that_is_not_refreshed_says_so(page: Callable[..., Tags]) -> None:
    assert "Not refreshed since" not in page("serving").text
    assert "Not refreshed since" in page("serving", at=datetime.now(UTC) - timedelta(minutes=1)).text


def test_a_large_model_with_a_long_history_has_a_small_page(
    environment: Environment, site: Site, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "_FEATURES", {f"feature_number_{i}": i / 1000 for i in range(60)})
    made = watched.Watched(environment)
    for i in range(500):
        made.model.releases.append(made.digests[i % 2], f"release {i}: {'why ' * 50}")
    series = Series(made.model, made.model.releases.read()[-1])
    for n in range(250):
        series.add(datetime.now(UTC), made.model.releases.read()[-1], watched.look(made.random, n, False))
    site.snapshot = made.shown(
        series=series, analysis=watched.analysis(), quality=watched.quality(made.digests[0]),
        days=watched.days(made.digests[:2], [20]), retrainings=watched.retrainings(made.digests[0]) * 50,
    )  # fmt: skip
    shown = client.get("/").text
    assert len(shown.encode()) <= 1_000_000
    assert "release 499:" in shown
    assert "release 449:" not in shown
    assert "and 450 earlier" in shown
    assert all(f"feature_number_{i}" in shown for i in range(60))


def test_a_silent_client_keeps_nobody_waiting(client: httpx.Client, page: Callable[..., Tags]) -> None:
    address = client.base_url.host, client.base_url.port or 0
    silent = [socket.create_connection(address) for _ in range(60)]
    for each in silent[:30]:
        each.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
    page("serving")
    assert client.get("/metrics").status_code == 200
    for each in silent:
        each.close()


@pytest.fixture
def controller(environment: Environment, first_bundle: Bundle, second_bundle: Bundle) -> Controller:
    """Of a canary at 25 %."""
    model = environment.model(synthetic.MODEL)
    promotion.release(model, synthetic.publish(environment, first_bundle), "first")
    promotion.release(model, synthetic.publish(environment, second_bundle), "try it", mode="canary", weight=0.25)
    rollout.set_paused(model, True, "stays")
    return Controller(environment, synthetic.MODEL)


def text_of(environment: Environment, controller: Controller) -> str:
    _, key = access.new(environment.store, "reader", ["status"], 1000)
    controller.follow_keys()
    controller.show()
    with served(controller.site) as client:
        return Tags(client.get("/", headers={"authorization": basic(key)}).text).text


def test_the_controller_shows_what_it_judges_and_what_became_of_it(
    environment: Environment, controller: Controller
) -> None:
    model = environment.model(synthetic.MODEL)
    release = rollout.current(model)
    log = Log(environment.store)
    for seed in range(3):
        log.at = datetime.now(UTC) - timedelta(seconds=9 - seed)  # rows of one moment are one request
        log.write(release, Rows(seed=seed))
        controller.judge()
    assert controller._series
    assert [point.figures[0].n for point in controller._series.points] == [300, 600, 900]
    text = text_of(environment, controller)
    assert "canary 25 %, paused" in text
    assert "900 rows scored by both" in text
    assert "faults" in text
    faulty = Rows(seed=9)
    faulty.fault = ["error"] * len(faulty.y)
    log.write(release, faulty)
    controller.judge()
    Approver(model).decide()
    controller.judge()  # nothing is in rollout any more: the series is saved
    again = Controller(environment, synthetic.MODEL)
    again.judge()
    for each in (controller, again):
        text = text_of(environment, each)
        assert re.search(r"Ended .* aborted: \d+ of \d+ requests failed", text)
        assert each._series
        assert len(each._series.points) == 4
    assert [verdict["decision"] for verdict in rollout.read_verdicts(model, release.rollout)] == [
        "inconclusive",
        "abort",
    ]


def test_what_takes_over_later_does_not_serve_yet(environment: Environment) -> None:
    made = watched.Watched(environment)
    blue, green = made.digests[:2]
    made.release(blue, "blue", timedelta(days=3))
    made.release(blue, "blue again", timedelta(days=2))
    later = datetime.now(UTC) + timedelta(hours=1)
    made.release(green, "green", timedelta(0), mode="blue-green", challenger=blue, activate_at=later)
    shown = made.shown()
    assert shown.release
    assert shown.since
    assert (shown.release.revision, shown.since.revision, shown.history[0].revision) == (2, 1, 3)


def test_traffic_is_shown_of_the_newest_weeks_even_after_a_pause(environment: Environment) -> None:
    made = watched.Watched(environment)
    made.release(made.digests[0], "first", timedelta(0))
    long_ago = pl.DataFrame({"day": [date(2020, 1, 1)], "model_version": [made.digests[0]], "rows": [7]})
    days = watched.days(made.digests[:2], [50])
    shown = made.shown(days=replace(days, quality=pl.concat([long_ago, days.quality]))).traffic
    assert shown
    assert (len(shown.days), shown.days[-1]) == (42, days.quality["day"].max())
    assert list(shown.rows) == [made.digests[0], "others"]
    assert sum(map(sum, shown.rows.values())) == days.quality.filter(pl.col("day") >= shown.days[0])["rows"].sum()
    assert shown.rows[made.digests[0]][-1] == 0


def test_a_damaged_champion_leaves_the_page(environment: Environment, controller: Controller) -> None:
    release = rollout.current(environment.model(synthetic.MODEL))
    environment.store.put(f"models/{synthetic.MODEL}/bundles/{release.champion}/model.onnx", b"damaged")
    assert release.champion[:12] in text_of(environment, controller)


def test_a_key_counts_from_the_next_step_on(environment: Environment, controller: Controller) -> None:
    made, key = access.new(environment.store, "new", ["analysis"], 1000)

    with served(controller.site) as client:
        client.headers["authorization"] = basic(key)
        assert client.post("/analysis").status_code == 401
        controller.follow_keys()
        assert not controller.asked.is_set()
        assert client.post("/analysis").status_code == 202
        assert controller.asked.is_set()
        access.revoke(environment.store, made.id)
        assert client.post("/analysis").status_code == 202
        controller.follow_keys()
        assert client.post("/analysis").status_code == 401


@pytest.fixture
def alertmanager() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/api/v2/alerts?active=true&silenced=false&inhibited=false"
            told = {"startsAt": "2026-01-02T03:04:05.678Z", "status": {"state": "active"}, "fingerprint": "0"}
            names = (("Watchdog", "none"), ("SpoolFilling", "ticket"), ("ServingDown", "page"))
            firing = [
                told | {"labels": {"alertname": name, "severity": severity}, "annotations": {"summary": f"of {name}"}}
                for name, severity in names
            ]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(firing).encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_alerts_are_those_of_alertmanager_as_long_as_it_answers(environment: Environment, alertmanager: str) -> None:
    controller = Controller(environment, watched.NAME, alertmanager=alertmanager)
    controller.steps.tick(["alerts"])
    text = text_of(environment, controller)
    assert "ServingDown, SpoolFilling" in text
    assert "of ServingDown" in text
    assert "Watchdog" not in text
    controller._alertmanager, controller.steps._due["alerts"] = "http://127.0.0.1:1", 0
    controller.steps.tick(["alerts"])
    text = text_of(environment, controller)
    assert "alertmanager does not answer" in text
    assert "ServingDown" not in text


def test_without_alertmanager_the_controller_says_what_it_knows(environment: Environment) -> None:
    made = watched.Watched(environment)
    made.gate(made.digests[0], timedelta(days=2), 0.7, ["loss: too high"])
    events = watched.retrainings(made.digests[0])
    failed = events[-1].model_copy(update={"event": "failed", "why": "out of memory"})
    drifted = watched.analysis(tenure_months=0.3)
    found = alerts.known({"tracking": False, "bucket": True}, drifted, [*events[:-1], failed], made.gates)
    assert [(each.name, each.text.rpartition(": ")[2]) for each in found] == [
        ("DependencyDown", "tracking does not answer"), ("DataDrift", "PSI 0.30, against 0.1"),
        ("RetrainingFailed", "out of memory"), ("GateRefusing", "too high"),
    ]  # fmt: skip
    made.gate(made.digests[1], timedelta(days=1), 0.7, [])
    assert alerts.known({"tracking": True}, watched.analysis(), events, made.gates) == []


def test_a_series_is_thinned_evenly_saved_and_continued(environment: Environment) -> None:
    made = watched.Watched(environment)
    release = made.release(
        made.digests[0], "x", timedelta(0), mode="shadow", challenger=made.digests[1], rollout="0a0b0c0d"
    )
    series, start = Series(made.model, release), datetime(2026, 1, 1, tzinfo=UTC)
    for n in range(1000):
        series.add(start + timedelta(seconds=n), release, watched.look(made.random, 3, False))
    assert len(series.points) == 200
    assert (series.points[0].at, series.points[-1].at) == (start, start + timedelta(seconds=999))
    gaps = [(b.at - a.at).total_seconds() for a, b in zip(series.points, series.points[1:], strict=False)]
    assert max(gaps) <= 20
    series.save()
    series.add(start + timedelta(seconds=1000), release, watched.look(made.random, 3, False))
    series.save()  # too soon
    again = Series(made.model, release)
    assert len(again.points) == 200
    assert again.points[-1].at == start + timedelta(seconds=999)
    series.save(at_once=True)
    assert Series(made.model, release).points == series.points
    made.model.store.put(f"{made.model.folder}/verdicts/0a0b0c0d/series.json", b"[[")
    assert Series(made.model, release).points == ()
    assert rollout.read_verdicts(made.model, "0a0b0c0d") == []


def test_a_line_keeps_what_matters_in_sight() -> None:
    line = charts.line([(0, 0.5, 0.0, 1.0), (1, None, None, None), (2, 0.2, 0.1, 0.3)], 0.25)
    assert line
    assert (line.top, line.bottom) == (0.5, 0.1)
    assert line.path == "M0.0,6.0 100.0,72.0"
    assert line.band == "M0.0,0.0 100.0,50.0 100.0,94.0 0.0,100.0z"  # the first interval is cut off
    assert line.bounds == [61.0]
    assert charts.line([(0, None, None, None), (1, float("nan"), None, None)], 1.0) is None
    flat = charts.line([(5, 0.0, None, None)])
    assert flat
    assert flat.end == (100.0, 50.0)


def test_bars_are_stacked_to_the_height_of_the_largest_day() -> None:
    first, second = charts.bars([[10, 0], [10, 5]])
    heights = [[float(tall) for tall in re.findall(r"v([\d.]+)", path)] for path in (first, second)]
    assert heights == [[47.0], [47.0, 23.5]]
    assert second.startswith("M4.50,6.00")
    assert charts.bars([]) == []

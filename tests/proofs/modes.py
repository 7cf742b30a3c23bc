"""Two models under load: replicas switch at one instant, a shadow costs callers next to nothing, entities keep their model."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from app.metrics import FAULTS
from mlops import log_schema, promotion, rollout
from mlops.contract import Contract
from mlops.environment import Environment
from mlops.releases import Mode
from tests import synthetic
from tests.caller import Caller
from tests.load import numbered
from tests.service import Service
from tests.service import environment as make_environment

REPLICAS, INSTANT_SECONDS, ROLLBACK_SECONDS = 4, 0.25, 5.0
LOAD, SLOWER, SLOWER_MS, SCORED = 0.6, 1.10, 1.0, 0.99
WEIGHTS, SPLIT, ENTITIES, ROWS = (0.01, 0.05, 0.25, 0.5), 0.01, 20_000, 100
BODIES = [{"rows": [numbered(number)]} for number in range(2_000)]
_AT_ONCE = 60  # rows


def two(environment: Environment, budget_ms: float = 20, trees: tuple[int, int] = (20, 20)) -> list[str]:
    """Champion and challenger of so many trees, both approved; the champion is released."""
    contract = Contract.model_validate(synthetic.contract_yaml(judge={"budget_ms": budget_ms}))
    challenger, champion = (
        synthetic.publish(
            environment, synthetic.build(contract, seed=seed, learning_rate=0.1 * seed, max_iter=trees[seed - 1])
        )
        for seed in (2, 1)
    )
    for digest in (challenger, champion):
        promotion.release(environment.model(synthetic.MODEL), digest, "proof")
    return [champion, challenger]


def blue_green(
    environment: Environment, rounds: int, replicas: int = REPLICAS, per_second: float = 40, **settings: Any
) -> dict[str, Any]:
    """There and back, `rounds` times: how far from the instant were each replica's first green and last blue answer?"""
    blue, green = two(environment)
    model = environment.model(synthetic.MODEL)
    first, last, back, answers = [], [], [], []
    with ExitStack() as stack:
        services: list[Service] = []
        for name in map("replica-{}".format, range(replicas)):
            told = {"replica": name, "spool": environment.home / name, **settings}
            service = stack.enter_context(Service(environment, synthetic.MODEL, **told))
            services.append(service)
            service.serves(2)
            service.predict(synthetic.request())
        _logged(services[0], 2)
        for _ in range(rounds):
            callers = [Caller(service, BODIES, per_second, 8) for service in services]
            with ExitStack() as calls:
                for caller in callers:
                    calls.enter_context(caller)
                switch = promotion.release(model, green, "proof", mode="blue-green")
                for service in services:
                    service.serves(switch.revision)
                _logged(services[0], switch.revision)
                started = time.time()
                rollback = promotion.rollback(model, "proof")
                for service in services:
                    service.serves(rollback.revision)
                time.sleep(0.5)
            instant = switch.activate_at.timestamp()  # ty: ignore[missing-union-attribute]
            for caller in callers:
                answers += caller.answers
                greens = [answer.at for answer in caller.answers if answer.model_version == green]
                before = [answer for answer in caller.answers if answer.revision < switch.revision]
                blues = [answer.at for answer in before if answer.model_version == blue]
                first.append(min(greens) - instant)
                last.append(max(blues) - instant)
                back.append(max(greens) - started)
    return {
        "rounds": rounds,
        "replicas": replicas,
        "requests": len(answers),
        "failed": sum(answer.status != 200 for answer in answers),
        "first_green_ms": [round(min(first) * 1000), round(max(first) * 1000)],
        "last_blue_ms": round(max(last) * 1000),
        "rollback_seconds": round(max(back), 2),
    }


def _logged(service: Service, revision: int) -> None:
    """Rollback goes to what was observed serving, so the log of its answers must have arrived."""
    store = service.environment.store
    service.until(lambda: any(f"/{revision:08d}-" in key for key in store.keys(f"predictions/{synthetic.MODEL}")), 60)


def shadow(environment: Environment, pairs: int, seconds: float) -> dict[str, Any]:
    """Rounds at a constant rate, in turn with the champion alone and with a shadow, of one process."""
    champion, challenger = two(environment, trees=(100, 100))
    releases = environment.model(synthetic.MODEL).releases
    found: dict[str, list[float]] = {"full": [], "shadow": []}
    sent = failed = 0
    with Service(environment, synthetic.MODEL) as service:
        service.serves(2)
        # The least: it shares the machine.
        takes = min(len(_called(service, seconds).answers) / seconds for _ in range(5))
        for pair in range(pairs):
            modes: tuple[Mode, ...] = ("full", "shadow") if pair % 2 else ("shadow", "full")
            for mode in modes:
                more: dict[str, Any] = {"challenger": challenger, "rollout": "proof"} if mode == "shadow" else {}
                service.serves(releases.append(champion, "proof", mode, **more).revision)
                warm, caller = (_called(service, duration, LOAD * takes) for duration in (0.5, seconds))
                times = sorted(answer.at - answer.sent for answer in caller.answers)
                found[mode].append(times[int(0.99 * len(times))] * 1000)
                failed += len(caller.failed)
                if mode == "shadow":
                    sent += len(warm.answers) + len(caller.answers)
                    _scored(service, sent)
        scored = service.metric("mlops_challenger_rows_total", result="scored")
    return {
        "pairs": pairs,
        "per_second": round(LOAD * takes),
        "failed": failed,
        "p99_ms": {mode: [round(value, 2) for value in values] for mode, values in found.items()},
        "slower": round(median(b / a for a, b in zip(*found.values(), strict=True)), 3),
        "slower_ms": round(median(b - a for a, b in zip(*found.values(), strict=True)), 2),
        "rows": sent,
        "scored": round(scored / sent, 4),
    }


def _scored(service: Service, rows: int) -> None:
    service.until(lambda: service.metric("mlops_challenger_rows_total") == rows, 60)


def _called(service: Service, seconds: float, per_second: float | None = None) -> Caller:
    with Caller(service, BODIES, per_second, 64 if per_second else 16) as caller:
        time.sleep(seconds)
    return caller


def overflow(environment: Environment, seconds: float) -> dict[str, Any]:
    """More rows than the challenger can take, of small requests (a large one takes its time): those that find no place are counted, and logged with that as their fault."""
    champion, challenger = two(environment, trees=(20, 1_000))
    rollout.begin(environment.model(synthetic.MODEL), champion, challenger, "proof", mode="shadow")
    with Service(environment, synthetic.MODEL) as service:
        service.serves(3)
        with Caller(service, [{"rows": [numbered(number) for number in range(_AT_ONCE)]}], None, 4) as caller:
            time.sleep(seconds)
        sent = _AT_ONCE * len(caller.answers)
        _scored(service, sent)
        dropped = int(service.metric("mlops_challenger_rows_total", result="dropped"))
    decode, store = msgspec.json.Decoder(log_schema.PredictionRecord).decode, environment.store
    faults = Counter(
        decode(raw).fault for key in store.keys("predictions") for raw in log_schema.lines(store.get(key) or b"")
    )
    return {
        "failed": len(caller.failed),
        "rows": sent,
        "logged": faults.total(),
        "dropped": dropped,
        "dropped_in_log": faults["dropped"],
    }


def stickiness(
    environment: Environment, entities: int, weights: tuple[float, ...] = WEIGHTS, per_second: float = 100
) -> dict[str, Any]:
    """Each entity twice at each weight, in other company the second time, while other requests flow."""
    champion, challenger = two(environment, budget_ms=1_000)  # past it the champion answers, whatever the assignment
    model = environment.model(synthetic.MODEL)
    moved = failed = 0
    splits: dict[str, float] = {}
    with Service(environment, synthetic.MODEL) as service:
        for weight in weights:
            release = rollout.begin(model, champion, challenger, "proof", mode="canary", weight=weight)
            service.serves(release.revision)
            with Caller(service, BODIES, per_second) as caller:
                first, again = (_versions(service, release.revision, entities) for _ in range(2))
            moved += sum(first[name] != again[name] for name in first)
            failed += len(caller.failed)
            splits[f"{weight:g}"] = round(Counter(first.values())[challenger] / entities, 4)
        faults = sum(service.metric("mlops_challenger_rows_total", result=fault) for fault in FAULTS)
    return {"entities": entities, "moved": moved, "failed": failed, "split": splits, "faults": int(faults)}


def _versions(service: Service, revision: int, entities: int) -> dict[str, str]:
    names, found = random.sample(range(entities), entities), {}
    for start in range(0, entities, ROWS):
        answer = service.predict(*map(numbered, asked := names[start : start + ROWS]))
        assert answer["revision"] == revision
        found |= {
            name: each.get("model_version", answer["model_version"])
            for name, each in zip(asked, answer["predictions"], strict=True)
        }
    return found


def prove(folder: Path) -> dict[str, Any]:
    steps = {
        "blue_green": blue_green(make_environment(folder / "blue-green"), 5, poll_seconds=2.0),
        "shadow": shadow(make_environment(folder / "shadow"), 9, 8.0),
        "overflow": overflow(make_environment(folder / "overflow"), 4.0),
        "stickiness": stickiness(make_environment(folder / "stickiness"), ENTITIES),
    }
    faults = [f"{name}: {step['failed']} requests failed" for name, step in steps.items() if step["failed"]]
    switch, beside, dropped, sticky = steps.values()
    late = max(switch["last_blue_ms"], switch["first_green_ms"][1])
    if late > 1000 * INSTANT_SECONDS or switch["first_green_ms"][0] < 0:
        faults.append(f"a replica switched {late} ms after the instant, or {switch['first_green_ms'][0]} ms")
    if switch["rollback_seconds"] > ROLLBACK_SECONDS:
        faults.append(f"green answered for {switch['rollback_seconds']} s after the rollback")
    if beside["slower"] > SLOWER and beside["slower_ms"] > SLOWER_MS:
        faults.append(f"p99 beside a shadow is {beside['slower']} times as long, {beside['slower_ms']} ms more")
    if beside["scored"] < SCORED:
        faults.append(f"the challenger scored {beside['scored']:.1%}")
    if not dropped["dropped"] == dropped["dropped_in_log"] > 0 or dropped["logged"] != dropped["rows"]:
        faults.append("dropped rows are not all counted and logged")
    if sticky["moved"]:
        faults.append(f"{sticky['moved']} entities met two models")
    faults += [
        f"{share} at weight {weight}" for weight, share in sticky["split"].items() if abs(share - float(weight)) > SPLIT
    ]
    return {**steps, "holds": not faults, "reason": "; ".join(faults)}

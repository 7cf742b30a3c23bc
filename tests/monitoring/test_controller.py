from __future__ import annotations

import socket

import pytest
from prometheus_client import CollectorRegistry

from mlops.environment import Environment
from mlops.tracking import Tracking
from monitoring.controller import Controller
from tests.monitoring.test_compaction import logged
from tests.synthetic import MODEL, build, publish


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def test_it_exports_which_dependencies_answer(environment: Environment) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        controller = Controller(environment, MODEL, f"127.0.0.1:{listening.getsockname()[1]}")
        controller.watch()
        up = {
            name: value(controller.metrics.registry, "mlops_dependency_up", dependency=name)
            for name in ("tracking", "database", "bucket")
        }
        assert up == {"tracking": 0, "database": 1, "bucket": 1}
    controller.watch()
    assert value(controller.metrics.registry, "mlops_dependency_up", dependency="database") == 0


def test_a_failed_step_is_counted_and_delays_no_other(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = Controller(environment, MODEL)
    publish(environment, build())
    logged(environment.store, 2)

    def broken() -> None:
        raise OSError("the bucket is unreachable")

    monkeypatch.setitem(controller.steps._steps, "mirror", (10.0, broken))
    controller.steps.tick()
    registry = controller.metrics.registry
    assert value(registry, "mlops_controller_failures_total", step="mirror") == 1
    assert value(registry, "mlops_compacted_rows_total", kind="predictions") == 2
    assert value(registry, "mlops_last_gate_passed", model=MODEL) == 1
    controller.steps.tick()  # none of them is due yet
    assert value(registry, "mlops_controller_failures_total", step="mirror") == 1


def test_the_newest_verdict_counts(environment: Environment) -> None:
    controller = Controller(environment, MODEL)
    digest = publish(environment, build())
    controller.observe()
    publish(environment, build(seed=1, max_iter=5), verdict="refused")
    controller.observe()
    assert value(controller.metrics.registry, "mlops_last_gate_passed", model=MODEL) == 0
    environment.model(MODEL).releases.append(digest, "test")
    controller.observe()
    assert value(controller.metrics.registry, "mlops_released_timestamp_seconds", model=MODEL)


def test_an_alias_moved_by_hand_is_reset(tracked: Environment) -> None:
    import mlflow

    model = f"mirrored-{tracked.home.name.replace('_', '-')[-20:]}"
    client = mlflow.MlflowClient(tracked.tracking)
    client.create_registered_model(model)
    run = client.create_run(client.create_experiment(model))
    for digest in ("a", "b"):
        client.create_model_version(
            model, f"{run.info.artifact_uri}/bundle", run.info.run_id, tags={"digest": digest * 64}
        )
    mirror = Tracking(tracked.tracking).mirror
    assert mirror(model, "a" * 64, "b" * 64) == [
        "champion: version none becomes 1",
        "challenger: version none becomes 2",
    ]
    client.set_registered_model_alias(model, "champion", "2")
    assert mirror(model, "a" * 64, None) == ["champion: version 2 becomes 1", "challenger: version 2 becomes 1"]
    assert mirror(model, "a" * 64, None) == []
    assert mirror("no-such-model", "a" * 64, None) == []

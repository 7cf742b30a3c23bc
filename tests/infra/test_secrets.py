"""Secrets planted wherever somebody could leave one: none gets into what is rendered, exported or said."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import Any

import pulumi
import pytest

from infra.render import PLATFORM
from tests.infra.rendering import render
from tests.infra.test_program import CHOICES

CANARY = "Canary_7f3a9c"
NAMED = [path for path in PLATFORM.declared["config"] if path.lower().endswith("secret")]
ADDRESSES = ["bucket.endpoint", "tracking.url", "alerts.webhook", "alerts.heartbeat"]


def everything(choice: str) -> tuple[str, list[dict[str, Any]]]:
    """What Pulumi is given for `choice`: inputs of every resource (hence its state) and outputs; and the objects among it."""
    environment, changes = CHOICES[choice]
    rendered = render(environment, changes)
    return json.dumps([*map(asdict, rendered.resources), rendered.outputs]), rendered.objects


@pytest.mark.parametrize("path", NAMED)
@pytest.mark.parametrize(
    "pasted", [CANARY, f"https://hooks.example.com/services/{CANARY}", f"-----BEGIN KEY-----\n{CANARY}"]
)
def test_a_secret_where_the_name_of_one_belongs_is_refused_and_not_repeated(path: str, pasted: str) -> None:
    with pytest.raises(pulumi.RunError) as error:
        render("kind", {path: pasted})
    assert f"{path}: String should match" in str(error.value)
    assert CANARY not in str(error.value)


@pytest.mark.parametrize("path", ADDRESSES)
def test_an_address_with_a_password_is_refused_and_not_repeated(path: str) -> None:
    with pytest.raises(pulumi.RunError) as error:
        render("kind", {path: f"https://somebody:{CANARY}@example.com"})
    assert f"{path}: must not contain a password" in str(error.value)
    assert CANARY not in str(error.value)


@pytest.mark.parametrize("choice", CHOICES)
def test_what_the_deploying_shell_knows_is_in_nothing_that_it_makes(
    choice: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A shell from which somebody deploys may have every variable set that a pod gets from a Secret."""
    text, objects = everything(choice)
    pods = [container for thing in objects for container in _containers(thing)]
    secret = {variable["name"] for pod in pods for variable in pod.get("env", []) if "valueFrom" in variable}
    assert {"AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "CLIENT_KEY"} & secret
    for name in secret | {"PULUMI_CONFIG_PASSPHRASE", "SLACK_URL", "SMTP_PASSWORD"}:
        monkeypatch.setenv(name, CANARY)
    with caplog.at_level(logging.DEBUG):
        again, _ = everything(choice)
    assert again == text
    assert CANARY not in again + caplog.text + "".join(capfd.readouterr())


def _containers(thing: dict[str, Any]) -> list[dict[str, Any]]:
    spec = thing.get("spec", {})
    template = spec.get("jobTemplate", {}).get("spec", spec).get("template", {}) if isinstance(spec, dict) else {}
    return template.get("spec", {}).get("containers", [])


def test_a_secret_address_is_read_from_a_file_where_it_is_used() -> None:
    _, objects = everything("alerts to secret addresses")
    (config,) = (
        thing["data"]["alertmanager.yaml"] for thing in objects if "alertmanager.yaml" in thing.get("data", {})
    )
    assert [line.strip("- ") for line in config.splitlines() if "url" in line] == [
        "url_file: /etc/alertmanager-secrets/webhook-url",
        "url_file: /etc/alertmanager-secrets/heartbeat-url",
    ]
    policy = next(
        thing for thing in objects if thing["kind"] == "NetworkPolicy" and thing["metadata"]["name"] == "alertmanager"
    )
    assert 443 in [port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]]

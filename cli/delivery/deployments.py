"""What was deployed to an environment, and proven there, in order: the way back leads along it."""

import secrets
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from cli.delivery.builds import Build
from cli.delivery.road import Road
from mlops.append_log import AppendLog
from mlops.releases import author


class Deployment(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    revision: int
    at: AwareDatetime
    by: str
    why: str
    build: Build
    nonce: str


class DeploymentLog:
    def __init__(self, road: Road, environment: str):
        self._log = AppendLog(road.bucket, f"deployments/{environment}")

    def read(self) -> list[Deployment]:
        """An unreadable record counts as never written."""
        found = []
        for _, raw in self._log.tail():
            with suppress(ValidationError):
                found.append(Deployment.model_validate_json(raw))
        return found

    def append(self, build: Build, why: str) -> int:
        fields: dict[str, Any] = {
            "at": datetime.now(UTC),
            "by": author(),
            "why": why,
            "build": build,
            "nonce": secrets.token_hex(8),
        }
        return self._log.append(lambda revision: Deployment(revision=revision, **fields).model_dump_json().encode())

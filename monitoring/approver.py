"""What must be signed for this environment, and nothing else: the record that follows from the judge's verdict, and the
release of what a retraining brought.

It alone holds the key that approves, so it reads no row that a caller sent: verdicts come to it through the bucket.
"""

import logging
import os
import threading
import time
from contextlib import suppress
from datetime import timedelta

from prometheus_client import CollectorRegistry, Counter
from starlette.applications import Starlette

from mlops import bundle as bundles
from mlops import promotion, rollout
from mlops.attestations import require_gate
from mlops.environment import Environment, only_model
from mlops.errors import ConflictError
from mlops.registered_model import RegisteredModel
from mlops.releases import Release, now
from mlops.retraining import RetrainingLog, newest_result
from mlops.verdict import Verdict
from monitoring import server
from monitoring.steps import Steps

log = logging.getLogger("approver")
_PORT = 9101
_FRESH = timedelta(minutes=1)  # an older verdict advances nothing: the judge repeats its own every ten seconds
_SILENT_SECONDS = 900.0  # of the judge; then nobody sees the harm that a challenger does


class Approver:
    """Two do no harm, and one that was killed continues where it was: every step starts from the state it finds."""

    def __init__(self, model: RegisteredModel):
        self.registry, self._model = CollectorRegistry(), model
        self._retrainings = RetrainingLog(model)
        self._heard: tuple[object, float] = None, 0.0  # the judge's last sign of life, and when it was new here
        self._written = Counter(
            "mlops_release_steps", "Records written by the judge's verdict", ["step"], registry=self.registry
        )
        for step in ("advance", "abort"):
            self._written.labels(step)
        self.steps = Steps([("rollout", 2, self.decide), ("release", 10, self.release)], self.registry)

    def decide(self) -> None:
        """Write the record that follows from the verdict on the rollout in progress. One written meanwhile takes precedence."""
        release = self._model.releases.current()
        if release is None or not release.in_rollout:
            return
        said = rollout.newest_verdict(self._model, release)
        if self._silent((release.revision, said and said[0])):
            why = f"the judge has not looked for {_SILENT_SECONDS / 60:.0f} minutes"
            said = now(), Verdict("abort", [why], [], [])
        if said is None:
            return
        at, verdict = said
        why = "; ".join(verdict.reasons)
        with suppress(ConflictError):
            if verdict.decision == "abort":
                self._wrote(rollout.abort(self._model, release, f"aborted: {why}"[:500], verdict), "abort")
            elif verdict.decision == "advance" and release.automatic and now() - at < _FRESH:
                rules = bundles.read(self._model, release.champion).contract.judge
                written = rollout.advance(self._model, release, rules, f"advanced: {why}"[:500], verdict)
                self._wrote(written, "advance")

    def _silent(self, sign: object) -> bool:
        """By this process' own clock: a laptop that slept has heard nothing either."""
        if sign != self._heard[0]:
            self._heard = sign, time.monotonic()
        return time.monotonic() - self._heard[1] > _SILENT_SECONDS

    def _wrote(self, release: Release, step: str) -> None:
        self._written.labels(step).inc()
        kept = release.model_dump(include={"revision", "mode", "weight", "why"})
        log.warning("release", extra={"step": step, **kept})

    def release(self) -> None:
        """What the newest training brought, unless another model serves than the one that the gate compared it with."""
        last = self._model.releases.log.last()
        newest, current = newest_result(self._retrainings.read()), self._model.releases.current()
        if newest is None or newest.event != "passed" or newest.digest is None or current is None or current.in_rollout:
            return
        champion = promotion.champion(self._model)
        released = {digest for each in self._model.releases.read() for digest in (each.champion, each.challenger)}
        if champion is None or newest.digest in released or champion.contract.retraining.release == "none":
            return
        if require_gate(self._model, newest.digest).details.get("champion") != champion.digest:
            return
        why, paused = f"{newest.action}: {newest.why}"[:500], champion.contract.retraining.release == "challenger"
        with suppress(ConflictError):  # somebody was quicker: the next look sees what is to be done now
            promotion.release(self._model, newest.digest, why, mode="shadow", paused=paused, after=last)


def main(stop: threading.Event) -> None:
    approver = Approver(Environment.load().model(os.environ.get("MLOPS_MODEL") or only_model()))
    server.serve(Starlette(routes=[server.metrics(approver.registry)]), *server.address(_PORT))
    approver.steps.run(stop)


if __name__ == "__main__":
    server.run(main)

from __future__ import annotations

import asyncio
import json
import logging
import random
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from obstore.exceptions import BaseError

from app.auth import Auth
from app.challenger import Challenger
from app.metrics import Metrics
from app.settings import Settings
from mlops import access, bundle, releases, replicas
from mlops.bundle import Bundle
from mlops.errors import Refused
from mlops.keys import Keyring
from mlops.model import Model
from mlops.probe import probe
from mlops.releases import Release
from mlops.statements import require_approval
from mlops.store import Store

log = logging.getLogger("app.watcher")
_RETRY_REFUSED_SECONDS = 30.0  # a keyring that was mended counts without a restart; doubled each time
_RETRY_REFUSED_MOST = 3600.0
_AHEAD = timedelta(minutes=5)  # what clocks may differ by
_TELL_SECONDS = 10.0


@dataclass(frozen=True)
class Live:
    """What answers: a release and its loaded model, and one on trial. Replaced as a whole, never changed."""

    release: Release
    model: Model
    challenger: Challenger | None = None


class Watcher:
    """Follows the release log and the access journal in a thread of its own; `live` is what to answer with.

    A release is served once its approval, its bundle, and its model (in a child process) hold. Until then, and
    whatever the bucket does, the last good one answers.
    """

    def __init__(self, settings: Settings, store: Store, auth: Auth, metrics: Metrics):
        self.live: Live | None = None
        self.reason = "starting: the bucket has not been read yet"  # why not ready; empty: ready
        self._settings, self._store, self._auth, self._metrics = settings, store, auth, metrics
        self._keyring = Keyring(settings.keyring)
        self._journal = releases.journal(store, settings.model)
        self._access = access.journal(store)
        self._log: list[Release] = []
        self._epoch = self._access_epoch = -1  # -1: never read, so list once
        self._refused: dict[int, tuple[float, float]] = {}  # epoch → when to try again, and how long to wait then
        self._models: dict[str, Model] = {}  # what answers, and what may have to at an instant
        self._ahead: dict[int, Live] = {}  # by epoch: loaded, to answer from an instant on
        self._swap = threading.Lock()
        self._told: tuple[float, dict[str, object]] = 0.0, {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        if self.live and self.live.challenger:
            self.live.challenger.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            steps = {"access": self._follow_access, "releases": self._follow_releases, "state": self._tell, "lag": self._measure}
            for what, step in steps.items():
                try:
                    step()
                except Exception as error:  # the bucket is away, or somebody broke it: keep answering, try again
                    self._metrics.bucket_errors.labels(what).inc()
                    log.warning("%s", json.dumps({"event": "bucket", "what": what, "error": str(error)[:300]}))
                    if what == "releases" and self.live is None and self.reason:
                        self.reason = f"the bucket cannot be read: {str(error)[:200]}"
            self._stop.wait(self._settings.poll_seconds * random.uniform(0.8, 1.2))

    def _follow_access(self) -> None:
        if self._access_epoch < 0:
            self._access_epoch, keys = access.newest(self._store)
            self._auth.replace(keys)
        while (raw := self._access.get(self._access_epoch + 1)) is not None:
            self._access_epoch += 1
            try:
                self._auth.replace(access.parse(self._access_epoch, raw))
            except Refused as refused:
                self._refuse(refused, self._access_epoch)

    def _follow_releases(self) -> None:
        if self._epoch < 0:
            last, out_of_line = self._journal.listed()
            found = [self._journal.get(epoch) for epoch in range(1, last + 1)]
            for epoch, raw in enumerate(found, 1):
                self._read(epoch, raw)
            if out_of_line:
                self._refuse(Refused("epoch", "releases", out_of_line[0][-80:], f"and {len(out_of_line) - 1} more are out of line"), 0)
            self._epoch = last
        while (raw := self._journal.get(self._epoch + 1)) is not None:
            self._read(self._epoch + 1, raw)
            self._epoch += 1
        self._serve_newest()
        self._look_ahead()
        self.reason = "" if self.live or not self._log else "no release verifies"

    def _read(self, epoch: int, raw: bytes | None) -> None:
        try:
            release = releases.parse(epoch, raw or b"")
            self._log.append(release)
            if release.at > releases.now() + _AHEAD:
                raise Refused("future", f"release {epoch}", release.at.isoformat(), "has not come yet: until then it changes nothing")
        except Refused as refused:
            self._refuse(refused, epoch)

    def _serve_newest(self) -> None:
        """The release in force; at the start, when that one does not hold, the newest before it that does."""
        log_now = list(self._log)
        while wanted := releases.serving(log_now, releases.now()):
            if self.live and self.live.release.epoch >= wanted.epoch:
                return
            due, wait = self._refused.get(wanted.epoch, (0.0, _RETRY_REFUSED_SECONDS))
            if time.monotonic() >= due:
                try:
                    self._switch(self._ahead.get(wanted.epoch) or self._load(wanted))
                    self._refused.pop(wanted.epoch, None)
                    return
                except Refused as refused:
                    self._refused[wanted.epoch] = time.monotonic() + wait, min(2 * wait, _RETRY_REFUSED_MOST)
                    self._refuse(refused, wanted.epoch)
            log_now = [release for release in log_now if release.epoch != wanted.epoch]

    def _look_ahead(self) -> None:
        """Load what is to take over at an instant, and take over then, whatever the bucket does at that moment."""
        now = releases.now()
        for release in self._log:
            if release.activate_at and now < release.activate_at < now + _AHEAD and release.epoch not in self._ahead:
                try:
                    self._ahead[release.epoch] = self._load(release)
                except Refused as refused:
                    self._refuse(refused, release.epoch)
                    continue
                wait = (release.activate_at - releases.now()).total_seconds()
                timer = threading.Timer(wait, self._at_the_instant, [release.activate_at])
                timer.daemon = True
                timer.start()

    def _at_the_instant(self, instant: datetime) -> None:
        wanted = releases.serving(list(self._log), max(instant, releases.now()))
        if wanted and wanted.epoch in self._ahead:
            self._switch(self._ahead[wanted.epoch])

    def _switch(self, new: Live) -> None:
        with self._swap:
            old = self.live
            if old and old.release.epoch >= new.release.epoch:
                return
            self.live = new
        self._ahead = {epoch: live for epoch, live in self._ahead.items() if epoch > new.release.epoch}
        kept = [new.release, *(live.release for live in self._ahead.values())]
        for digest in set(self._models) - {digest for release in kept for digest in (release.champion, release.challenger)}:
            del self._models[digest]
        if old and old.challenger and old.challenger is not new.challenger:
            threading.Thread(target=old.challenger.close, daemon=True).start()  # it may be busy yet
        self._metrics.info.clear()
        self._metrics.info.labels(self._settings.model, new.model.digest).set(1)
        self._metrics.weight.set(new.release.weight or 0)
        said = {"event": "serving", "epoch": new.release.epoch, "mode": new.release.mode, "digest": new.model.digest}
        log.info("%s", json.dumps(said))

    def _load(self, release: Release) -> Live:
        try:
            return self._verified(release)
        except (Refused, BaseError, OSError):  # the bucket or this machine: nothing is said about the model
            raise
        except Exception as error:  # whatever was written to break a reader refuses itself, and the next release is read
            raise Refused("load", f"release {release.epoch}", type(error).__name__, str(error)[:200]) from None

    def _verified(self, release: Release) -> Live:
        model, challenger = self._model(release.champion), None
        if release.challenger and release.tried:
            challenger = self._on_trial(release.challenger, model.contract.judge.budget_ms)
        elif release.challenger:
            self._model(release.challenger)
        return Live(release, model, challenger)

    def _model(self, digest: str) -> Model:
        require_approval(self._store, self._keyring, self._settings.model, digest, self._settings.env)
        if digest not in self._models:
            fetched = self._probed(digest)
            loaded = Model(fetched, digest)
            loaded.warm(fetched)
            self._models[digest] = loaded
        return self._models[digest]

    def _probed(self, digest: str) -> Bundle:
        fetched = bundle.read(self._store, self._settings.model, digest)
        probe(fetched, digest, self._settings.probe_memory_mb)
        return fetched

    def _on_trial(self, digest: str, budget_ms: float) -> Challenger:
        require_approval(self._store, self._keyring, self._settings.model, digest, self._settings.env)
        if self.live and self.live.challenger and self.live.challenger.digest == digest:
            return self.live.challenger
        fetched = self._probed(digest)
        try:
            return Challenger(fetched, digest, budget_ms, self._settings.probe_memory_mb, self._loop)
        except OSError as error:
            raise Refused("challenger", f"bundle {digest[:12]}", type(error).__name__, "does not start in a process of its own") from None

    def _tell(self) -> None:
        """Where this replica stands, for whoever has to know that all are ready for an instant."""
        live, (at, before) = self.live, self._told
        state: dict[str, object] = {"serving": live.release.epoch if live else 0, "ready": not self.reason, "loaded": sorted(self._models)}
        if state != before or time.monotonic() - at > _TELL_SECONDS:
            replicas.tell(self._store, self._settings.model, self._settings.replica, **state)
            self._told = time.monotonic(), state

    def _refuse(self, refused: Refused, epoch: int) -> None:
        self._metrics.refused.labels(refused.reason).inc()
        log.error("%s", json.dumps({"event": "refused", "epoch": epoch, "reason": refused.reason, "why": str(refused)}))

    def _measure(self) -> None:
        now = releases.now()
        wanted = releases.serving(self._log, now)
        served = self.live.release.epoch if self.live else 0
        self._metrics.epoch.labels("wanted").set(wanted.epoch if wanted else 0)
        self._metrics.epoch.labels("serving").set(served)
        self._metrics.breaker.set(bool(self.live and self.live.challenger and self.live.challenger.breaker.open))
        behind = wanted is not None and served != wanted.epoch
        self._metrics.lag.set((now - wanted.at).total_seconds() if wanted and behind else 0)

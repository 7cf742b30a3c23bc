import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from app.auth import Auth
from app.batch import Live
from app.loader import Loader
from app.metrics import Metrics
from app.settings import Settings
from mlops import access, releases, replicas
from mlops.errors import VerificationError
from mlops.registered_model import RegisteredModel
from mlops.releases import Release

log = logging.getLogger("app.watcher")
_RETRY_SECONDS = 30.0  # a repaired keyring counts without a restart; doubled each time
_RETRY_SECONDS_MAX = 3600.0
_AHEAD = 2  # releases loaded before their instant: each may hold a model, and a process for its challenger
_CLOCK_SKEW = timedelta(minutes=5)
_REPORT_SECONDS = 10.0


class Watcher:
    """Follows the release log and the access log in a thread of its own; `live` is what answers.

    A release is served once it is verified and loaded. Until then, and whatever happens to the bucket, the last good
    one answers.
    """

    def __init__(self, settings: Settings, model: RegisteredModel, auth: Auth, metrics: Metrics):
        self.live: Live | None = None
        self.reason = "starting: the bucket has not been read yet"  # why not ready; empty: ready
        self._settings, self._model, self._auth, self._metrics = settings, model, auth, metrics
        self._access = access.access_log(model.store)
        self._log: list[Release] = []
        model.releases.refuse = self._refuse
        self._access_revision = -1  # not read yet
        self._refused: dict[int, tuple[float, float]] = {}  # revision → when to try again, and how long to wait then
        self._ahead: dict[int, Live] = {}  # by revision: loaded, to answer from an instant on
        self._swap = threading.Lock()
        self._reported: tuple[float, dict[str, object]] = 0.0, {}
        self._stop = threading.Event()
        every = {
            "access": self._follow_access, "releases": self._follow_releases,
            "state": self._report, "lag": self._measure,
        }  # fmt: skip
        self._threads = [
            threading.Thread(target=self._run, args=[steps], name=name, daemon=True)
            for name, steps in (("watcher", every), ("ahead", {"ahead": self._load_ahead}))
        ]

    def start(self) -> None:
        self._loader = Loader(self._model, self._settings.sandbox_memory_mb, asyncio.get_running_loop())
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=5)
        for live in (self.live, *self._ahead.values()):
            if live and live.challenger:
                live.challenger.close()

    def _run(self, steps: dict[str, Callable[[], None]]) -> None:
        while not self._stop.is_set():
            for operation, step in steps.items():
                try:
                    step()
                except Exception as error:  # the bucket is unreachable or damaged: keep answering, try again
                    self._metrics.bucket_errors.labels(operation).inc()
                    log.warning("step failed", extra={"operation": operation, "error": str(error)[:300]})
                    if operation == "releases" and self.live is None and self.reason:
                        self.reason = f"the bucket cannot be read: {str(error)[:200]}"
            self._stop.wait(self._settings.poll_seconds * random.uniform(0.8, 1.2))

    def _follow_access(self) -> None:
        if self._access_revision < 0:
            self._access_revision, keys = access.newest(self._model.store)
            self._auth.replace(keys)
        for revision, raw in self._access.tail(self._access_revision):
            self._access_revision = revision
            try:
                self._auth.replace(access.parse(revision, raw))
            except VerificationError as error:
                self._refuse(error, revision)

    def _follow_releases(self) -> None:
        log = self._model.releases
        if log.revision == 0:
            self._refuse_strays()
        known, self._log = self._log[-1].revision if self._log else 0, log.read()
        for release in self._log:
            if release.revision > known and release.at > releases.now() + _CLOCK_SKEW:
                hint = "lies in the future: until then it changes nothing"
                error = VerificationError("future", f"release {release.revision}", release.at.isoformat(), hint)
                self._refuse(error, release.revision)
        self._serve_newest()
        self.reason = "" if self.live or not log.revision else "no release verifies"

    def _refuse_strays(self) -> None:
        if strays := self._model.releases.log.listed()[1]:
            hint = f"and {len(strays) - 1} more are not in sequence"
            self._refuse(VerificationError("revision", "releases", strays[0][-80:], hint), 0)

    def _serve_newest(self) -> None:
        """The release in force; if it does not verify at the start, the newest one before it that does."""
        log_now = list(self._log)
        while wanted := releases.serving(log_now, releases.now()):
            if self.live and self.live.release.revision >= wanted.revision:
                return
            if loaded := self._ahead.get(wanted.revision) or self._try(wanted):
                self._switch(loaded)
                return
            log_now = [release for release in log_now if release.revision != wanted.revision]

    def _load_ahead(self) -> None:
        """Load what takes over at an instant, and switch then, whatever state the bucket is in at that moment. In a thread
        of its own: what is in force now waits for no more than one of them."""
        now, log_now = releases.now(), list(self._log)
        soon = [(at, each) for each in log_now if (at := each.activate_at) and now < at < now + _CLOCK_SKEW]
        for at, release in sorted(soon, key=lambda pair: pair[0])[:_AHEAD]:
            if releases.serving(log_now, at) != release or release.revision in self._ahead:
                continue
            if loaded := self._try(release):
                with self._swap:
                    replaced = self.live is not None and self.live.release.revision >= release.revision
                    self._ahead |= {} if replaced else {release.revision: loaded}
                if replaced:
                    self._close([loaded])
                    continue
                timer = threading.Timer((at - releases.now()).total_seconds(), self._activate, [at])
                timer.daemon = True
                timer.start()

    def _try(self, release: Release) -> Live | None:
        """None if it does not verify; it is loaded again after a while, twice as long each time."""
        due, wait = self._refused.get(release.revision, (0.0, _RETRY_SECONDS))
        if time.monotonic() < due:
            return None
        try:
            loaded = self._loader.load(release, self.live)
        except VerificationError as error:
            self._refused[release.revision] = time.monotonic() + wait, min(2 * wait, _RETRY_SECONDS_MAX)
            self._refuse(error, release.revision)
            return None
        self._refused.pop(release.revision, None)
        return loaded

    def _activate(self, at: datetime) -> None:
        wanted = releases.serving(list(self._log), max(at, releases.now()))
        if wanted and wanted.revision in self._ahead:
            self._switch(self._ahead[wanted.revision])

    def _switch(self, new: Live) -> None:
        with self._swap:
            old = self.live
            if old and old.release.revision >= new.release.revision:
                return
            release, self.live, before = new.release, new, [old, *self._ahead.values()]
            self._ahead = {revision: live for revision, live in self._ahead.items() if revision > release.revision}
        kept = [new, *self._ahead.values()]
        self._loader.keep({digest for each in kept for digest in (each.release.champion, each.release.challenger)})
        self._close(before, kept)
        self._metrics.info.clear()
        self._metrics.info.labels(self._model.name, new.model.digest).set(1)
        self._metrics.weight.set(release.weight or 0)
        extra = {"revision": release.revision, "mode": release.mode, "model_version": new.model.digest}
        log.info("serving", extra=extra)

    @staticmethod
    def _close(replaced: Iterable[Live | None], kept: Iterable[Live] = ()) -> None:
        """The challengers that are not needed any more; they may still be busy."""
        needed = [live.challenger for live in kept]
        for challenger in {live.challenger for live in replaced if live}:
            if challenger and challenger not in needed:
                threading.Thread(target=challenger.close, daemon=True).start()

    def _report(self) -> None:
        """The state of this replica: blue-green waits until all of them are ready for an instant."""
        live, (at, before) = self.live, self._reported
        served, loaded = live.release.revision if live else 0, sorted(self._loader.models)
        state: dict[str, object] = {"serving": served, "ready": not self.reason, "loaded": loaded}
        if state != before or time.monotonic() - at > _REPORT_SECONDS:
            replicas.report(self._model, self._settings.replica, **state)
            self._reported = time.monotonic(), state

    def _refuse(self, error: VerificationError, revision: int) -> None:
        self._metrics.refused.labels(error.reason).inc()
        log.error("refused", extra={"revision": revision, "reason": error.reason, "why": str(error)})

    def _measure(self) -> None:
        now = releases.now()
        wanted = releases.serving(self._log, now)
        served = self.live.release.revision if self.live else 0
        self._metrics.revision.labels("wanted").set(wanted.revision if wanted else 0)
        self._metrics.revision.labels("serving").set(served)
        self._metrics.breaker.set(bool(self.live and self.live.challenger and self.live.challenger.breaker.open))
        behind = wanted is not None and served != wanted.revision
        self._metrics.lag.set((now - wanted.at).total_seconds() if wanted and behind else 0)

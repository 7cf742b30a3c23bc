import asyncio
import threading

from obstore.exceptions import BaseError

from app.batch import Live
from app.challenger import Challenger
from mlops import bundle
from mlops.attestations import require_approval
from mlops.bundle import Bundle
from mlops.errors import VerificationError
from mlops.model import Model
from mlops.registered_model import RegisteredModel
from mlops.releases import Release
from mlops.sandbox import run_in_sandbox


class Loader:
    """Verifies and loads what a release needs: approval, bundle, and the model, which a child process loads first."""

    def __init__(self, model: RegisteredModel, sandbox_memory_mb: int, loop: asyncio.AbstractEventLoop):
        self.models: dict[str, Model] = {}  # loaded, by digest
        self._model, self._memory_mb, self._loop = model, sandbox_memory_mb, loop
        self._lock = threading.Lock()  # one at a time: each may take the memory of a model twice

    def load(self, release: Release, live: Live | None) -> Live:
        """Raises VerificationError; the errors of the bucket or this machine say nothing about the model."""
        try:
            with self._lock:
                return self._load(release, live)
        except (VerificationError, BaseError, OSError):
            raise
        except Exception as error:  # whatever else a hostile bundle causes: the release is refused
            name, message = type(error).__name__, str(error)[:200]
            raise VerificationError("load", f"release {release.revision}", name, message) from None

    def keep(self, digests: set[str | None]) -> None:
        for digest in self.models.keys() - digests:
            del self.models[digest]

    def _load(self, release: Release, live: Live | None) -> Live:
        champion, challenger = self._loaded(release.champion), None
        if release.challenger and release.in_rollout:
            challenger = self._challenger(release.challenger, champion.contract.judge.budget_ms, live)
        elif release.challenger:
            self._loaded(release.challenger)
        return Live(release, champion, challenger)

    def _loaded(self, digest: str) -> Model:
        require_approval(self._model, digest)
        if digest not in self.models:
            verified = self._verified(digest)
            loaded = Model(verified, digest)
            loaded.warm(verified)
            self.models[digest] = loaded
        return self.models[digest]

    def _challenger(self, digest: str, budget_ms: float, live: Live | None) -> Challenger:
        require_approval(self._model, digest)
        if live and live.challenger and live.challenger.digest == digest:
            return live.challenger
        verified = self._verified(digest)
        try:
            return Challenger(verified, digest, budget_ms, self._memory_mb, self._loop)
        except OSError as error:
            name, hint = type(error).__name__, "its process does not start"
            raise VerificationError("challenger", f"bundle {digest[:12]}", name, hint) from None

    def _verified(self, digest: str) -> Bundle:
        return run_in_sandbox(bundle.read(self._model, digest), digest, self._memory_mb).bundle

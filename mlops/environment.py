import json
import os
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel

from mlops.errors import UserError
from mlops.keys import Keyring
from mlops.registered_model import RegisteredModel
from mlops.store import Store

ROOT = Path(__file__).resolve().parent.parent
MODELS = Path(os.environ.get("MLOPS_MODELS", ROOT / "training" / "models"))


class Environment(BaseModel):
    """Addresses of one environment: `environments/<name>/environment.yaml`, each key overridden by MLOPS_<KEY>."""

    name: str
    home: Path  # local files: keys, logs, spool
    bucket: str
    keyring: Path
    endpoint: str
    tracking: str

    @classmethod
    def load(cls, name: str | None = None) -> Self:
        name = name or os.environ.get("MLOPS_ENV", "local")
        file = ROOT / "environments" / name / "environment.yaml"
        values: dict[str, Any] = yaml.safe_load(file.read_text("utf-8")) if file.exists() else {}
        variables = {key: os.environ.get(f"MLOPS_{key.upper()}") for key in cls.model_fields}
        from_process = {key: value for key, value in variables.items() if value is not None}
        home = ROOT / Path(from_process.get("home") or values.get("home") or ".mlops")
        values = {k: str(v).format(home=home) for k, v in values.items()}
        running = home / "running.json"  # written by the embedded platform: its ports may not be the usual ones
        if running.exists():
            values |= json.loads(running.read_text("utf-8"))
        values |= from_process | {"name": name, "home": home}
        values |= {key: values[key].rstrip("/") for key in ("endpoint", "tracking", "bucket") if key in values}
        if missing := [key for key in cls.model_fields if key not in values]:
            hint = f"has neither {file.relative_to(ROOT)} nor MLOPS_{missing[0].upper()}; create the file or set the variable"
            raise UserError("env", name, hint)
        return cls(**values)

    @property
    def store(self) -> Store:
        return Store(self.bucket)

    @property
    def keys(self) -> Keyring:
        return Keyring(self.keyring)

    @property
    def log_key(self) -> str:
        """MLOPS_LOG_KEY, or the one that the embedded platform made; empty if there is neither."""
        kept = self.keyring.parent / "log.key"
        return os.environ.get("MLOPS_LOG_KEY") or (kept.read_text("utf-8").strip() if kept.exists() else "")

    def model(self, name: str) -> RegisteredModel:
        return RegisteredModel(name, self.name, self.store, self.keys, self.log_key)


def models() -> list[str]:
    return sorted(path.parent.name for path in MODELS.glob("[!.]*/contract.yaml"))


def only_model() -> str:
    """The name of the one model in MODELS. Raises UserError if there is none, or more than one."""
    names = models()
    if len(names) != 1:
        hint = "choose one with --model or MLOPS_MODEL, or create one: mlops init DATA --target COLUMN"
        raise UserError("model", ", ".join(names) or "none", hint)
    return names[0]

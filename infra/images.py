"""Our images: which ones an environment runs, and the tags that name their content."""

import fnmatch
import hashlib
import json
import re
from functools import cache
from pathlib import Path

from mlops.environment import ROOT
from mlops.errors import UserError

TARGETS = ("app", "mlflow", "training")  # of the Dockerfile; training is built on the layers of mlflow
_HERE = ("kind",)  # environments that run what was built on their own machine


def running(environment: str) -> dict[str, str]:
    """What was last released to the environment, by digest; on a cluster of this machine, by the content of this folder.
    Empty if nothing is released yet."""
    if environment in _HERE:
        return {target: f"docker.io/library/mlops-{target}:{content(target)}" for target in TARGETS}
    file = released(environment)
    if not file.exists():
        return {}
    try:
        artifacts = json.loads(file.read_text("utf-8"))["artifacts"]
        return {target: artifacts[target] for target in TARGETS if target in artifacts}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("released", str(file), f"is not a build ({error}); restore it from git") from None


def released(environment: str, root: Path | None = None) -> Path:
    """Written by machines alone; that of the last environment is in git."""
    return (root or ROOT) / "environments" / "released" / f"{environment}.json"


@cache
def content(target: str) -> str:
    """Of everything that the Dockerfile copies into a target: the same files, the same tag."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    found = hashlib.sha256(text.encode())
    for path in sorted(_copied(text, target)):
        data = path.read_bytes()
        found.update(f"{path.relative_to(ROOT).as_posix()} {len(data)}\n".encode() + data)
    return found.hexdigest()[:16]


def _copied(text: str, target: str) -> set[Path]:
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    parents = {stage.split()[2]: (stage.split()[0], stage) for stage in stages}
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    paths: set[Path] = set()
    while target in parents:
        target, stage = parents[target]
        for copied in re.findall(r"^COPY (.*)", stage, re.MULTILINE):
            for source in [word for word in copied.split() if not word.startswith("--")][:-1]:
                paths |= {ROOT / source, *(ROOT / source).rglob("*")}
    return {path for path in paths if path.is_file() and "__pycache__" not in path.parts
            and any(fnmatch.fnmatch(path.relative_to(ROOT).as_posix(), pattern) for pattern in allowed)}  # fmt: skip

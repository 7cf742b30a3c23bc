"""One commit becomes artifacts: the wheel and the images, each with its list of components, signed for."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from cli import images
from cli.cluster import Cluster
from cli.delivery.builds import SBOM, Build, attest
from cli.delivery.git import git, head
from cli.delivery.github import run_url
from cli.delivery.road import Road
from infra.images import TARGETS
from mlops.environment import ROOT
from mlops.errors import UserError


def build(road: Road, push: bool, platform: str, say: Callable[[str], None]) -> Build:
    """Without `push` nothing leaves this machine: it shows that everything can be built. Images that the registry has
    already, with the same content, are not built again."""
    commit = head()
    if push and (changed := git("status", "--porcelain", "--untracked-files=no")):
        raise UserError("commit", changed.splitlines()[0], "is not committed: what is built must be in the history")
    with TemporaryDirectory() as folder:
        say("wheel")
        data = wheel(Path(folder))
    digest = hashlib.sha256(data).hexdigest()
    artifacts = {"wheel": f"sha256:{digest}", "infrastructure": _infrastructure()}
    if push:
        road.bucket.put_new(f"wheels/{digest}.whl", data)
    if road.registry or not push:
        registry, cluster = road.registry if push else None, Cluster.of(road.environments[0])
        if cluster and cluster.settings["cluster.kind"] == "eks":
            platform = platform or f"linux/{cluster.settings['nodes.architecture']}"
        artifacts |= images.build(TARGETS, registry, platform, ["--build-arg", f"COMMIT={commit}"], say)
    if not push:
        return Build(commit=commit, artifacts={"wheel": artifacts["wheel"]})
    for target in TARGETS if road.registry else ():
        say(f"components of {target}")
        artifacts[f"{target}{SBOM}"] = f"sha256:{hashlib.sha256(_components(road, target)).hexdigest()}"
    made = Build(commit=commit, artifacts=artifacts, run=run_url())
    attest(road, "built", made)
    return made


def _infrastructure() -> str:
    """Of what decides on infrastructure and is in no image; environments/released follows from it."""
    paths = ("Pulumi.yaml", "infra", "environments", "requirements/infra.txt", "requirements/aws.txt")
    listed = git("ls-tree", "-r", "HEAD", "--", *paths).splitlines()
    kept = "\n".join(line for line in listed if "\tenvironments/released/" not in line)
    return f"sha256:{hashlib.sha256(kept.encode()).hexdigest()}"


def uv() -> str:
    return shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")


def wheel(folder: Path, root: Path = ROOT) -> bytes:
    """The same files make the same bytes."""
    command = [uv(), "build", "--quiet", "--wheel", "--no-progress", "--out-dir", str(folder), str(root)]
    _run(command)
    return next(folder.glob("*.whl")).read_bytes()


def _components(road: Road, target: str) -> bytes:
    """CycloneDX, of the libraries that are installed into an image; the system's are those of its base image. The same
    requirements make the same bytes, so they are listed once."""
    requirements = ROOT / "requirements" / f"{target}.txt"
    key = f"sboms/{target}-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]}.cdx.json"
    if (found := road.bucket.get(key)) is None:
        command = [str(Path(sys.executable).with_name("cyclonedx-py")), "requirements", "--output-reproducible"]
        found = _run([*command, "--of", "JSON", str(requirements)])
        road.bucket.put_new(key, found)
    return found


def _run(command: list[str]) -> bytes:
    try:
        done = subprocess.run(command, capture_output=True, env=os.environ | {"UV_PYTHON_DOWNLOADS": "never"})
    except FileNotFoundError:
        raise UserError(Path(command[0]).name, "missing", "install it: make install") from None
    if done.returncode:
        raise UserError(
            Path(command[0]).name, " ".join(command[1:3]), done.stderr.decode(errors="replace").strip()[-600:]
        )
    return done.stdout

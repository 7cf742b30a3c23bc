"""The three images of the platform: built with whatever is here, then handed to the cluster or pushed to a registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from mlops.environment import ROOT
from mlops.errors import Fault

DOCKERFILES = {"app": "app/Dockerfile", "training": "training/Dockerfile", "mlflow": "infra/mlflow/Dockerfile"}
BUILDERS = ("docker", "podman", "buildah")


@cache
def builder() -> str:
    for name in BUILDERS:
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True).returncode == 0:  # its service may not run
            return name
    raise Fault("builder", "none", f"install and start one of {', '.join(BUILDERS)}")


def build(name: str, image: str, platform: str | None, commit: str, secrets: dict[str, Path]) -> None:
    """`secrets`: pip.conf and ca.pem, for a package index and a certificate authority of one's own."""
    tool = builder()
    command = [tool, *(["bud", "--layers"] if tool == "buildah" else ["build"]), "-f", str(ROOT / DOCKERFILES[name]), "-t", image]
    command += ["--platform", platform] if platform else []
    command += ["--network", "host"] if tool == "buildah" else []
    command += ["--build-arg", f"COMMIT={commit}"] if name == "training" else []
    command += [word for key, path in secrets.items() for word in ("--secret", f"id={key},src={path}")]
    _run([*command, str(ROOT)])


def push(image: str) -> str:
    """Returns the image by its digest."""
    tool = builder()
    with tempfile.TemporaryDirectory() as folder:
        if tool == "docker":
            _run([tool, "push", image])
            digests = _run([tool, "image", "inspect", "--format", '{{join .RepoDigests "\\n"}}', image]).split()
            return next(found for found in digests if found.startswith(f"{image.rpartition(':')[0]}@"))
        file = Path(folder, "digest")
        _run([tool, "push", "--digestfile", str(file), image])
        return f"{image.rpartition(':')[0]}@{file.read_text().strip()}"


def load(images: list[str], context: str) -> None:
    """Hand images to the cluster of this machine."""
    kind, _, cluster = context.partition("-")
    with tempfile.TemporaryDirectory() as folder:
        for image in images:
            archive = Path(folder, "image.tar")
            archive.unlink(missing_ok=True)
            _save(image, archive)
            command = next(_loaders(kind, cluster, archive), None)
            if command is None:
                raise Fault(
                    "cluster.context",
                    context,
                    "is no cluster of this machine that takes images (kind, k3d, minikube, containerd): mlops images --push",
                )
            _run(command)


def _loaders(kind: str, cluster: str, archive: Path) -> Iterator[list[str]]:
    if kind == "kind" and shutil.which("kind"):
        yield ["kind", "load", "image-archive", str(archive), "--name", cluster]
    if kind == "k3d" and shutil.which("k3d"):
        yield ["k3d", "image", "import", str(archive), "--cluster", cluster]
    if kind == "minikube":
        yield ["minikube", "image", "load", str(archive)]
    if shutil.which("ctr"):
        yield ["ctr", "-n", "k8s.io", "images", "import", str(archive)]


def _save(image: str, archive: Path) -> None:
    tool = builder()
    _run(
        [tool, "push", "-q", image, f"docker-archive:{archive}:{image}"] if tool == "buildah" else [tool, "save", "-o", str(archive), image]
    )


def _run(command: list[str]) -> str:
    # Without privileges of its own, as in a container, buildah needs these two; where it has them they do no harm.
    extra = {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"} if command[0] == "buildah" else {}
    done = subprocess.run(command, env=extra | os.environ, capture_output=True, text=True)
    if done.returncode:
        raise Fault(command[0], " ".join(command[1:3]), (done.stderr or done.stdout).strip()[-600:])
    return done.stdout


def make(
    wanted: dict[str, str],
    context: str,
    registry: str | None,
    platform: str | None,
    commit: str,
    secrets: dict[str, Path],
    say: Callable[[str], None],
) -> dict[str, str]:
    """`wanted`: part → image. Returns part → the image as an environment names it: by digest if it was pushed."""
    found = {}
    for name, image in wanted.items():
        image = f"{registry}/mlops-{name}:{commit[:12]}" if registry else image.partition("@")[0]
        say(f"build {image}")
        build(name, image, platform, commit, secrets)
        say(f"push {image}" if registry else f"load {image}")
        found[name] = push(image) if registry else image
    if not registry:
        load(list(found.values()), context)
    return found

"""The three images of the platform: built with whatever builder is here, then loaded into the cluster or pushed."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from mlops.environment import ROOT
from mlops.errors import UserError

TARGETS = ("app", "mlflow", "training")  # of the Dockerfile; training is built on the layers of mlflow
BUILDERS = ("docker", "podman", "buildah")


def deliver(
    wanted: dict[str, str], context: str, registry: str | None, options: list[str], tag: str, say: Callable[[str], None]
) -> dict[str, str]:
    """`wanted`: target → image; `options`: of the build. Returns target → the image as an environment names it: by digest
    if it was pushed."""
    tool, made = builder(), {}
    command = [tool, *(["bud", "--layers", "--network", "host"] if tool == "buildah" else ["build"]), *options]
    for target in sorted(wanted, key=TARGETS.index):
        image = f"{registry}/mlops-{target}:{tag}" if registry else wanted[target].partition("@")[0]
        say(f"build {image}")
        _run([*command, "--target", target, "-t", image, str(ROOT)])
        say(f"push {image}" if registry else f"load {image}")
        made[target] = push(image) if registry else image
    if not registry:
        load(list(made.values()), context)
    return made


@cache
def builder() -> str:
    for name in BUILDERS:
        # Its service may not be running.
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True).returncode == 0:
            return name
    raise UserError("builder", "none", f"install and start one of {', '.join(BUILDERS)}")


def push(image: str) -> str:
    """Returns the image by its digest."""
    tool, name = builder(), image.rpartition(":")[0]
    with tempfile.TemporaryDirectory() as folder:
        if tool == "docker":
            _run([tool, "push", image])
            template = '{{join .RepoDigests "\\n"}}'
            digests = _run([tool, "image", "inspect", "--format", template, image]).split()
            return next(digest for digest in digests if digest.startswith(f"{name}@"))
        file = Path(folder, "digest")
        _run([tool, "push", "--digestfile", str(file), image])
        return f"{name}@{file.read_text(encoding='utf-8').strip()}"


def load(images: list[str], context: str) -> None:
    """Into the cluster of this machine."""
    kind, _, cluster = context.partition("-")
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "image.tar")
        if kind == "kind" and shutil.which("kind"):
            command = ["kind", "load", "image-archive", str(archive), "--name", cluster]
        elif shutil.which("ctr"):
            command = ["ctr", "-n", "k8s.io", "images", "import", str(archive)]
        else:
            hint = "is not a cluster of this machine that takes images; push them: mlops images --push"
            raise UserError("cluster.context", context, hint)
        for image in images:
            save(image, archive)
            _run(command)
            archive.unlink()


def save(image: str, archive: Path) -> None:
    buildah = ["buildah", "push", "-q", image, f"docker-archive:{archive}:{image}"]
    _run(buildah if builder() == "buildah" else [builder(), "save", "-o", str(archive), image])


def _run(command: list[str]) -> str:
    # Inside a container buildah has no privileges and needs these two; elsewhere they do no harm.
    extra = {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"} if command[0] == "buildah" else {}
    extra["BUILDX_NO_DEFAULT_ATTESTATIONS"] = "1"  # they hold the time, so the same content had another digest
    done = subprocess.run(command, env=extra | os.environ, capture_output=True, text=True)
    if done.returncode:
        raise UserError(command[0], " ".join(command[1:3]), (done.stderr or done.stdout).strip()[-600:])
    return done.stdout

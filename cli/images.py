"""The images of the platform: built with whatever builder is here, then loaded into the cluster or pushed."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from infra.images import TARGETS, content
from mlops.environment import ROOT
from mlops.errors import UserError

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
BUILDERS = ("docker", "podman", "buildah")


def build(
    targets: Iterable[str], registry: str | None, platform: str, options: list[str], say: Callable[[str], None]
) -> dict[str, str]:
    """Returns target → image: in a registry by digest, and only built if it has none of that content; else on this
    machine, by a tag that names the content. `options`: of the build."""
    tool, made = builder(), {}
    if base := os.environ.get("MLOPS_PYTHON"):  # where the Dockerfile's cannot be pulled
        if registry and "@sha256:" not in base:
            raise UserError("MLOPS_PYTHON", base, "name it by digest: what is built on it is pushed")
        options = [*options, "--build-arg", f"PYTHON={base}"]
    command = [tool, *(["bud", "--layers", "--network", "host"] if tool == "buildah" else ["build"]), *options]
    command += ["--platform", platform] if platform else []
    architecture = platform.rpartition("/")[2] or _ARCHITECTURES.get(os.uname().machine, os.uname().machine)
    for target in sorted(targets, key=TARGETS.index):
        tag = f"{content(target)}-{architecture}" if registry else content(target)
        image = f"{registry or 'docker.io/library'}/mlops-{target}:{tag}"
        if registry and (found := _pushed(image)):
            say(f"{image} is there")
            made[target] = found
            continue
        say(f"build {image}")
        _run([*command, "--target", target, "-t", image, str(ROOT)])
        if registry:
            say(f"push {image}")
        made[target] = push(image) if registry else image
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
            return _digest(image)
        file = Path(folder, "digest")
        _run([tool, "push", "--digestfile", str(file), image])
        return f"{name}@{file.read_text(encoding='utf-8').strip()}"


def _pushed(image: str) -> str:
    """By its digest; '' if the registry does not have that tag. Raises UserError if it does not say."""
    try:
        _run([builder(), "pull", "--quiet", image])
    except UserError as error:
        if re.search("not found|unknown|no such|does not exist", error.hint, re.IGNORECASE):
            return ""
        raise
    return _digest(image)


def _digest(image: str) -> str:
    tool, name = builder(), image.rpartition(":")[0]
    if tool == "buildah":
        return f"{name}@{_run([tool, 'inspect', '--type', 'image', '--format', '{{.FromImageDigest}}', image]).strip()}"
    template = '{{join .RepoDigests "\\n"}}' if tool == "docker" else "{{range .RepoDigests}}{{println .}}{{end}}"
    digests = _run([tool, "image", "inspect", "--format", template, image]).split()
    return next(digest for digest in digests if digest.startswith(f"{name}@"))


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

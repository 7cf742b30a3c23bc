"""What is fetched is what was looked at: packages by hash, images by digest, whoever fetches them."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from mlops.environment import ROOT
from tests.test_repository import FILES, name

_FETCHES = re.compile(
    r"pip3? (install|sync|wheel|download)|\bpipx\b|\buvx\b|uv tool|--seed|\bnpx\b|npm (i|install|exec)\b|go (install|run) |"
    r"cargo install|gem install|\b(curl|wget)\b.*\|\s*(sudo )?\w*sh\b|\bADD https?:"
)
_HASHED = ("--require-hashes", "--no-index --editable .")
# What people and pipelines run; a package's extras are theirs to ask for.
RUN = [path for path in FILES if path.suffix in (".md", ".yml", ".yaml", ".sh", "") and "tests" not in path.parts]
COMPOSE = yaml.safe_load((ROOT / "environments" / "local" / "compose.yaml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def lines(path: Path) -> list[str]:
    """Whole commands: what goes on in the next line belongs to it."""
    return re.sub(r"\\\n\s*", "", path.read_text()).splitlines()


@pytest.mark.parametrize("path", RUN, ids=name)
def test_what_is_installed_has_a_hash(path: Path) -> None:
    found = [line.strip() for line in lines(path) if _FETCHES.search(line) and not line.lstrip().startswith("#")]
    if path.name == "Dockerfile":
        assert "PIP_REQUIRE_HASHES=1" in DOCKERFILE.partition("RUN --mount")[0], "for every target"
        assert "PIP_ONLY_BINARY=:all:" in DOCKERFILE.partition("RUN --mount")[0], "a builder has no hash"
        found = [line for line in found if not re.search(r"pip install -r requirements/\w+\.txt$", line)]
    assert [line for line in found if not any(how in line for how in _HASHED) and not _exact_tools(line, path)] == []


def _exact_tools(line: str, path: Path) -> bool:
    """Go asks its checksum database for the hash of an exact version."""
    tools = re.findall(
        r"[\w.-]+\.[a-z]+/[\w./-]+(?:@\S+)?", " ".join(each for each in lines(path) if "for tool in" in each)
    )
    return (
        'go install "$tool"' in line and bool(tools) and all(re.search(r"@v\d+\.\d+\.\d+;?$", tool) for tool in tools)
    )


def test_only_the_example_is_built_from_source_and_by_what_has_a_hash() -> None:
    makefile = (ROOT / "Makefile").read_text()
    installs = [line for line in lines(ROOT / "Makefile") if "requirements/dev.txt" in line and "pip" in line]
    assert [line for line in installs if "--build-constraints requirements/build.txt" not in line] == []
    assert "--no-build" in next(line for line in makefile.splitlines() if "requirements/$*.txt --requirements" in line)


def test_uv_is_the_one_that_builds_this_project_by_itself() -> None:
    """Of another version it would fetch the builder."""
    [wanted] = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    locked = (ROOT / "requirements" / "uv.txt").read_text().split()[0]
    assert wanted.replace("uv_build", "uv") == locked


def images() -> dict[str, str]:
    """Those of others, by where they are named."""
    declared = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())["config"]
    defaults = {key: entry.get("default") for key, entry in declared.items() if key.startswith("images.")}
    found = {key: image for key, image in defaults.items() if image and isinstance(image, str)}
    found |= {f"compose {key}": each["image"] for key, each in COMPOSE["services"].items()}
    values = dict(re.findall(r"^ARG (\w+)=(\S+)", DOCKERFILE, re.MULTILINE))
    stages = {*re.findall(r"^FROM .* AS (\w+)$", DOCKERFILE, re.MULTILINE)}
    for n, (source, _) in enumerate(re.findall(r"(?:^FROM |--from=|^# syntax=)(\S+)( |$)", DOCKERFILE, re.MULTILINE)):
        image = re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], source)
        found |= {f"Dockerfile {n}": image} if image not in stages else {}
    return {where: image for where, image in found.items() if not image.startswith("mlops-")}


@pytest.mark.parametrize(("where", "image"), images().items())
def test_an_image_of_others_is_named_by_version_and_digest(where: str, image: str) -> None:
    assert re.search(r"^[\w./-]+:v?\d+(\.\d+)+[\w.-]*@sha256:[0-9a-f]{64}$", image)


def test_compose_runs_what_a_cluster_runs() -> None:
    found = images()
    of_cluster = {image for where, image in found.items() if where.startswith("images.")}
    assert {image for where, image in found.items() if where.startswith("compose")} <= of_cluster

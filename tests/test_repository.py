"""The repository keeps its own promises: its README is true, its parts stay apart, its workflows are pinned."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from mlops.environment import ROOT

PARTS = ("app", "training", "monitoring")
TRACKED = [
    ROOT / line
    for line in subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
]
FILES = [path for path in TRACKED if path.is_file()]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("part", PARTS)
def test_a_part_imports_the_kernel_and_no_other_part(part: str) -> None:
    others = set(PARTS) - {part} | {"environments", "tests"}
    assert {str(path): found for path in (ROOT / part).rglob("*.py") if (found := _imports(path) & others)} == {}


def test_the_readme_is_short_and_its_targets_exist() -> None:
    assert len(README.splitlines()) <= 150
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)", README)) <= targets
    assert {verb for verbs in re.findall(r"`make ([a-z ]+)`", README) for verb in verbs.split()} <= targets


@pytest.mark.parametrize(
    "document", ["README.md", "SECURITY.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_and_folders_of_a_document_exist(document: str) -> None:
    path = ROOT / document
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text())
    assert [link for link in linked if not (path.parent / link).exists()] == []


def test_uv_may_lie_in_a_folder_with_a_space(tmp_path: Path) -> None:
    uv = tmp_path / "a space" / "uv"
    uv.parent.mkdir()
    uv.touch(0o755)
    path = f"{uv.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["make", "-n", "install"], cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_tests_of_ci_are_those_of_the_readme() -> None:
    assert "make test" in README
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "make test"
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["make test"]


@pytest.mark.parametrize("workflow", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name)
def test_a_workflow_is_pinned_limited_and_asks_for_little(workflow: Path) -> None:
    text, parsed = workflow.read_text(), yaml.safe_load(workflow.read_text())
    assert parsed["permissions"] == {}
    assert [
        use for use in re.findall(r"uses: (\S+)", text) if not re.fullmatch(r"(\./.*|[\w./-]+@[0-9a-f]{40})", use)
    ] == []
    for name, job in parsed["jobs"].items():
        assert job.get("timeout-minutes", 999) <= 90, name
        assert "permissions" in job, name


@pytest.mark.parametrize("lock", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.name)
def test_a_lock_names_no_index_and_pins_every_package(lock: Path) -> None:
    text = lock.read_text()
    assert re.findall(r"^\s*(-i|--index|--extra|--find).*|https?://", text, re.MULTILINE) == []
    pinned = re.findall(r"^[a-z0-9][\w.-]*==", text, re.MULTILINE)
    assert len(pinned) > 20
    if lock.stem != "constraints":
        assert len(re.findall(r"^[a-z0-9][^\n]*\\\n\s+--hash=sha256:", text, re.MULTILINE)) == len(pinned)


def test_locks_agree_on_versions() -> None:
    versions: dict[str, set[str]] = {}
    for lock in (ROOT / "requirements").glob("*.txt"):
        for name, rest in re.findall(r"^([a-z0-9][\w.-]*)==([^\\\n]+)", lock.read_text(), re.MULTILINE):
            versions.setdefault(f"{name} {rest.partition(';')[2].strip()}", set()).add(rest.partition(";")[0].strip())
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_the_example_is_named_in_its_two_folders_alone() -> None:
    code = [
        p
        for p in FILES
        if p.suffix in (".py", ".yaml", ".yml", ".html") and "models/flights" not in str(p) and p != Path(__file__)
    ]
    assert [str(p) for p in code if re.search(r"\bflights\b|nycflights", p.read_text())] == []


def test_a_proof_on_file_says_when_where_and_whether_it_holds() -> None:
    for file in (ROOT / "docs" / "proofs").glob("*.json"):
        proof = json.loads(file.read_text())
        assert {"proof", "holds", "commit", "date", "machine"} <= set(proof), file.name
        assert proof["holds"] or proof["reason"], file.name
        assert (ROOT / "tests" / "proofs" / f"{proof['proof']}.py").exists(), file.name

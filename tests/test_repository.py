"""The repository keeps its own promises: its docs are true, its parts stay apart, it stays small, its workflows are pinned."""

import ast
import fnmatch
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from cli.main import app as command
from mlops.environment import ROOT
from tests.bucket_map import bucket_map
from tests.proofs.__main__ import index

# Lines of Python at line length 120. What grows past its budget wants a better idea, or a library.
BUDGET = {
    "mlops": 3690,
    "cli": 4650,  # of them for delivery some 2,600
    "app": 1915,
    "training": 2885,
    "monitoring": 3400,  # of them for drift, quality and trainings some 1,100, for the status page some 500
    "infra": 4170,  # of them for AWS some 2,200
    "environments": 985,
}
IMPORTS = {part: {"mlops"} for part in ("app", "training", "monitoring", "infra")} | {"mlops": set()}
IMPORTS |= {part: {*BUDGET} for part in ("cli", "environments")}
# One word for one thing; → where the old one means something else, in the field's own sense.
OLD_WORDS = {
    r"(?<!from_)epochs?(?!\()": [],  # Polars has functions of that name
    "tried|on_trial|experiment (status|stop)": [],
    "trials?": ["training/tuning.py", "cli/main.py", "*/test_tuning.py", "tests/cli/test_cli.py"],  # Optuna
    "doors?": [],
    "statements?": [
        "mlops/envelope.py",
        "infra/provision.py",
        "infra/account/*",
        "infra/aws/*",
        "tests/infra/*",
        "tests/test_kms.py",
        "*/test_attestations.py",
        "tests/proofs/hostile.py",
    ],  # in-toto, IAM
    "recipes?": [],
    # The resampling; arguments of AWS.
    "bootstrap(ping|ped)?": ["training/gate.py", "README.md", "docs/how-it-works.md", "infra/aws/*", "tests/infra/*"],
    "way_?outs?|way out": [],
    "mend(s|ed|ing)?": [],
    "draft(s|ed|ing)?(?!\\d)": [],
    "journals?": ["training/tuning.py", "*/test_tuning.py"],  # Optuna's storage
    "probed?": [
        "infra/*",
        "tests/infra/*",
        "tests/cluster/*",
        "monitoring/runbooks/*",
        "environments/local/compose.yaml",
    ],
    "taken back|(a |one )?steps? (on|back)|stepped on": [],
    "overtaken|gaterefused": [],
}
MADE_LATER = {
    "environments/keyring.json",
    "environments/released",
    "environments/released/prod.json",
    "environments/released/dev.json",
}
EXAMPLES = list(ROOT.glob("training/models/*/.example"))  # another model has other files
COMMANDS = {  # mlops FIRST SECOND; "" if it has none
    first: dict(getattr(each, "commands", {"": each}))
    for first, each in vars(typer.main.get_command(command))["commands"].items()
}
TRACKED = [
    ROOT / line
    for line in subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
]
FILES = [path for path in TRACKED if path.is_file()]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
DOCUMENTS = [path for path in FILES if path.suffix == ".md" and path.is_relative_to(ROOT) and "tests" not in path.parts]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def python(part: str) -> list[Path]:
    return [path for path in FILES if path.suffix == ".py" and path.relative_to(ROOT).parts[0] == part]


def imported(path: Path) -> set[str]:
    """Inside functions too, and by name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.add(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {str(each.value) for each in node.args if isinstance(each, ast.Constant)}
    return {module.split(".")[0] for module in found if module}


@pytest.mark.parametrize("part", BUDGET)
def test_imports_go_one_way(part: str) -> None:
    wrong = {
        name(path): found
        for path in python(part)
        if (found := imported(path) & {*BUDGET, "tests"} - IMPORTS[part] - {part})
    }
    assert wrong == {}


@pytest.mark.parametrize("part", BUDGET)
def test_a_part_fits_in_a_head(part: str) -> None:
    lines = {name(path): path.read_text().count("\n") for path in python(part)}
    assert sum(lines.values()) <= BUDGET[part]
    assert {file: count for file, count in lines.items() if count > 400} == {}
    defined = [(path, node) for path in python(part) for node in ast.walk(ast.parse(path.read_text()))]
    functions = [(path, node) for path, node in defined if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f"{name(path)}:{node.name}" for path, node in functions if (node.end_lineno or 0) - node.lineno >= 60}
    assert long == set()


@pytest.mark.parametrize("words", OLD_WORDS)
def test_an_old_word_is_gone(words: str) -> None:
    word = re.compile(rf"(?<![a-z])({words})(?![a-z])", re.IGNORECASE)  # a part of a snake_case name counts
    of_models = ("training/models/*", "tests/models/*")  # a team's own, and in its own words
    skipped = ("requirements/*", "*.png", "LICENSE", name(Path(__file__)), *of_models, *OLD_WORDS[words])
    found = []
    for path in FILES:
        if not any(fnmatch.fnmatch(name(path), pattern) for pattern in skipped):
            found += [f"{name(path)}: the name"] if word.search(name(path)) else []
            found += [
                f"{name(path)}:{n}: {line.strip()[:100]}"
                for n, line in enumerate(path.read_text().splitlines(), 1)
                if word.search(line)
            ]
    assert found == []


def code_of(document: Path) -> Iterator[str]:
    """Lines of code blocks, and what stands in backticks."""
    text = document.read_text()
    for language, block in re.findall(r"(?ms)^ *```(\w*)\n(.*?)^ *```$", text):
        if language != "mermaid":
            yield from (line.partition("   #")[0].partition("# ")[0] for line in block.splitlines())
    yield from re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


def mentions() -> Iterator[tuple[str, str]]:
    """Every command line of `mlops` that a document or a message names."""
    for document in DOCUMENTS:
        yield from ((name(document), line) for line in code_of(document))
    for path in (path for part in BUDGET for path in python(part)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield from ((name(path), line) for line in re.findall(r"(?:`|: |; )(mlops [^`;,]+)", node.value))


def unknown(words: list[str]) -> list[str]:
    """Of a command line: what the command does not know."""
    commands = COMMANDS.get(words[0])
    if not commands:
        return words[:1]
    named = [""] if "" in commands or words[1:] == ["--help"] else "".join(words[1:2]).replace("\\|", "|").split("|")
    if "" not in commands and named in ([""], ["VERB"]):
        return []
    options = {option for each in commands.values() for param in each.params for option in param.opts}
    given = {word.strip("[]").partition("=")[0] for word in words if word.strip("[]").startswith("--")}
    return sorted({*named} - {*commands} | given - options - {"--env", "--model", "--json", "--help"})


def test_commands_and_options_that_are_named_exist() -> None:
    wrong = []
    for where, line in mentions():
        for said in re.findall(
            r"(?<![\w/.-])(?<!-n )(?:\.venv/bin/)?mlops (?:--json |--\w+ \S+ )*([a-z][^;&#]*)", line
        ):
            words = re.split(r"(?<!\\)\| |[)}']", said)[0].split()
            words = words[:1] if words[0] == "kubectl" else words  # what follows is kubectl's
            wrong += [(where, line, each) for each in unknown(words)]
    assert wrong == []


def test_commands_of_the_makefile_exist() -> None:
    assert {*re.findall(r"/mlops (?:--env \S+ )?([a-z][a-z-]*)", MAKEFILE)} - {*COMMANDS} == set()


def test_options_in_messages_exist() -> None:
    options = {
        option
        for group in COMMANDS.values()
        for each in group.values()
        for param in each.params
        for option in param.opts
    }
    wrong = []
    for path in (path for part in ("mlops", "app", "training", "monitoring") for path in python(part)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", node.value))
                wrong += [
                    (name(path), each) for each in found - options - {"--env", "--model", "--json", "--porcelain"}
                ]
    assert wrong == []


@pytest.mark.parametrize("part", BUDGET)
def test_texts_are_utf8_whatever_the_locale(part: str) -> None:
    plain = r"(read_text\(\)|write_text\((?!.*utf-8)[^\n]*\)$|open\(\"[wa]\"\))"
    assert [
        f"{name(path)}: {found}" for path in python(part) for found in re.findall(plain, path.read_text(), re.MULTILINE)
    ] == []


def test_images_can_be_read_whoever_builds_them() -> None:
    copied = re.findall(r"^COPY .*", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert len(copied) >= 10
    assert [line for line in copied if "--chmod=755" not in line] == []


def test_every_command_is_documented() -> None:
    said = "\n".join(line for path in DOCUMENTS for line in code_of(path))
    for first, commands in COMMANDS.items():
        for second in commands:
            assert re.search(rf"mlops (--\w+ \S+ )*{first}\b[^\n`]*{second}", said), f"mlops {first} {second}"


def test_files_that_are_named_exist() -> None:
    tops = {path.relative_to(ROOT).parts[0] for path in FILES}
    missing = []
    for path in DOCUMENTS:
        for line in code_of(path):
            for found in re.findall(r"(?<![\w./:>-])([\w.-]+/[\w./*-]*(?:<\w+>[\w./*-]*)*)", line.partition("<br>")[0]):
                pattern = re.sub(r"<\w+>|NAME|ENV\b", "*", found.rstrip("/.,"))
                of_models = pattern.startswith(("training/models/", "tests/models/")) and not EXAMPLES
                there = of_models or found in MADE_LATER or list(ROOT.glob(pattern))
                if found.partition("/")[0] in tops and not there:
                    missing.append(f"{name(path)}: {found}")
    assert missing == []


def test_the_map_of_the_bucket_names_paths_of_the_code() -> None:
    """That it names all of them is looked at where the platform runs: tests/environments/test_platform.py."""
    source = "\n".join(path.read_text() for part in BUDGET for path in python(part))
    parts = {part for line in bucket_map() for part in re.findall(r"(?<=/)[a-z]+(?=/)|^[a-z]+(?=/)", line)}
    assert {part for part in parts if not re.search(rf"\b{part}\b", source)} == set()
    assert len(bucket_map()) >= 10


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


def test_a_copied_folder_installs_for_itself(tmp_path: Path) -> None:
    """Its scripts would run the original's."""
    copy = tmp_path / "copy"
    for path in ("Makefile", "pyproject.toml"):
        copy.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, copy)
    shutil.copytree(ROOT / "requirements", copy / "requirements")
    for folder in (".venv", ".venv-infra"):
        (copy / folder).mkdir()
        for stamp in (ROOT / folder).glob("[0-9]*"):
            (copy / folder / stamp.name).touch()
    planned = subprocess.run(["make", "-n", "install"], cwd=copy, capture_output=True, text=True).stdout
    assert "venv --quiet --clear" in planned


def test_the_tests_of_ci_are_those_of_the_readme() -> None:
    assert "make test" in README
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "make test"
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["make test"]


@pytest.mark.parametrize("lock", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.name)
def test_a_lock_names_no_index_and_pins_every_package(lock: Path) -> None:
    text = lock.read_text()
    assert re.findall(r"^\s*(-i|--index|--extra|--find).*|https?://", text, re.MULTILINE) == []
    pinned = re.findall(r"^[a-z0-9][\w.-]*==", text, re.MULTILINE)
    assert len(pinned) > (0 if lock.stem in ("uv", "build") else 20)
    if lock.stem != "constraints":
        assert len(re.findall(r"^[a-z0-9][^\n]*\\\n\s+--hash=sha256:", text, re.MULTILINE)) == len(pinned)


def test_locks_agree_on_versions() -> None:
    versions: dict[str, set[str]] = {}
    together = [lock for lock in (ROOT / "requirements").glob("*.txt") if lock.stem != "checks"]  # which are alone
    for lock in together:
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


def test_the_index_of_the_proofs_is_up_to_date() -> None:
    assert (ROOT / "docs" / "proofs" / "README.md").read_text() == index()


def test_a_proof_on_file_says_when_where_and_whether_it_holds() -> None:
    for file in (ROOT / "docs" / "proofs").glob("*.json"):
        proof = json.loads(file.read_text())
        assert {"proof", "holds", "commit", "date", "machine"} <= set(proof), file.name
        assert proof["holds"] or proof["reason"], file.name
        assert (ROOT / "tests" / "proofs" / f"{proof['proof']}.py").exists(), file.name

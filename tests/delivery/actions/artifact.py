"""actions/upload-artifact and download-artifact: folders of the forge, one per run and name."""

import fnmatch
import glob
import json
import os
import shutil
import sys
from pathlib import Path

inputs, run = json.loads(os.environ["INPUTS"]), os.environ["GITHUB_RUN_ID"]
store = Path(os.environ["FORGE_ARTIFACTS"])


def upload() -> dict[str, str]:
    target, hidden = store / run / inputs["name"], inputs["include-hidden-files"] == "true"
    patterns = [line.strip() for line in inputs["path"].splitlines() if line.strip()]
    found = [Path(each) for line in patterns for each in glob.glob(line, recursive=True, include_hidden=hidden)]
    files = {file for each in found for file in (each.rglob("*") if each.is_dir() else [each]) if file.is_file()}
    # The least common folder is left out, of a lone file its own.
    root = (
        found[0]
        if len(found) == 1 and found[0].is_dir()
        else Path(os.path.commonpath([*{f.parent for f in files}]) if files else ".")
    )
    files = {f for f in files if hidden or not any(part.startswith(".") for part in f.relative_to(root).parts)}
    if not files:
        print(f"No files were found with the provided path: {inputs['path']}")
        sys.exit(1 if inputs["if-no-files-found"] == "error" else 0)
    if target.exists():
        if inputs["overwrite"] != "true":
            sys.exit(
                f"Failed to CreateArtifact: (409) Conflict: an artifact with this name already exists: {target.name}"
            )
        shutil.rmtree(target)
    for file in files:
        (place := target / file.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    return {"artifact-id": f"{run}{len([*target.parent.iterdir()]):02}"}


def download() -> dict[str, str]:
    if inputs["run-id"] not in ("", run) and not inputs["github-token"]:
        sys.exit("Artifact not found: another run's artifacts need github-token")
    source, place, name = store / (inputs["run-id"] or run), Path(inputs["path"] or "."), inputs["name"]
    if name and not (source / name).is_dir():
        sys.exit(f"Unable to download artifact(s): Artifact not found for name: {name}")
    for each in sorted(source.glob("*")):
        if name in ("", each.name) and fnmatch.fnmatch(each.name, inputs["pattern"] or "*"):
            alone = name or inputs["merge-multiple"] == "true"
            shutil.copytree(
                each, place if alone else place / each.name, dirs_exist_ok=True, copy_function=shutil.copyfile
            )
    return {"download-path": str(place.resolve())}


with open(os.environ["GITHUB_OUTPUT"], "a") as outputs:
    outputs.writelines(
        f"{key}={value}\n" for key, value in {"upload": upload, "download": download}[sys.argv[1]]().items()
    )

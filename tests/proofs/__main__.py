"""`make prove NAME…`: run a bar in its full form and keep its figures in docs/proofs/NAME.json. Fails where it does not hold.

A proof is a module of this folder with `prove() -> dict`: figures as numbers, and `holds`; `reason` where it does not.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from mlops.environment import ROOT
from training.registry import commit

FOLDER = ROOT / "docs" / "proofs"
PROOFS = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def prove(name: str) -> bool:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"prove-{name}-") as folder:
        found = importlib.import_module(f"tests.proofs.{name}").prove(Path(folder))
    record = {
        "proof": name,
        "holds": bool(found.pop("holds")),
        **found,
        "seconds": round(time.monotonic() - started),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (FOLDER / "README.md").write_text(index())
    print(f"{name}: {'holds' if record['holds'] else 'DOES NOT HOLD'}, see docs/proofs/{name}.json")
    return record["holds"]


def index() -> str:
    """A table of the proofs on file: what each claims, by the first sentence of its module, and whether it holds."""
    lines = ["# Proofs", "", "`make prove NAME` repeats one; its figures are in `NAME.json`.", ""]
    lines += ["| proof | claim | holds | minutes | date |", "|---|---|---|---|---|"]
    for file in sorted(FOLDER.glob("*.json")):
        record, module = json.loads(file.read_text()), (ROOT / "tests" / "proofs" / f"{file.stem}.py").read_text()
        claim = " ".join((ast.get_docstring(ast.parse(module)) or "").partition("\n\n")[0].split()).replace("|", "\\|")
        holds, minutes = "yes" if record["holds"] else f"no: {record['reason']}", max(1, round(record["seconds"] / 60))
        lines.append(f"| [{file.stem}]({file.name}) | {claim} | {holds} | {minutes} | {record['date']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    names = sys.argv[1:]
    if not names or set(names) - set(PROOFS):
        sys.exit(f"make prove NAME…, of: {', '.join(PROOFS)}")
    results = [prove(name) for name in names]  # all of them, whatever the first one says
    sys.exit(0 if all(results) else 1)

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from training.gate import Verdict

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=select_autoescape(),
    undefined=StrictUndefined,
    trim_blocks=True,
)


def image(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def render(template: str, **values: Any) -> str:
    """A page that needs nothing beside itself."""
    return _templates.get_template(template).render(**values)


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "verdict": "passed" if verdict.passed else "refused",
        "reasons": verdict.reasons,
        "checks": [asdict(check) for check in verdict.checks],
        "untestable": verdict.untestable,
    }


def write(folder: Path, title: str, verdict: Verdict, facts: dict[str, Any], metrics: dict[str, float], plots: list[Path]) -> None:
    """report.json and report.html of one training."""
    found = verdict_json(verdict)
    (folder / "report.json").write_text(json.dumps({"title": title, **facts, **found, "metrics": metrics}, indent=1, default=str))
    images = {path.stem.replace("_", " "): image(path) for path in plots}
    page = render("gate.html", title=title, report=found, facts=facts, metrics=metrics, images=images)
    (folder / "report.html").write_text(page)

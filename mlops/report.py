"""HTML pages that need nothing beside themselves. A part's template extends `page.html`."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

_SHARED = Path(__file__).parent / "templates"


def image(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def render(template: Path, **values: Any) -> str:
    loader = FileSystemLoader([template.parent, _SHARED])
    pages = Environment(loader=loader, autoescape=select_autoescape(), undefined=StrictUndefined, trim_blocks=True)
    return pages.get_template(template.name).render(**values)

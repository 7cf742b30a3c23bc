"""HTML pages that need nothing beside themselves. A part's template extends `page.html`."""

import base64
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from mlops.errors import visible

_SHARED = Path(__file__).parent / "templates"


def image(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def render(template: Path, **values: Any) -> str:
    return _pages(template.parent).get_template(template.name).render(**values)


@cache
def _pages(folder: Path) -> Environment:
    return Environment(
        loader=FileSystemLoader([folder, _SHARED]), autoescape=select_autoescape(), finalize=_seen,
        undefined=StrictUndefined, trim_blocks=True,
    )  # fmt: skip


def _seen(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

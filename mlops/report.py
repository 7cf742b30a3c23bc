"""HTML pages that need nothing beside themselves. A part's template extends `page.html`."""

import base64
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

_SHARED = Path(__file__).parent / "templates"
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def image(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def render(template: Path, **values: Any) -> str:
    return _pages(template.parent).get_template(template.name).render(**values)


@cache
def _pages(folder: Path) -> Environment:
    return Environment(
        loader=FileSystemLoader([folder, _SHARED]), autoescape=select_autoescape(), finalize=visible,
        undefined=StrictUndefined, trim_blocks=True,
    )  # fmt: skip


def visible(value: Any) -> Any:
    """A text's control characters, and those that turn or hide what follows, as escapes that can be seen."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], value)
    return value

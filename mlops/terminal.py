"""Where people read what other people, machines and callers wrote."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

from mlops.errors import visible


class Terminal(Console):
    """Shows the control characters of what it prints, whatever that is, as escapes: they command a terminal, or hide text."""

    def render(self, *args: Any, **options: Any) -> Iterable[Segment]:
        for segment in super().render(*args, **options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

"""Markdown out of text that nobody vouches for: shown as it is, and nothing of it takes effect."""

import html
import re


def fence(content: str, language: str = "") -> str:
    """No text can end its own fence."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    mark = "`" * max(3, longest + 1)
    return f"{mark}{language}\n{_printable(content)}\n{mark}"


def code(value: str) -> str:
    """In a line or a table's cell: shown as it is, and nothing else."""
    return f"`{_line(value).replace('`', 'ʼ').replace('|', '¦') or ' '}`"


def tag(value: str) -> str:
    """The same between HTML's tags, where Markdown is not read; a mention in plain text would notify even if escaped."""
    return f"<code>{html.escape(_line(value))}</code>"


def _line(value: str) -> str:
    return _printable(value[:300]).replace("\n", " ")[:300]


def _printable(value: str) -> str:
    """What is not seen, turns the direction of text or is no character at all is shown by its number."""
    return "".join(each if each.isprintable() or each in "\n\t" else f"\\u{ord(each):04x}" for each in value)

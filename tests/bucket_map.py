"""The map of the bucket in docs/how-it-works.md."""

import fnmatch
import re

from mlops.environment import ROOT


def bucket_map() -> list[str]:
    text = (ROOT / "docs" / "how-it-works.md").read_text()
    return [line.split()[0] for line in text.partition("```\n")[2].partition("```")[0].splitlines()]


def in_bucket_map(key: str) -> bool:
    return any(
        fnmatch.fnmatch(key, re.sub(r"<\w+>", "*", each) + ("*" if each.endswith("/") else "")) for each in bucket_map()
    )

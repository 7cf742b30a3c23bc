import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ValidationError

_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def visible(text: str) -> str:
    """With its control characters, and those that turn or hide what follows, as escapes that can be seen."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


# A text of a record: none can look like two.
Line = Annotated[str, AfterValidator(lambda text: visible(text).replace("\n", "\\n"))]


class UserError(Exception):
    """An error that the user can fix: names the key, its value and a hint."""

    exit_code = 2

    def __init__(self, key: str, value: object, hint: str):
        self.key, self.value, self.hint = key, value, hint
        super().__init__(visible(f"{key} is {value!r}: {hint}"))


class VerificationError(UserError):
    """A bundle, attestation or record that must not be trusted; `reason` is a fixed word for metrics."""

    def __init__(self, reason: str, key: str, value: object, hint: str):
        self.reason = reason
        super().__init__(key, value, hint)


class ConflictError(UserError):
    """Another writer was first."""


class GateError(UserError):
    exit_code = 3


def explain(error: ValidationError) -> list[str]:
    """A line for each problem: its path, the value unless it may be secret, and what is expected."""
    lines = []
    for problem in error.errors():
        key, value = ".".join(str(part) for part in problem["loc"] if part != "[key]"), problem["input"]
        hidden = isinstance(value, (dict, list, BaseModel)) or problem["type"] in ("missing", "password")
        shown = "" if not key or hidden or key.lower().endswith("secret") else f" is {value!r}"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            shown, message = "", "unknown key"
        lines.append(f"{key}{shown}: {message}" if key else message)
    return lines

from dataclasses import asdict, dataclass
from typing import Any, Literal

Outcome = Literal["pass", "fail", "inconclusive"]
DECISIONS = ("abort", "advance", "inconclusive")  # of the judge


@dataclass(frozen=True)
class Check:
    """One criterion of the gate or the judge: an estimate, with its interval if it has one, from `n` rows or days, against
    a bound; `why` says it in words."""

    name: str
    outcome: Outcome
    estimate: float | str | None
    bound: float | str
    why: str
    n: int | None = None
    low: float | None = None
    high: float | None = None
    accepted: str = ""  # a person's reason to ignore the failure

    @property
    def failed(self) -> bool:
        return self.outcome == "fail" and not self.accepted


@dataclass(frozen=True)
class Verdict:
    """`decision`: passed or refused (gate), or one of DECISIONS. `rows`: scored by both models."""

    decision: str
    reasons: list[str]
    checks: list[Check]
    untestable: list[str]
    rows: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check(name: str, passed: bool, estimate: float | str | None, bound: float | str, why: str, **more: Any) -> Check:
    return Check(name, "pass" if passed else "fail", estimate, bound, why, **more)

import re
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

import msgspec
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from mlops.errors import UserError, explain
from mlops.moments import moment

RESERVED = ("score", "numbers", "categories")  # names that bundles and their graphs use themselves


def _check_name(name: str) -> str:
    if not name.isidentifier() or name.startswith("_") or len(name) > 63:
        raise ValueError("write letters, digits and _, a letter first, at most 63")
    if name in RESERVED:
        raise ValueError("a name that bundles use themselves; rename the column in load()")
    return name


Name = Annotated[str, AfterValidator(_check_name)]


def _check_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (OSError, ValueError):
        raise ValueError("no time zone; write one such as Europe/Paris") from None
    return name


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_DAYS = 36_500  # a hundred years: dates that far away still exist


class Feature(_Strict):
    """One column of a request.

    `known_at` is `request` (the caller sends it), or the data's time column that says when its value became
    known: no row's may lie after the moment of prediction. `range` is what is physically possible, no more.
    """

    type: Literal["number", "category", "boolean"]
    description: str = ""
    known_at: str = "request"
    range: tuple[FiniteFloat, FiniteFloat] | None = None
    missing: bool = False
    unknown: Literal["other", "reject"] = "other"
    drift: Literal["integrity", "season"] = "integrity"
    protected: bool = False
    log: Literal["keep", "hash", "drop"] = "keep"
    strong: str = ""  # why it may predict so well alone

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        if self.range and self.type != "number":
            raise ValueError(f"range is {list(self.range)}: only a number has one")
        if self.range and self.range[0] >= self.range[1]:
            raise ValueError(f"range is {list(self.range)}: write [lowest, highest]")
        if self.unknown == "reject" and self.type != "category":
            raise ValueError("unknown is 'reject': only a category has unknown values")
        return self


class Time(_Strict):
    """When the event of a row takes place; the prediction is made `lead_minutes` before it."""

    column: str
    zone: Annotated[str, AfterValidator(_check_zone)] = "UTC"
    lead_minutes: int = Field(default=0, ge=0, le=_DAYS * 24 * 60)


class Window(_Strict):
    """A half-open part of the data: two dates, or two fractions of the time column (of the rows, if it has none)."""

    start: date | float
    end: date | float

    @classmethod
    def parse(cls, text: object) -> Self:
        try:
            start, end = (date.fromisoformat(x) if "-" in x else float(x) for x in str(text).split(".."))
        except ValueError:
            hint = "write START..END, two dates (2024-01-01..2024-03-01) or fractions (0..0.7)"
            raise UserError("window", text, hint) from None
        if type(start) is not type(end) or start >= end:  # ty: ignore[unsupported-operator]
            raise UserError("window", text, "the start must precede the end, and both must be dates or both fractions")
        if isinstance(start, float) and not (start >= 0 and end <= 1):  # ty: ignore[unsupported-operator]
            raise UserError("window", text, "fractions must lie between 0 and 1")
        return cls(start=start, end=end)

    def __str__(self) -> str:
        return f"{self.start}..{self.end}"


class Windows(_Strict):
    train: Window
    holdout: Window

    @field_validator("train", "holdout", mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        try:
            return value if isinstance(value, (Window, dict)) else Window.parse(value)
        except UserError as fault:
            raise ValueError(str(fault)) from None


class Gate(_Strict):
    """Bounds of the gate. Losses are log-loss (binary) or absolute error (regression) over that of the best constant
    answer, so 1 is worthless."""

    margin: float = 0.04  # upper 95 % bound of the loss difference to the champion
    point_margin: float = 0.02  # and its point estimate
    slice_margin: float = 0.04
    min_days: int = Field(default=28, le=_DAYS)
    min_slice_rows: int = 200
    min_slice_days: int = 10
    min_auc: float = 0.6
    min_gain: float = 0.01
    max_calibration_error: float = 0.12
    calibration_margin: float = 0.02
    fairness_margin: float = 0.05
    max_single_feature_auc: float = 0.85
    too_good: float = 0.1
    max_size_mb: float = 50
    max_latency_ms: float = Field(default=20, gt=0, le=1000)


class Judge(_Strict):
    """Bounds for a challenger in a rollout; the champion's contract counts: no challenger judges itself."""

    weights: list[Annotated[float, Field(gt=0, le=1)]] = [0.01, 0.05, 0.25, 0.5, 1.0]
    outcomes_from: float = Field(default=0.25, gt=0, le=1)  # from this weight on outcomes must have shown no harm
    min_rows: int = Field(default=500, ge=50)  # scored by both at each weight
    min_days: int = Field(default=7, ge=2, le=_DAYS)
    last_days: int = Field(
        default=28, ge=7, le=_DAYS
    )  # they decide: one more, ordinary interval shows that it does no harm, or it ends
    maturity_hours: float = Field(default=24, ge=0, le=_DAYS * 24)  # younger outcomes are biased: early ones differ
    budget_ms: float = Field(default=20, gt=0, le=10_000)  # a caller waits so long before the champion answers
    max_fault_rate: float = Field(default=0.001, gt=0, lt=1)  # raised, non-finite, died
    max_slow_rate: float = Field(default=0.05, gt=0, lt=1)  # slower than the budget
    min_correlation: float = Field(default=0.1, gt=-1, lt=1)  # with the champion's scores; honest models: ≥ 0.2
    max_shift: float = Field(default=2.0, gt=0)  # of the mean: logits, or champion's std; honest models: ≤ 1.8
    min_spread: float = Field(default=0.1, ge=0, lt=1)  # standard deviation of the scores over that of the champion's

    @field_validator("weights")
    @classmethod
    def _rise(cls, weights: list[float]) -> list[float]:
        if not weights or weights != sorted(set(weights)) or weights[-1] != 1:
            raise ValueError("must rise and end with 1.0")
        return weights


class Drift(_Strict):
    """Bounds of the drift analysis; what lies beyond one is an alarm if chance alone does not explain it."""

    window_days: int = Field(default=14, ge=5, le=366)
    max_psi: float = Field(default=0.1, gt=0)  # of a feature against the training
    max_rise: float = Field(default=0.02, gt=0, lt=1)  # of the share of missing or unknown values
    max_rise_season: float = Field(default=0.1, gt=0, lt=1)  # of a seasonal feature: no wind has no direction


class Retraining(_Strict):
    """When the platform makes a new model by itself, from the prediction log and its outcomes."""

    every_days: int = Field(default=30, ge=0, le=_DAYS)  # a training by the calendar; 0: none
    max_gap: float = Field(default=0.03, gt=0)  # between scores and matured outcomes: beyond it, it is recalibrated
    min_z: float = Field(default=3.0, gt=0)  # and beyond chance, in standard errors by day
    window_days: int = Field(default=14, ge=7, le=_DAYS)
    cooldown_days: int = Field(default=28, ge=1, le=_DAYS)
    max_a_year: int = Field(default=12, ge=0)  # 0: never by itself
    min_rows: int = Field(default=2000, ge=100)  # fresh ones with an outcome
    release: Literal["rollout", "challenger", "none"] = (
        "rollout"  # of what passed the gate; challenger: paused in shadow
    )


class Golden(_Strict):
    """A fact about the data (`where` selects rows, `expect` are their values), or about the model (`row` against `row`
    with `change`: the score must rise or fall by `by`)."""

    about: str
    where: dict[str, str | int | float | bool] | None = None
    expect: dict[str, str | int | float | bool | None] | None = None
    row: dict[str, str | int | float | bool | None] | None = None
    change: dict[str, str | int | float | bool | None] | None = None
    score: Literal["higher", "lower"] = "higher"
    by: float = 0.0

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.where is None) != (self.expect is None) or (self.row is None) != (self.change is None):
            raise ValueError("give 'where' with 'expect', or 'row' with 'change'")
        if (self.where is None) == (self.row is None):
            raise ValueError("give one of 'where' and 'row'")
        return self


class Contract(_Strict):
    """The interface of one model (request and target), and the bounds it must meet."""

    model: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,40}$")]
    task: Literal["binary", "regression"]
    question: str = ""
    target: str
    threshold: float = Field(default=0.5, gt=0, lt=1)
    time: Time | None = None
    outcome_at: str | None = None  # the data's column that says when the label became known
    entity: list[str] = Field(default=[], max_length=4)  # of them the log has a text, which is bounded
    after: list[str] = Field(default=[], max_length=1000)  # columns known only after the prediction
    features: dict[Name, Feature] = Field(min_length=1, max_length=1000)
    slices: list[str] = Field(default=[], max_length=1000)
    windows: Windows = Windows(train=Window(start=0.0, end=0.7), holdout=Window(start=0.7, end=1.0))
    quarantine_limit: float = Field(default=0.01, ge=0, le=1)
    retention_days: int | None = Field(
        default=None, ge=1, le=_DAYS
    )  # of the prediction log and its outcomes; None: for ever
    gate: Gate = Gate()
    judge: Judge = Judge()
    drift: Drift = Drift()
    retraining: Retraining = Retraining()
    golden: list[Golden] = Field(default=[], max_length=1000)

    @field_validator("task", mode="before")
    @classmethod
    def _no_multiclass(cls, value: object) -> object:
        if value == "multiclass":
            raise ValueError("'multiclass' is not supported yet: use binary or regression, or one model a class")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        faults = [
            f"features.{name}: known only after the prediction (it is in 'after'); remove it from the features"
            for name in self.features
            if name in self.after or self.features[name].known_at == "after"
        ]
        if self.time and self.time.column in self.features:
            faults.append(f"time.column is {self.time.column!r}: it is a feature too; return a copy of it from load()")
        if self.target in self.features:
            faults.append(f"features.{self.target}: it is the target; remove it from the features")
        faults += [
            f"features.{name}.known_at is {feature.known_at!r}: needs a 'time' to be compared with"
            for name, feature in self.features.items()
            if feature.known_at not in ("request", "after") and not self.time
        ]
        faults += [
            f"features.{name}.log is {self.features[name].log!r}: it is in 'entity', which the log keeps to find a person's "
            "rows; make entity a column without meaning (an id), or keep it"
            for name in self.entity
            if name in self.features and self.features[name].log != "keep"
        ]
        faults += [
            f"slices: {name!r} is not a category or boolean among the features"
            for name in self.slices
            if name not in self.features or self.features[name].type == "number"
        ]
        for golden in self.golden:
            used = {**(golden.row or {}), **(golden.change or {})}
            unknown = [name for name in used if name not in self.features]
            faults += [f"golden {golden.about!r}: {name!r} is not a feature" for name in unknown]
        if not self.time and any(isinstance(w.start, date) for w in (self.windows.train, self.windows.holdout)):
            faults.append("windows: dates need a 'time'; use fractions")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def numbers(self) -> list[str]:
        return [name for name, feature in self.features.items() if feature.type != "category"]

    @property
    def categories(self) -> list[str]:
        return [name for name, feature in self.features.items() if feature.type == "category"]

    @property
    def inputs(self) -> dict[str, list[str]]:
        """The inputs of the graph, and the columns of each."""
        inputs = {"numbers": self.numbers, "categories": self.categories}
        return {name: columns for name, columns in inputs.items() if columns}

    @cached_property
    def logged(self) -> dict[str, list[str]]:
        """Features by what the prediction log does with them."""
        features = self.features.items()
        return {how: [name for name, each in features if each.log == how] for how in ("keep", "hash", "drop")}

    @property
    def context(self) -> list[str]:
        """Columns that a request may carry and the model does not see: the entity's, and the time of the event."""
        names = [*self.entity, *([self.time.column] if self.time else [])]
        return [name for name in dict.fromkeys(names) if name not in self.features]

    @property
    def times(self) -> list[str]:
        """The data's columns of moments."""
        known = [feature.known_at for feature in self.features.values() if feature.known_at != "request"]
        names = [*([self.time.column] if self.time else []), *known, *([self.outcome_at] if self.outcome_at else [])]
        return list(dict.fromkeys(names))

    @property
    def rollout_days(self) -> int:
        """From a model's training until callers have it."""
        return self.judge.min_days + 2

    @property
    def recalibration_days(self) -> int:
        """That a champion was not trained on: the held-out ones, and before them a rollout and an intercept's window."""
        return self.gate.min_days + self.rollout_days + self.retraining.window_days

    @property
    def zone(self) -> str:
        return self.time.zone if self.time else "UTC"

    def predictions(self, scores: list[float]) -> list[float]:
        return [int(score >= self.threshold) for score in scores] if self.task == "binary" else scores

    def entity_of(self, row: Any) -> str | None:
        """The entity of a row; None if the contract has none, or the row lacks one of its columns."""
        values = [getattr(row, name) for name in self.entity]
        return "|".join(map(str, values)) if values and None not in values else None

    def event_of(self, row: Any) -> float | None:
        """The time of the row's event in Unix seconds; None if the request does not say."""
        event = getattr(row, self.time.column) if self.time else None
        return moment(event, self.zone).timestamp() if event else None

    def json_bytes(self) -> bytes:
        return self.model_dump_json(indent=1).encode()


class _Yaml(yaml.SafeLoader):
    """Words stay words: only true and false are booleans, keys are text, and no key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.YAMLError(f"{twice[0]!r} stands twice")
        for key, _ in node.value:
            key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^([Tt]rue|TRUE|[Ff]alse|FALSE)$"), list("tTfF"))


def load_contract(source: Path | bytes) -> Contract:
    """Read YAML (a path) or JSON (bytes). Raises UserError that lists every problem."""
    where = str(source) if isinstance(source, Path) else "contract.json"
    try:
        raw = yaml.load(source.read_bytes(), _Yaml) if isinstance(source, Path) else msgspec.json.decode(source)  # noqa: S506
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        kind = "YAML" if isinstance(source, Path) else "JSON"
        raise UserError("contract", where, f"cannot be read as {kind} ({error})") from None
    if not isinstance(raw, dict):
        raise UserError("contract", where, "a mapping is expected; see docs/contract.md")
    try:
        return Contract.model_validate(raw)
    except ValidationError as error:
        raise UserError("contract", where, "\n  ".join(["fix each problem listed below", *explain(error)])) from None

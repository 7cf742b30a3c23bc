"""`make demo`: a model's whole life on this machine, each step proved. Exit code 0 only if every step held."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from environments.local.platform import Platform
from environments.local.timeline import timeline
from environments.local.traffic import Answer, Traffic
from mlops import bundle as bundles
from mlops import environment, releases
from mlops.bundle import Bundle
from mlops.environment import ROOT, Environment
from mlops.errors import Fault
from mlops.releases import Release
from mlops.statements import state
from training.report import image, render

# Parts of the data's time, so that any model takes the same way: of a year these
# are January to March, January to May, and June.
FIRST, LONGER, HOLDOUT = "0..0.247", "0..0.414", "0.414..0.496"
_TRIAL_SECONDS = 150
_DATA_SECONDS = 21_600  # of the replay in one second: a month in two minutes, and a trial needs less
console = Console(highlight=False)


@dataclass
class Step:
    title: str
    facts: list[str] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""


class Demo:
    def __init__(self, platform: Platform):
        self.platform, self.environment, self.model = platform, platform.environment, platform.model
        self.steps: list[Step] = []
        self.answers: list[Answer] = []

    @contextlib.contextmanager
    def step(self, title: str) -> Generator[Step]:
        step, started = Step(title), time.monotonic()
        self.steps.append(step)
        with console.status(title):
            try:
                yield step
            except Exception as error:
                step.error = str(error) or type(error).__name__
                raise
            finally:
                step.seconds = time.monotonic() - started
                mark = "[red]✗[/]" if step.error else "[green]✓[/]"
                console.print(f"{mark} {title} [dim]{step.seconds:.1f} s[/]", *(f"\n    {fact}" for fact in step.facts), sep="")

    def mlops(self, *words: str, code: int = 0, models: Path | None = None) -> dict[str, Any]:
        """The command as a person gives it; its answer as JSON. Any other exit code than `code` fails the step."""
        log = self.platform.log("commands")
        extra = {"MLOPS_MODELS": str(models)} if models else {}
        command = [sys.executable, "-m", "mlops.cli", "--json", "--model", self.model, *words]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | extra, capture_output=True, text=True)
        with log.open("a") as file:
            file.write(f"$ mlops {' '.join(words)}\n{done.stdout}{done.stderr}\n")
        if done.returncode != code:
            raise Fault(f"mlops {words[0]}", f"exit code {done.returncode}", f"{code} was to be; {done.stderr.strip()[-600:]}; see {log}")
        return json.loads(done.stdout.splitlines()[0])

    def train(self, window: str, code: int = 0, models: Path | None = None) -> dict[str, Any]:
        return self.mlops("train", "--train", window, "--holdout", HOLDOUT, code=code, models=models)

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.environment.endpoint}/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def traffic(self, rows: list[dict[str, Any]]) -> Traffic:
        return Traffic(self.environment, rows, answers=self.answers)

    def run(self) -> None:
        with self.step("The platform is up, and waits for a model") as step:
            ready = httpx.get(f"{self.environment.endpoint}/readyz").json()
            expect(ready == {"ready": True, "reason": "no model released"}, f"/readyz said {ready}")
            self.platform.wait_for_tracking()
            step.facts.append(f"predictions {self.environment.endpoint}, MLflow {self.environment.tracking}")

        with self.step("A first model is trained, passes the gate, is signed and registered") as step:
            first = self.train(FIRST)
            step.facts.append(
                f"{first['digest'][:12]} has held-out loss {first['metrics']['loss']:.4f}, version {first['version']} in MLflow"
            )

        with self.step("It is released, and answers without a restart") as step:
            self.mlops("release", first["digest"], "--why", "demo: the first model")
            rows = bundles.read(self.environment.store, self.model, first["digest"]).json("golden.json")["rows"]
            with self.traffic(rows) as traffic:
                step.facts.append(f"first answer {traffic.wait_for(first['digest'], 20):.1f} s after the command")
            # Before a first model this is the right answer; whatever fails from here on is a failure.
            self.answers[:] = [answer for answer in self.answers if "no model released" not in answer.error]

        with self.step("Live traffic, and what became true of it") as step:
            played = self.mlops("replay", "--window", HOLDOUT, "--limit", "1000")
            expect(played["failed"] == 0, f"{played['failed']} requests failed: {played['error']}")
            joined = self.wait_for_outcomes(played["outcomes"])
            step.facts.append(
                f"{played['requests']} requests, {joined['matched']} of {joined['predictions']} predictions met their outcome"
            )

        with self.step("A worse model (labels shuffled) is refused") as step:
            with shuffled(self.model, self.environment.home) as models:
                worse = self.train(FIRST, code=3, models=models)
            expect(worse["gate"] == "refused" and worse["reasons"] != [], "the gate let it pass")
            refusal = self.mlops("release", worse["digest"], code=2)["error"]
            step.facts += [*worse["reasons"][:4], f"and the door keeps it out: {refusal['way_out'][:90]}…"]

        with self.step("A model of a longer past is tried in front of callers, and promoted by what it shows there") as step:
            better = self.train(LONGER)
            step.facts.append(
                f"{better['digest'][:12]} has held-out loss {better['metrics']['loss']:.4f}, the first had {first['metrics']['loss']:.4f}"
            )
            expect(better["metrics"]["loss"] < first["metrics"]["loss"], "it is not better")
            with self.traffic(rows) as traffic, self.replayed():
                self.mlops("release", better["digest"], "--mode", "shadow", "--why", "demo: more data")
                wait(lambda: self.serving().champion == better["digest"], _TRIAL_SECONDS, "it was not promoted")
                traffic.wait_for(better["digest"], 20)
            step.facts += [*self.trial_of(better["digest"]), self.none_failed(traffic)]

        with self.step("What the gate refused gets in front of callers by hand: the controller takes it back") as step:
            state(self.environment.store, self.environment.keys, "gate", self.model, worse["digest"], verdict="passed")
            with self.traffic(rows) as traffic, self.replayed():
                self.mlops("release", worse["digest"], "--mode", "canary", "--weight", "0.25", "--why", "demo: somebody was sure")
                wait(lambda: not self.serving().tried, _TRIAL_SECONDS, "it was not taken back")
                expect(self.serving().champion == better["digest"], "the champion changed")
            step.facts += [*self.trial_of(worse["digest"]), self.none_failed(traffic)]

        with self.step("A corrupted bundle is refused, the model before it keeps answering") as step:
            before = self.metric("mlops_release_refused_total")
            with self.traffic(rows) as traffic:
                started = time.time()
                self.release_corrupted(better["digest"])
                wait(lambda: self.metric("mlops_release_refused_total") > before, 20, "the app did not refuse it")
                time.sleep(2)
            since = {answer.model for answer in traffic.answers if answer.at > started}
            expect(since == {better["digest"]}, f"answers came from {since}")
            step.facts.append(f"{self.none_failed(traffic)}, all by {better['digest'][:12]}")

        with self.step("Back to what was observed serving, twice, under load") as step:
            with self.traffic(rows) as traffic:
                healed = self.mlops("rollback", "--why", "demo: away from the corrupted bundle")
                expect(healed["champion"] == better["digest"], f"went to {healed['champion'][:12]}")
                back = self.mlops("rollback", "--why", "demo: back to the first model")
                expect(back["champion"] == first["digest"], f"went to {back['champion'][:12]}")
                step.facts.append(f"the first model answers {traffic.wait_for(first['digest'], 20):.1f} s after the command")
                time.sleep(2)
            step.facts.append(self.none_failed(traffic))

        with self.step("Which model answered at a moment? The log of releases and that of predictions agree") as step:
            time.sleep(11)  # a segment of the prediction log closes after ten seconds
            step.facts += [self.who_answered(answer) for answer in self.moments(first["digest"], better["digest"])]

        with self.step("The first training again gives the same bundle, bit for bit") as step:
            again = self.train(FIRST)
            expect(again["digest"] == first["digest"], f"{again['digest']} is not {first['digest']}")
            step.facts.append(again["digest"])

    def serving(self) -> Release:
        found = releases.serving(releases.read(self.environment.store, self.model), releases.now())
        assert found
        return found

    @contextlib.contextmanager
    def replayed(self) -> Generator[None]:
        """The held-out weeks as live traffic, an hour a request, as long as the block lasts."""
        words = ["replay", "--window", HOLDOUT, "--every", "3600", "--speed", str(_DATA_SECONDS)]
        command = [sys.executable, "-m", "mlops.cli", "--json", "--model", self.model, *words]
        with self.platform.log("replay").open("ab") as log:
            player = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            yield
        finally:
            player.kill()
            player.wait()

    def trial_of(self, digest: str) -> list[str]:
        """When each record of it was written, from the first on; and why it ended."""
        log = releases.read(self.environment.store, self.model)
        mine = [position for position, each in enumerate(log) if each.challenger == digest]
        records = log[mine[0] : mine[-1] + 2]
        started = records[0].at
        way = ", ".join(f"{described_step(each)} after {(each.at - started).total_seconds():.0f} s" for each in records)
        return [way, records[-1].why]

    def wait_for_outcomes(self, sent: int) -> dict[str, int]:
        for _ in range(4):
            time.sleep(5)
            found = self.mlops("outcomes")
            if found["matched"] >= sent:
                return found
        raise Fault("outcomes", found["matched"], f"of {sent} outcomes found their prediction in the log")

    def none_failed(self, traffic: Traffic) -> str:
        expect(not traffic.failed, f"{len(traffic.failed)} requests failed, the first with {traffic.failed[:1]}")
        return f"{len(traffic.answers)} requests so far, none failed"

    def release_corrupted(self, digest: str) -> None:
        """What the door would never do: a bundle signed and approved, one byte of it changed afterwards, a record by hand."""
        here, good = self.environment, bundles.read(self.environment.store, self.model, digest)
        twin = Bundle(good.files | {"card.md": good.files["card.md"] + b"\nA twin, to be corrupted.\n"})
        bundles.write(here.store, self.model, twin)
        for kind, more in (("built", {}), ("gate", {"verdict": "passed"}), ("approved", {"environment": here.name})):
            state(here.store, here.keys, kind, self.model, twin.digest, **more)
        graph = bytearray(twin.files["model.onnx"])
        graph[len(graph) // 2] ^= 1
        here.store.put(f"{bundles.folder(self.model, twin.digest)}/model.onnx", bytes(graph))
        releases.append(here.store, self.model, twin.digest, "demo: written by hand")

    def moments(self, first: str, better: str) -> list[Answer]:
        """Three answers: of the first model, the better one, and the first again."""
        alone = {each.epoch for each in releases.read(self.environment.store, self.model) if not each.tried}
        of_better = [answer for answer in self.answers if answer.model == better and answer.epoch in alone]
        found = [self.answers[0], of_better[len(of_better) // 2], self.answers[-1]]
        expect([answer.model for answer in found] == [first, better, first], "the answers are not in order")
        return found

    def who_answered(self, answer: Answer) -> str:
        at = datetime.fromtimestamp(answer.at, UTC)
        history = self.mlops("history", "--at", at.isoformat())
        observed = {seen["digest"] for seen in history["observed"]}
        expect(observed == {answer.model}, f"at {at:%H:%M:%S} the log has {observed}, {answer.model[:12]} answered")
        return f"{at:%H:%M:%S} {answer.model[:12]}: intended by epoch {history['intended']['epoch']}, observed in the prediction log"


def described_step(release: Release) -> str:
    return release.mode if release.weight is None else f"{release.mode} {release.weight:.0%}"


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def wait(condition: Any, seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        expect(time.monotonic() < deadline, otherwise)
        time.sleep(0.1)


@contextlib.contextmanager
def shuffled(model: str, home: Path) -> Generator[Path]:
    """A folder of models in which this one learns from shuffled labels; those of the held-out part stay true."""
    models, original = home / "worse", environment.MODELS / model
    shutil.copytree(original, models / model, dirs_exist_ok=True)
    (models / model / "data.py").write_text(f"""from pathlib import Path

import polars as pl

from mlops.contract import Window
from training import data
from training.recipe import recipe


def load() -> pl.DataFrame:
    original = recipe({model!r}, Path({str(original)!r}))
    rows, target = original.load().with_row_index("position"), original.contract.target
    held_out = data.cut(rows, original.contract, Window.parse({HOLDOUT!r})).frame["position"]
    learned = ~pl.col("position").is_in(held_out.implode())
    return rows.with_columns(pl.when(learned).then(pl.col(target).shuffle(seed=1)).otherwise(pl.col(target)).alias(target)).drop("position")
""")
    yield models
    shutil.rmtree(models)


def write_report(demo: Demo, home: Path) -> Path:
    log = releases.read(demo.environment.store, demo.model)
    picture = timeline(log, demo.answers, home / "timeline.png")
    reports = sorted((home / "reports" / demo.model).glob("*.html"))
    page = render("demo.html", model=demo.model, steps=demo.steps, log=log, picture=image(picture), reports=[path.name for path in reports])
    file = home / "reports" / demo.model / "demo.html"
    file.write_text(page)
    return file


def main() -> int:
    home = ROOT / ".mlops" / "demo"
    shutil.rmtree(home, ignore_errors=True)
    os.environ["MLOPS_HOME"] = str(home)
    started, demo = time.monotonic(), None
    try:
        here = Environment.load("local")
        model = os.environ.get("MLOPS_MODEL") or environment.only_model()
        with Platform(here, model) as platform:
            demo = Demo(platform)
            demo.run()
            report = write_report(demo, home)
    except (Exception, KeyboardInterrupt) as error:
        title = demo.steps[-1].title if demo and demo.steps else "The platform is up"
        console.print(f"[red]failed[/] at: {title}\n  {error or type(error).__name__}\n  logs: {home / 'logs'}", markup=True)
        return 1
    console.print(f"\nEvery step held, in {time.monotonic() - started:.0f} s. The report: [bold]{report}[/]\n")
    console.print("Next:\n  make up                                       the platform, left running\n"
                  "  uv run mlops init DATA.csv --target COLUMN    your own model\n"
                  "  make test                                     what CI runs")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())

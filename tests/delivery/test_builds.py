"""What stands between a build and an environment: who built it, from what, where it passed, and whether it was withdrawn."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.delivery import build, builds, deploy, locks, targets
from cli.delivery.builds import Build, attest, require
from cli.delivery.deployments import DeploymentLog
from cli.delivery.road import Road
from mlops.environment import ROOT
from mlops.errors import UserError, VerificationError
from mlops.keys import Keyring

COMMIT, OTHER = "a" * 40, "b" * 40


def made(image: str = "1", commit: str = COMMIT, wheel: str = "2") -> Build:
    artifacts = {"app": f"registry.example.com/mlops-app@sha256:{image * 64}", "wheel": f"sha256:{wheel * 64}"}
    return Build(commit=commit, artifacts=artifacts, run="https://ci.example.com/1")


class OwnRoad(Road):
    """With keys of its own, wherever the repository keeps them."""

    @property
    def keyring(self) -> Keyring:
        return Keyring(Path(self.store).parent / "keyring.json", Path(self.store).parent / "keys")


@pytest.fixture
def road(tmp_path: Path) -> Road:
    about: dict[str, Any] = {"name": "ml", "repository": "acme/ml", "environments": ["dev", "staging", "prod"]}
    road = OwnRoad(**about, store=str(tmp_path / "store"), registry="", replay={})
    road.keyring.new("build")
    for environment in road.environments:
        road.keyring.new("approve", environment)
    return road


def foreign(road: Road) -> None:
    """A signature by a key of somebody who can write to the store."""
    keyring = road.keyring
    kept = keyring.path.read_text()
    keyring.path.unlink()
    keyring.new("build")
    attest(road, "built", made())
    keyring.path.write_text(kept)


def by_another_key_of_ours(road: Road) -> None:
    """An environment may say what passed there, not what was built."""
    entry = json.loads(road.keyring.path.read_text())
    roles = {each["environment"]: each for each in entry["keys"]}
    roles[None]["role"], roles["dev"]["role"], roles["dev"]["environment"] = "approve", "build", None
    roles[None]["environment"] = "dev"
    kept = road.keyring.path.read_text()
    road.keyring.path.write_text(json.dumps(entry))
    attest(road, "built", made())
    road.keyring.path.write_text(kept)


def of_another_repository(road: Road) -> None:
    attest(road.model_copy(update={"repository": "mallory/ml"}), "built", made())


def about_another_build(road: Road) -> None:
    """A good attestation, laid beside a build that it is not about."""
    attest(road, "built", made("3"))
    for key in road.bucket.keys("attestations"):
        road.bucket.put(
            f"attestations/builds/{made().digest}/{COMMIT}/{key.rpartition('/')[2]}", road.bucket.get(key) or b""
        )


def revoked(road: Road) -> None:
    attest(road, "built", made())
    (key,) = [key for key in road.keyring.all() if key.role == "build"]
    road.keyring.set_state(key.id, "revoked")


def changed(road: Road) -> None:
    attest(road, "built", made())
    for key in road.bucket.keys("attestations"):
        found = json.loads(road.bucket.get(key) or b"")
        road.bucket.put(key, json.dumps(found | {"payload": found["payload"].replace("A", "B", 1)}).encode())


def withdrawn(road: Road) -> None:
    attest(road, "built", made())
    attest(road, "withdrawn", made(), "prod", "callers complain", ["app"])


def a_part_withdrawn(road: Road) -> None:
    """An older build with the same image."""
    attest(road, "withdrawn", made(wheel="9"), "prod", "callers complain", ["app"])
    attest(road, "built", made())


REFUSED: dict[str, tuple[Callable[[Road], None], str]] = {
    "missing": (lambda road: None, "has no attestation that acme/ml built it"),
    "foreign: a key of somebody": (foreign, "a key that is not in the keyring"),
    "foreign: a key of an environment": (by_another_key_of_ours, "may not sign 'built' here"),
    "foreign: another repository": (of_another_repository, "another repository than acme/ml"),
    "foreign: about something else": (about_another_build, "has no attestation"),
    "foreign: a revoked key": (revoked, "by a revoked key"),
    "foreign: changed bytes": (changed, "is not a signed attestation|does not match"),
    "stale": (lambda road: attest(road, "built", made(commit=OTHER)), f"was built from commit {OTHER[:12]}"),
    "withdrawn": (withdrawn, "was withdrawn from prod by .* \\(callers complain\\)"),
    "withdrawn in part": (a_part_withdrawn, "was withdrawn from prod"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_attested_is_refused(road: Road, case: str) -> None:
    prepare, why = REFUSED[case]
    prepare(road)
    with pytest.raises(VerificationError, match=why):
        require(road, made(), "dev")


def test_every_environment_asks_for_the_one_before_it(road: Road) -> None:
    attest(road, "built", made())
    require(road, made(), "dev")
    for before, environment in (("dev", "staging"), ("staging", "prod")):
        with pytest.raises(VerificationError, match=f"has not passed {before}"):
            require(road, made(), environment)
        attest(road, "passed", made(commit=OTHER), before)
        with pytest.raises(VerificationError, match=f"has not passed {before}"):
            require(road, made(), environment)
        attest(road, "passed", made(), before)
        require(road, made(), environment)
    with pytest.raises(UserError, match="is not one of dev, staging, prod"):
        require(road, made(), "production")


def test_who_may_say_that_something_passed(road: Road) -> None:
    """Staging's key says nothing about dev."""
    attest(road, "built", made())
    keys = {key.environment: key for key in road.keyring.all()}
    private = road.keyring.private
    (private / f"{keys['dev'].id}.pem").write_bytes((private / f"{keys['staging'].id}.pem").read_bytes())
    attest_anyway = pytest.raises(UserError, match="is not the private half")
    with attest_anyway:
        attest(road, "passed", made(), "dev")


@pytest.mark.parametrize(
    ("artifacts", "why"),
    [
        ({}, "at least 1"), ({"app": "registry.example.com/mlops-app:latest"}, "must end in @sha256"),
        ({"app": "sha256:abc"}, "must end in @sha256"), ({"app": f"a b@sha256:{'0' * 64}"}, "must end in @sha256"),
    ],
)  # fmt: skip
def test_a_build_names_exact_artifacts(artifacts: dict[str, str], why: str) -> None:
    with pytest.raises(UserError, match=why):
        Build.parse(json.dumps({"commit": COMMIT, "artifacts": artifacts}), "BUILD")
    assert made().digest == made(commit=OTHER).digest != made("3").digest


class Somewhere(targets.Target):
    """An environment that notes what is brought to it."""

    def __init__(self, broken: tuple[str, ...] = ()):
        self.broken, self.runs = broken, list[str]()

    def up(self, build: Build, say: Callable[[str], None]) -> None:
        self.runs.append(build.artifacts["app"][-1])
        if self.runs[-1] in self.broken:
            raise UserError("app", build.short, "does not start")

    def raw(self, *words: str, data: bytes | None = None) -> bytes:
        return json.dumps({"rows": 20, "digest": "d" * 64, "requests": 5}).encode()


@pytest.fixture
def somewhere(monkeypatch: pytest.MonkeyPatch) -> Somewhere:
    there = Somewhere()
    monkeypatch.setattr(deploy, "target", lambda *_: there)
    monkeypatch.setattr(deploy, "is_ancestor", lambda older, newer: older < newer)
    return there


def bring(road: Road, build: Build, environment: str = "dev") -> deploy.Outcome:
    attest(road, "built", build)
    return deploy.deploy(road, environment, build, "a test", lambda text: None)


def test_a_build_that_fails_gives_way_to_the_one_before(road: Road, somewhere: Somewhere) -> None:
    bring(road, made("1"))
    somewhere.broken = ("2",)
    with pytest.raises(UserError, match=r"does not start; .* runs again"):
        bring(road, made("2"))
    assert somewhere.runs == ["1", "2", "1"]
    assert [each.build for each in DeploymentLog(road, "dev").read()] == [made("1")]
    with pytest.raises(VerificationError, match="has not passed dev"):
        bring(road, made("2"), "staging")


def test_a_rollback_goes_to_what_ran_and_takes_the_rest_out_of_use(road: Road, somewhere: Somewhere) -> None:
    for image in "123":
        bring(road, made(image, wheel=image))
    assert deploy.rollback(road, "dev", "", "slow", print).build == made("2", wheel="2")
    with pytest.raises(VerificationError, match=r"withdrawn from dev by .*slow"):
        bring(road, made("3", commit=OTHER, wheel="4"))
    # The one before it again: 3 is withdrawn, and what is withdrawn now is 2.
    assert deploy.rollback(road, "dev", "", "worse", print).build == made("1", wheel="1")
    assert somewhere.runs == ["1", "2", "3", "2", "1"]
    with pytest.raises(UserError, match=r"no other build that ran in dev can be deployed; .*withdrawn"):
        deploy.rollback(road, "dev", "", "again", print)
    bring(road, made("5", wheel="5"))
    chosen = made("1", wheel="1").digest[:8]
    assert deploy.rollback(road, "dev", chosen, "chosen", print).build == made("1", wheel="1")


def test_what_another_environment_withdrew_can_be_gone_back_to(road: Road, somewhere: Somewhere) -> None:
    """Nothing new gets it, but it ran here."""
    for image in "17":
        bring(road, made(image, wheel=image))
    attest(road, "withdrawn", made("1", wheel="1"), "staging", "slow there", ["app"])
    with pytest.raises(VerificationError, match="withdrawn from staging"):
        bring(road, made("1", wheel="3"))
    assert deploy.rollback(road, "dev", "", "worse", print).build == made("1", wheel="1")


def test_what_only_describes_others_is_not_withdrawn(road: Road, somewhere: Somewhere) -> None:
    def listed(image: str, sbom: str) -> Build:
        build = made(image)
        return build.model_copy(update={"artifacts": build.artifacts | {f"app{builds.SBOM}": f"sha256:{sbom * 64}"}})

    bring(road, listed("1", "8"))
    bring(road, listed("7", "9"))
    deploy.rollback(road, "dev", "", "slow", print)
    bring(road, listed("6", "9"))


def test_a_lock_of_somebody_else_changes_nothing(
    road: Road, somewhere: Somewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(road, made("1"))

    def held(build: Build, say: Callable[[str], None]) -> None:
        somewhere.runs.append("held")
        raise locks.HeldError("state", "dev", "somebody holds the lock")

    monkeypatch.setattr(somewhere, "up", held)
    with pytest.raises(locks.HeldError):
        bring(road, made("7"))
    assert somewhere.runs == ["1", "held"], "nobody goes back from where nothing was changed"


def test_only_what_differs_is_withdrawn(road: Road, somewhere: Somewhere) -> None:
    """A wheel that both have is not at fault."""
    for image in "17":
        bring(road, made(image))
    deploy.rollback(road, "dev", "", "slow", print)
    bring(road, made("6"))


def test_a_run_that_is_started_again_does_not_undo_later_ones(road: Road, somewhere: Somewhere) -> None:
    bring(road, made("1", commit=COMMIT))
    bring(road, made("2", commit=OTHER))
    with pytest.raises(UserError, match=f"is older than what runs in dev, {OTHER[:12]}"):
        bring(road, made("1", commit=COMMIT))
    assert somewhere.runs == ["1", "2"]


def test_two_builds_of_a_commit_are_the_same_wheel(tmp_path: Path) -> None:
    """Whenever, and in whichever folder; what was released does not change it, a line of code does."""
    wheels = []
    for name in ("one", "another place"):
        clone = tmp_path / name
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        (clone / "environments" / "released").mkdir(exist_ok=True)
        (clone / "environments" / "released" / "prod.json").write_text(name)
        (clone / "README.md").write_text(name)
        wheels.append(build.wheel(tmp_path / f"{name}.out", clone))
    assert wheels[0] == wheels[1]
    with (clone / "app" / "__init__.py").open("a") as code:
        code.write("# changed\n")
    assert build.wheel(tmp_path / "changed", clone) != wheels[0]

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlops import bundle as bundles
from mlops.bundle import FILES, Bundle, canonical
from mlops.errors import UserError, VerificationError
from mlops.keys import Keyring
from mlops.model import Model
from mlops.registered_model import RegisteredModel
from mlops.sandbox import run_in_sandbox
from mlops.store import Store
from tests import synthetic


def registered(bucket: object, name: str = synthetic.MODEL) -> RegisteredModel:
    return RegisteredModel(name, "local", Store(str(bucket)), Keyring(Path("no-keyring.json")))


@pytest.fixture(params=["folder", "s3"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> RegisteredModel:
    return registered(tmp_path / "bucket" if request.param == "folder" else request.getfixturevalue("s3_bucket"))


def test_a_bundle_is_read_as_written_and_written_again_changes_nothing(
    model: RegisteredModel, first_bundle: Bundle
) -> None:
    digest = bundles.write(model, first_bundle)
    assert bundles.write(model, first_bundle) == digest == first_bundle.digest
    assert bundles.read(model, digest) == first_bundle
    where = bundles.folder(model, digest)
    assert set(model.store.keys(where)) == {f"{where}/{name}" for name in (*FILES, "manifest.json")}


def test_an_interrupted_write_is_completed_by_the_next(model: RegisteredModel, first_bundle: Bundle) -> None:
    digest = first_bundle.digest
    model.store.put(f"{bundles.folder(model, digest)}/model.onnx", first_bundle.files["model.onnx"])
    with pytest.raises(VerificationError, match="missing"):
        bundles.read(model, digest)
    assert bundles.digests(model) == []
    with pytest.raises(UserError, match="no bundle"):
        bundles.find(model, digest[:12])
    bundles.write(model, first_bundle)
    assert bundles.digests(model) == [digest]
    assert bundles.find(model, digest[:12]) == digest


def test_a_bundle_is_never_overwritten(model: RegisteredModel, first_bundle: Bundle) -> None:
    card = f"{bundles.folder(model, first_bundle.digest)}/card.md"
    model.store.put(card, b"other")
    with pytest.raises(UserError, match="exists with other bytes"):
        bundles.write(model, first_bundle)
    assert model.store.get(card) == b"other"


def test_the_digest_depends_on_every_byte_and_not_on_the_order_of_files(first_bundle: Bundle) -> None:
    digests = {Bundle(first_bundle.files | {name: data + b" "}).digest for name, data in first_bundle.files.items()}
    assert len({first_bundle.digest, *digests}) == len(FILES) + 1
    assert Bundle(dict(reversed(first_bundle.files.items()))).digest == first_bundle.digest


@pytest.mark.parametrize("digest", ["", "abc", "A" * 64, "../" * 20 + "aaaa", "é" * 64])
def test_an_invalid_digest_is_refused(tmp_path: Path, digest: str) -> None:
    with pytest.raises(VerificationError) as refused:
        bundles.read(registered(tmp_path), digest)
    assert refused.value.reason == "digest"


def test_a_prefix_finds_the_one_bundle_that_matches(
    tmp_path: Path, first_bundle: Bundle, second_bundle: Bundle
) -> None:
    model = registered(tmp_path)
    digests = {bundles.write(model, each) for each in (first_bundle, second_bundle)}
    assert {bundles.find(model, digest[:8]) for digest in digests} == digests
    with pytest.raises(UserError, match="matches 2 bundles"):
        bundles.find(model, "")
    with pytest.raises(UserError, match="matches no bundle"):
        bundles.find(model, "x")


def test_another_models_bundle_is_refused(tmp_path: Path, first_bundle: Bundle) -> None:
    other = registered(tmp_path, "other")
    digest = bundles.write(other, first_bundle)
    with pytest.raises(VerificationError, match="another model's contract"):
        bundles.read(other, digest)


PROFILES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no bins": lambda p: p.pop("bins"),
    "a column is missing": lambda p: p["bins"].pop("heat"),
    "an additional column": lambda p: p["bins"].update(other=p["bins"]["heat"]),
    "no levels to reject by": lambda p: p["levels"].clear(),
    "an empty list of levels": lambda p: p["levels"].update(region=[]),
    "a share is missing": lambda p: p["bins"]["color"]["expected"].pop(),
    "an edge twice": lambda p: p["bins"]["size"]["edges"].__setitem__(1, p["bins"]["size"]["edges"][0]),
    "edges out of order": lambda p: p["bins"]["size"]["edges"].reverse(),
    "edges that are words": lambda p: p["bins"]["size"].update(edges=["a"] * len(p["bins"]["size"]["edges"])),
    "levels for a number": lambda p: p["bins"]["size"].update(levels=None),
    "edges for a category": lambda p: p["bins"]["color"].update(edges=[]),
}


@pytest.mark.parametrize("change", PROFILES.values(), ids=PROFILES)
def test_a_profile_that_serving_could_not_count_by_is_refused(
    tmp_path: Path, first_bundle: Bundle, change: Callable[[dict[str, Any]], object]
) -> None:
    model, profile = registered(tmp_path), first_bundle.json("profile.json")
    change(profile)
    digest = bundles.write(model, Bundle(first_bundle.files | {"profile.json": canonical(profile)}))
    with pytest.raises(VerificationError) as refused:
        bundles.read(model, digest)
    assert refused.value.reason == "profile"


def test_the_manifest_names_each_file_with_its_size(first_bundle: Bundle) -> None:
    listed = json.loads(first_bundle.manifest)["files"]
    sizes = {name: len(data) for name, data in first_bundle.files.items()}
    assert {name: entry["bytes"] for name, entry in listed.items()} == sizes


def test_a_good_model_passes_the_sandbox(first_bundle: Bundle) -> None:
    run_in_sandbox(first_bundle, first_bundle.digest)


def test_a_model_of_another_seed_misses_the_golden_rows(first_bundle: Bundle, second_bundle: Bundle) -> None:
    swapped = Bundle(first_bundle.files | {"model.onnx": second_bundle.files["model.onnx"]})
    with pytest.raises(VerificationError) as refused:
        run_in_sandbox(swapped, swapped.digest)
    assert refused.value.reason == "golden"


def test_scores_of_a_loaded_bundle_are_its_golden_ones(first_bundle: Bundle) -> None:
    model, golden = Model(first_bundle, first_bundle.digest), first_bundle.json("golden.json")
    assert model.score([model.schema.row(row) for row in golden["rows"]]) == pytest.approx(golden["scores"], abs=1e-6)

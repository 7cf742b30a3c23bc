import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mlops import bundle as bundles
from mlops import promotion
from mlops.bundle import Bundle
from mlops.contract import Contract
from mlops.environment import Environment
from mlops.errors import UserError
from mlops.sandbox import Checked
from tests import synthetic
from tests.proofs import batch
from tests.service import Service
from tests.service import environment as make_environment
from training.scoring import score_file


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, first_bundle: Bundle) -> Environment:
    environment = make_environment(tmp_path_factory.mktemp("released"))
    promotion.release(environment.model(synthetic.MODEL), synthetic.publish(environment, first_bundle), "first")
    return environment


def scored(
    environment: Environment, source: Path, digest: str | None = None, folder: Path | None = None
) -> dict[str, Any]:
    return score_file(
        environment, synthetic.MODEL, source, folder or source.parent / f"{source.name}-scores", digest, quiet
    )


def test_a_run_killed_half_way_continues_to_the_same_bytes_in_flat_memory(
    released: Environment, tmp_path: Path
) -> None:
    source = batch.write(80_000, tmp_path / "rows.parquet")
    whole = batch.run(released, source, tmp_path / "whole")
    batch.killed(released, source, tmp_path / "resumed", [1, 2])
    before = {file: file.stat().st_mtime_ns for file in batch.parts(tmp_path / "resumed")}
    assert 2 <= len(before) < whole["parts"]
    resumed = scored(released, source, folder=tmp_path / "resumed")
    assert (resumed["scored"], resumed["refused"]) == (whole["scored"], whole["refused"])
    assert resumed["scored"] + resumed["refused"] == 80_000
    assert batch.fingerprints(tmp_path / "resumed") == batch.fingerprints(tmp_path / "whole")
    assert {file: file.stat().st_mtime_ns for file in before} == before, "parts that were there are not scored again"
    assert whole["peak"] <= batch.MAX_RSS_MB
    assert whole["second"] <= batch.FLAT * whole["first"]


def test_csv_and_parquet_get_the_answers_of_the_api(released: Environment, tmp_path: Path) -> None:
    files = [batch.write(3_000, tmp_path / name) for name in ("rows.parquet", "rows.csv")]
    for file in files:
        assert scored(released, file)["refused"] == 6
    with Service(released, synthetic.MODEL) as service:
        service.serves(1)
        found = batch.differences(service, files[0], tmp_path / "rows.parquet-scores", 3_000)
    assert (found["compared"], found["refused"]) == (2_994, 6)
    assert found["score"] <= 1e-6
    assert not found["predictions"]
    (from_parquet, refused), (from_csv, refused_csv) = (
        batch.answers(tmp_path / f"{file.name}-scores") for file in files
    )
    assert from_csv == from_parquet
    assert set(refused_csv) == set(refused) == {0, 500, 1000, 1500, 2000, 2500}


HEADER = "size,heat,color,region,group,member,customer"
GOOD = "0.5,1.0,red,north,a,true,c1"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x,1.0,red,north,a,true,c1", "$.size"),
        ("99,1.0,red,north,a,true,c1", "$.size"),
        ("inf,1.0,red,north,a,true,c1", "$.size"),
        ("nan,1.0,red,north,a,true,c1", "$.size"),
        ("NaN,1.0,red,north,a,true,c1", "$.size"),
        ("0.5,none,red,north,a,true,c1", "$.heat"),
        ("0.5,1.0,,north,a,true,c1", "$.color"),
        ("0.5,1.0,red,east,a,true,c1", "$.region"),
        ("0.5,1.0,red,north,a,perhaps,c1", "$.member"),
        (f"0.5,1.0,{'r' * 201},north,a,true,c1", "$.color"),
        ("0.5,1.0,red,north", "has 4 cells, the header has 7"),
        (GOOD + ",more", "has 8 cells, the header has 7"),
        ("0.5,1.0,r\xe9d,north,a,true,c1", "is not UTF-8"),
    ],
)
def test_a_row_that_the_api_would_refuse_goes_to_the_side_file(
    loaded: Callable[[Path], dict[str, Any]], tmp_path: Path, line: str, reason: str
) -> None:
    source = tmp_path / "rows.csv"
    source.write_text(
        "\n".join([HEADER, GOOD, line, "", '0.5,,"a ""new""\ncolor",south,b,0,', GOOD]), encoding="latin-1"
    )
    loaded(source)
    rows, refused = batch.answers(tmp_path / "out")
    assert list(rows) == [0, 2, 3], "missing heat, a color never seen and a line break in quotes are no errors"
    assert list(refused) == [1]
    assert reason in refused[1]


@pytest.fixture
def loaded(released: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], dict[str, Any]]:
    """Scoring without the sandbox, whose result is the same each time."""
    monkeypatch.setattr("training.scoring.run_in_sandbox", lambda bundle, _: Checked(bundle, 0.0))
    return lambda source: scored(released, source, folder=tmp_path / "out")


PARQUET = {
    "size": [0.5],
    "heat": [1.0],
    "color": ["red"],
    "region": ["north"],
    "group": ["a"],
    "member": [True],
    "customer": ["c1"],
}


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"heat": [float("nan")]}, ""),
        ({"heat": [None]}, ""),
        ({"size": [1]}, ""),
        ({"extra": [1]}, ""),
        ({"color": pl.Series(["red"], dtype=pl.Categorical)}, ""),
        ({"heat": [float("inf")]}, "$.heat"),
        ({"size": [float("nan")]}, "$.size"),
        ({"size": ["0.5"]}, ""),
        ({"size": ["small"]}, "$.size"),
        ({"color": [7]}, ""),
        ({"color": [b"red"]}, "$.color"),
        ({"member": [1]}, ""),
        ({"member": [2]}, "$.member"),
        ({"member": [None]}, "$.member"),
    ],
)
def test_parquet_values_are_read_as_training_reads_them(
    loaded: Callable[[Path], dict[str, Any]], tmp_path: Path, columns: dict[str, Any], reason: str
) -> None:
    pl.DataFrame(PARQUET | columns).write_parquet(tmp_path / "rows.parquet")
    assert loaded(tmp_path / "rows.parquet")["refused"] == bool(reason)
    assert reason in batch.answers(tmp_path / "out")[1].get(0, "")


def test_a_missing_column_is_named_in_each_refused_row(
    loaded: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    pl.DataFrame(PARQUET).drop("size", "heat").write_parquet(tmp_path / "rows.parquet")
    assert loaded(tmp_path / "rows.parquet")["scored"] == 0
    assert "missing required field `size`" in batch.answers(tmp_path / "out")[1][0]


def test_a_row_with_a_non_finite_score_is_refused(environment: Environment, tmp_path: Path) -> None:
    contract = synthetic.contract_yaml("regression")
    contract["features"]["size"].pop("range")
    bundle = synthetic.build(Contract.model_validate(contract), synthetic.frame(days=30), estimator="linear")
    promotion.release(environment.model(synthetic.MODEL), synthetic.publish(environment, bundle), "linear")
    pl.DataFrame(PARQUET | {"size": [3e38]}).vstack(pl.DataFrame(PARQUET)).write_parquet(tmp_path / "rows.parquet")
    assert scored(environment, tmp_path / "rows.parquet")["scored"] == 1
    assert batch.answers(tmp_path / "rows.parquet-scores")[1] == {0: "the model returned a non-finite score"}


def test_only_a_whole_bundle_approved_here_scores(
    environment: Environment, first_bundle: Bundle, tmp_path: Path
) -> None:
    source = batch.write(10, tmp_path / "rows.csv")
    with pytest.raises(UserError, match="nothing is released yet"):
        scored(environment, source)
    digest = synthetic.publish(environment, first_bundle)
    with pytest.raises(UserError, match="is not approved for 'local'"):
        scored(environment, source, digest)
    with pytest.raises(UserError, match="matches no bundle"):
        scored(environment, source, "0" * 64)
    promotion.release(environment.model(synthetic.MODEL), digest, "first")
    assert scored(environment, source, digest[:12])["digest"] == digest
    (approval,) = [key for key in environment.keys.all() if key.role == "approve"]
    environment.keys.set_state(approval.id, "revoked")
    with pytest.raises(UserError, match="revoked key"):
        scored(environment, source, digest)
    environment.keys.set_state(approval.id, "active")
    graph = Path(environment.bucket, bundles.folder(environment.model(synthetic.MODEL), digest), "model.onnx")
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.onnx.*does not have the SHA-256"):
        scored(environment, source)


def test_a_folder_belongs_to_one_job_and_one_process(loaded: Callable[[Path], dict[str, Any]], tmp_path: Path) -> None:
    source = batch.write(25_000, tmp_path / "rows.csv")
    refusals = []

    def at_the_same_time() -> None:
        with pytest.raises(UserError, match="another process is scoring") as error:
            loaded(source)
        refusals.append(error)

    first = threading.Thread(target=loaded, args=[source])
    first.start()
    while not (tmp_path / "out" / "job.json").exists():
        pass
    at_the_same_time()
    first.join()
    assert refusals
    before = batch.fingerprints(tmp_path / "out")
    source.write_text(source.read_text() + GOOD + "\n")
    with pytest.raises(UserError, match="another job"):
        loaded(source)
    assert batch.fingerprints(tmp_path / "out") == before
    assert json.loads((tmp_path / "out" / "job.json").read_text())["source"] == str(source)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("rows.parquet", b"no parquet", "cannot be read"),
        ("rows.txt", b"a,b\n", r"neither \.csv, \.tsv nor \.parquet"),
        ("rows.csv.gz", HEADER.encode(), "cannot be read: "),
    ],
)
def test_a_source_that_cannot_be_read_is_named(
    loaded: Callable[[Path], dict[str, Any]], tmp_path: Path, name: str, content: bytes, why: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=why):
        loaded(tmp_path / name)
    with pytest.raises(UserError, match="no such file"):
        loaded(tmp_path / "absent.csv")

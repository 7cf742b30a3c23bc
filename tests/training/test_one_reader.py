"""A file means the same to init, train, score and the API, however it is spelled."""

import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from mlops import promotion
from mlops.contract import Contract
from mlops.environment import Environment
from mlops.model import Model
from mlops.sandbox import Checked
from tests import synthetic
from tests.proofs import batch
from tests.service import environment as make_environment
from training import data, features
from training.scaffold import Scaffold
from training.scoring import score_file
from training.source import read
from training.validation import good_and_bad

HEADER = "weight,size,zip,fragile,sent,y"
CONTRACT = Contract.model_validate({
    "model": "parcels", "task": "binary", "target": "y", "time": {"column": "sent", "zone": "Europe/Paris"},
    "features": {
        "weight": {"type": "number", "missing": True}, "size": {"type": "category"},
        "zip": {"type": "category", "missing": True}, "fragile": {"type": "boolean"},
    },
})  # fmt: skip


def parcels(rows: int = 400) -> str:
    random = np.random.default_rng(3)
    weight, zips = random.gamma(2, 3, rows).round(2), random.choice(["04109", "80331", "00100", "12345"], rows)
    back = random.random(rows) < 1 / (1 + np.exp(2 - 0.4 * weight - 1.5 * (zips == "00100")))
    lines = [HEADER]
    for i in range(rows):
        size, fragile, day = (
            ("small", "large")[i % 2],
            ("true", "false")[i % 3 > 0],
            f"2024-{1 + i % 12:02d}-{1 + i % 28:02d}",
        )
        lines.append(f"{weight[i]},{size},{zips[i]},{fragile},{day},{int(back[i])}")
    return "\n".join(lines) + "\n"


def as_training_reads(file: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    return good_and_bad(data.select(read(str(file)), CONTRACT), CONTRACT)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Environment, Model]:
    environment = make_environment(tmp_path_factory.mktemp("parcels"))
    file = tmp_path_factory.mktemp("data") / "parcels.csv"
    file.write_text(parcels())
    bundle = synthetic.build(CONTRACT, as_training_reads(file)[0])
    promotion.release(environment.model("parcels"), synthetic.publish(environment, bundle), "first")
    return environment, Model(bundle, bundle.digest)


@pytest.fixture
def scored(
    released: tuple[Environment, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], tuple[dict[int, Any], dict[int, str]]]:
    monkeypatch.setattr("training.scoring.run_in_sandbox", lambda bundle, _: Checked(bundle, 0.0))

    def score(file: Path) -> tuple[dict[int, Any], dict[int, str]]:
        score_file(released[0], "parcels", file, tmp_path / "out", None, lambda _: None)
        return batch.answers(tmp_path / "out")

    return score


CELLS = {
    "weight": ["1.50", "1E3", "1e-3", " 2 ", "+3", "-0", ".5", "5.", "1_000", '"1,5"', "0x10", "inf", "-inf", "1e39", "NaN", "nan",
               "NA", "?", "", "none", "$1", "1.234.5", "٣", "true", "007"],
    "zip": ["04109", "4109", "1.50", "1E3", "True", "", "NA", "N/A", " 04109", '"a,b"', '"a ""b"""', "x" * 200, "x" * 201, "ß", "null",
            "2024-01-05", "?"],
    "size": ["small", "Small", "", "unseen"],
    "fragile": ["true", "True", "TRUE", "false", "1", "0", "yes", "T", "2", "", " true "],
    "sent": ["2024-01-05", "2024-01-05T10:00", "2024-01-05 10:00:00", "2024-01-05T10:00:00Z", "2024-01-05T10:00:00+02:00",
             "2024-01-05T10:00:00.5", "05/01/2024", "2024-1-5", "2024-02-30", "1969-01-01", "9999-12-31", "noon",
             "2024-03-31T02:30", "2024-10-27T02:30"],
}  # fmt: skip
ROW = {"weight": "2.5", "size": "small", "zip": "04109", "fragile": "true", "sent": "2024-01-05"}


@pytest.mark.parametrize(("column", "cell"), [(column, cell) for column, cells in CELLS.items() for cell in cells])
def test_a_spelling_means_the_same_everywhere(
    released: tuple[Environment, Model], scored: Callable, tmp_path: Path, column: str, cell: str
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(f"{HEADER}\n{','.join((ROW | {column: cell}).values())},1\n", encoding="utf-8")
    good, bad = as_training_reads(file)
    scores, refused = scored(file)
    assert good.height + bad.height == len(scores) + len(refused) == 1
    assert good.height == len(scores), (bad, refused)
    model = released[1]
    if good.height:
        [expected] = model.score_arrays(features.arrays(good, CONTRACT))
        assert scores[0][0] == pytest.approx(float(expected), abs=1e-6)
        row = {name: value for name, value in good.select(list(ROW)).row(0, named=True).items() if value is not None}
        by_api = msgspec.json.decode(msgspec.json.encode(row))
    else:
        row = {"weight": 2.5, "size": "small", "zip": "04109", "fragile": True, "sent": "2024-01-05"} | {
            column: cell or None
        }
        assert column in bad.row(0)[1]
        assert column in refused[0]
        by_api = row | ({"weight": json.loads("1e39")} if cell == "1e39" else {})
    if good.height:
        assert model.score([model.schema.row(by_api)]) == pytest.approx(scores[0][:1], abs=1e-6)
    else:
        with pytest.raises(msgspec.ValidationError, match=column):
            model.schema.row(by_api)


def test_a_time_is_the_same_moment_in_a_file_and_in_a_request(
    released: tuple[Environment, Model], tmp_path: Path
) -> None:
    schema = released[1].schema
    for cell in CELLS["sent"]:
        (tmp_path / "rows.csv").write_text(f"{HEADER}\n{','.join((ROW | {'sent': cell}).values())},1\n")
        good, _ = as_training_reads(tmp_path / "rows.csv")
        row = {"weight": 2.5, "size": "small", "fragile": True, "sent": cell}
        if good.height:
            assert CONTRACT.event_of(schema.row(row)) == good["sent"][0].timestamp()
        else:
            with pytest.raises(msgspec.ValidationError, match=r"\$\.sent"):
                schema.row(row)


def spellings(text: str) -> dict[str, bytes]:
    """One table in many files."""
    table = [line.split(",") for line in text.splitlines()]
    quoted = "\n".join(",".join(f'"{cell}"' for cell in line) for line in table)
    comma = "\n".join(";".join(cell.replace(".", ",") for cell in line) for line in table)
    renamed = text.replace(HEADER, "Weight,SIZE,Zip,fragile,Sent ,Y", 1)
    wider = "\n".join(",".join([f"more{i}", *reversed(line)]) for i, line in enumerate(table))
    plain = text.encode()
    return {
        "plain.csv": plain, "upper.CSV": plain, "no_end.csv": plain.rstrip(), "blank.csv": b"\n\n" + plain + b"\n\n",
        "crlf.csv": text.replace("\n", "\r\n").encode(), "bom.csv": b"\xef\xbb\xbf" + plain, "utf16.csv": text.encode("utf-16"),
        "utf16be.csv": b"\xfe\xff" + text.encode("utf-16-be"), "quoted.csv": quoted.encode(), "tab.tsv": text.replace(",", "\t").encode(),
        "tab.csv": text.replace(",", "\t").encode(), "pipe.csv": text.replace(",", "|").encode(),
        "semicolon.csv": text.replace(",", ";").encode(), "comma.csv": comma.encode(), "zip.csv.gz": gzip.compress(plain),
        "zip.csv.bz2": bz2.compress(plain), "zip.csv.zst": pa.compress(plain, "zstd", asbytes=True), "names.csv": renamed.encode(),
        "wider.csv": wider.encode(),
    }  # fmt: skip


@pytest.mark.parametrize("name", spellings(HEADER))
def test_a_table_means_the_same_in_every_dialect(scored: Callable, tmp_path: Path, name: str) -> None:
    (tmp_path / "first.csv").write_text(parcels(60))
    (tmp_path / name).write_bytes(spellings(parcels(60))[name])
    wanted, _ = as_training_reads(tmp_path / "first.csv")
    good, bad = as_training_reads(tmp_path / name)
    assert bad.height == 0
    assert good.equals(wanted)
    scores, refused = scored(tmp_path / name)
    assert (len(scores), refused) == (60, {})


def test_init_sees_what_training_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlops.environment.MODELS", tmp_path / "models")
    (tmp_path / "parcels.csv").write_text(parcels())
    files = Scaffold("y", time="sent").write(tmp_path / "parcels.csv")
    from training.definition import load_definition

    made = load_definition(files[0].parent.name)
    assert {name: feature.type for name, feature in made.contract.features.items()} == {
        name: feature.type for name, feature in CONTRACT.features.items()
    }
    assert set(made.load()["zip"]) == {"04109", "80331", "00100", "12345"}

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy

from environments.local.platform import free_port
from mlops.errors import UserError
from training.source import open_table, read

ROWS = pl.DataFrame(
    {"size": [1.5, None, 3.0], "color": ["red", "blue", None], "count": [1, 2, 3], "member": [True, False, True]}
)
PASSWORD = "p@ss/w:rd"
_PLACES = [
    *os.environ.get("PATH", "").split(os.pathsep),
    *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)),
]
POSTGRES = shutil.which("pg_ctl", path=os.pathsep.join(_PLACES))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.csv", ROWS.write_csv),
        ("rows.csv.gz", lambda path: ROWS.write_csv(path, compression="gzip")),
        ("rows.parquet", ROWS.write_parquet),
        ("rows.pq", ROWS.write_parquet),
    ],
)
def test_a_file_is_read_as_it_is(tmp_path: Path, name: str, write) -> None:
    write(tmp_path / name)
    found = read(str(tmp_path / name))
    assert found.equals(ROWS if name.endswith(("parquet", "pq")) else ROWS.cast(pl.String))


def test_parquet_is_read_part_by_part(tmp_path: Path) -> None:
    """What came before a part is gone when the next one is read."""
    frame = pl.DataFrame({"text": [f"{number:0100}" for number in range(600_000)]})
    frame.write_parquet(file := tmp_path / "table.parquet")
    before, most = pa.total_allocated_bytes(), 0
    for _, part in open_table(str(file)).parts:
        del part
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 30 << 20 < frame.estimated_size()


def test_a_csv_is_text_and_the_usual_words_for_missing(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("zip,size\n04109,1.50\nNA,NaN\n80331,?\n,null\n")
    rows = read(str(tmp_path / "rows.csv"))
    assert rows["zip"].to_list() == ["04109", None, "80331", None]
    assert rows["size"].to_list() == ["1.50", None, None, None]


@contextmanager
def sqlite(folder: Path) -> Generator[str]:
    yield f"sqlite:///{folder}/rows.db"


@contextmanager
def postgres(_: Path) -> Generator[str]:
    """A real server for one test, of a user of its own where we are root, since it refuses to be root's."""
    assert POSTGRES
    user = "nobody" if os.geteuid() == 0 else getpass.getuser()
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    shutil.chown(folder, user)
    port, secret = free_port(15432), folder / "password"
    secret.write_text(PASSWORD)
    shutil.chown(secret, user)

    def run(program: str, *words: str) -> None:
        command = [str(Path(POSTGRES or "").parent / program), "-D", str(folder / "data"), *words]
        subprocess.run(
            command,
            user=user if os.geteuid() == 0 else None,
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=60,
        )

    try:
        run(
            "initdb",
            "--username",
            "reader",
            "--pwfile",
            str(secret),
            "--auth",
            "scram-sha-256",
            "--no-sync",
            "--encoding",
            "UTF8",
        )
        run(
            "pg_ctl",
            "-w",
            "-l",
            str(folder / "log"),
            "-o",
            f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -F",
            "start",
        )
        yield f"postgresql://reader:${{DB_PASSWORD}}@127.0.0.1:{port}/postgres"
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder)


DATABASES = {"sqlite": sqlite} | ({"postgresql": postgres} if POSTGRES else {})


@pytest.mark.parametrize("kind", DATABASES)
def test_a_query_is_read_from_a_database_with_the_password_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with DATABASES[kind](tmp_path) as uri:
        monkeypatch.setenv("DB_PASSWORD", quote(PASSWORD, safe=""))
        url = uri.replace("${DB_PASSWORD}", quote(PASSWORD, safe="")).replace("postgresql://", "postgresql+psycopg://")
        engine = sqlalchemy.create_engine(url)
        with engine.begin() as connection:
            connection.execute(
                sqlalchemy.text("create table things (size float, color text, count int, member boolean)")
            )
            connection.execute(
                sqlalchemy.text("insert into things values (:size, :color, :count, :member)"), ROWS.to_dicts()
            )
            connection.execute(sqlalchemy.text("create table sparse (place int, size float)"))
            connection.execute(
                sqlalchemy.text("insert into sparse values (:place, :size)"),
                [{"place": n, "size": 0.5 if n == 499 else None} for n in range(500)],
            )
        engine.dispose()
        assert read(uri, "select size from sparse order by place")["size"][499] == 0.5, "a type that shows late is seen"
        rows = read(uri, "select * from things where count > 1 order by count")
        assert rows.with_columns(pl.col("member").cast(pl.Boolean)).equals(ROWS[1:])
        with pytest.raises(UserError, match="nowhere") as caught:
            read(uri, "select * from nowhere")
        assert PASSWORD not in str(caught.value)
        if "DB_PASSWORD" in uri:
            monkeypatch.setenv("DB_PASSWORD", "wrong")
            with pytest.raises(UserError, match="the query failed") as caught:
                read(uri, "select 1")
            assert caught.value.value == uri, "as it was written, without the secret"
            monkeypatch.delenv("DB_PASSWORD")
            with pytest.raises(UserError, match="set DB_PASSWORD in the environment"):
                read(uri, "select 1")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("rows.parquet", b"not parquet", "cannot be read"),
        ("rows.csv", b"", "it is empty"),
        ("rows.csv", b"a,b\n1,2\n1,2,3,4\n", "row 2 has 4 cells, the header has 2"),
        ("rows.csv", b"a,b\n1,caf\xe9\n", r"row 1 is not UTF-8.*iconv"),
        ("rows.csv", b"a,caf\xe9\n1,2\n", r"not UTF-8.*iconv"),
        ("rows.csv.gz", b"a,b\n1,2\n", "cannot be read"),
    ],
)
def test_a_broken_file_is_an_error_with_its_name(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=why):
        read(str(tmp_path / name))


@pytest.mark.parametrize(
    ("uri", "query", "hint"),
    [
        ("nowhere.csv", None, "no such file"),
        ("https://example.org/rows.xlsx", None, r"neither \.csv, \.tsv nor \.parquet"),
        ("postgresql://reader:${NOT_SET_ANYWHERE}@127.0.0.1:1/db", "select 1", "set NOT_SET_ANYWHERE"),
        ("postgresql://reader@127.0.0.1:1/db", "select 1", "the query failed"),
        ("oddbase://reader@127.0.0.1:1/db", "select 1", "the query failed"),
    ],
)
def test_an_unreadable_source_is_explained(uri: str, query: str | None, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        read(uri, query)

"""Files of the prediction log are decoded in a child process under limits: whoever may write to the bucket may write what
makes a decoder panic, or take all memory. `python -m monitoring.decoder FD` is that child. It is asked by two messages, what
is wanted (JSON) and the file, answers by one (JSON), and leaves the table as Arrow in the file that it inherits.
"""

import os
import resource
import struct
import subprocess
import sys
import tempfile
import threading
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec
import polars as pl

from mlops.log_schema import Kind, records
from mlops.sandbox import limit_memory
from monitoring.frames import COLUMNS, FEATURE, KINDS, Schema, may_lack, within

_LENGTH = struct.Struct(">Q")  # before each message
_MEMORY_MB = 768  # for one file, beyond the interpreter and its libraries
_MAX_TABLE = 512 * 2**20  # bytes
_CPU_SECONDS, _SECONDS = 20, 60  # for one file
_PIPE = 2**20  # bytes: with less much time goes by in turns
_TYPES: dict[str, Any] = {str(each): each for each in (pl.String, pl.Float64, pl.Int64, pl.Boolean)}


class Decoded(NamedTuple):
    """`lost`: lines or rows that are none of ours, or 1 for a file that is none; the others are in `rows`."""

    rows: pl.DataFrame
    lost: int


class _Request(msgspec.Struct):
    """`columns` and their types; None: all."""

    kind: str
    parquet: bool
    columns: dict[str, str] | None


class _Answer(msgspec.Struct):
    lost: int
    size: int  # bytes of the table


class _Child:
    def __init__(self) -> None:
        self._table = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (lives as long as the child)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "monitoring.decoder", f"{self._table.fileno()}"], pass_fds=[self._table.fileno()],
            cwd=Path(__file__).parent.parent, start_new_session=True,
            env={"POLARS_MAX_THREADS": "1"},  # none of our variables: there are credentials among them
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pipesize=_PIPE,
        )  # fmt: skip

    def ask(self, request: _Request, content: bytes) -> Decoded | None:
        """None if it died of it."""
        deadline = threading.Timer(_SECONDS, self._process.kill)
        deadline.start()
        try:
            _send(self._process.stdin, msgspec.json.encode(request), content)
            answer = msgspec.json.decode(_receive(self._process.stdout, 256), type=_Answer)
            table = os.pread(self._table.fileno(), min(answer.size, _MAX_TABLE), 0)
            return Decoded(pl.read_ipc_stream(table), answer.lost)
        except (OSError, ValueError):
            self._process.kill()
            self._process.communicate()
            self._table.close()
            return None
        finally:
            deadline.cancel()


_lock = threading.Lock()
_child: _Child | None = None


def decode(content: bytes, kind: str, parquet: bool, schema: Schema | None = None) -> Decoded:
    """The rows of a file, with the columns of `schema` or all of them; `feature.NAME` is null where it is absent or of
    another type."""
    global _child
    columns = None if schema is None else {name: str(dtype) for name, dtype in schema.items()}
    request = _Request(kind, parquet, columns)
    with _lock:
        for _ in range(2):  # it may have died of something else
            _child = _child or _Child()
            if found := _child.ask(request, content):
                return found
            _child = None
    return nothing(kind, schema)


def nothing(kind: str, schema: Schema | None) -> Decoded:
    """What a file has that is damaged as a whole."""
    return Decoded(pl.DataFrame(schema=COLUMNS[KINDS[kind]] if schema is None else schema), 1)


def _send(pipe: IO[bytes] | None, *messages: bytes) -> None:
    assert pipe
    for each in messages:
        pipe.write(_LENGTH.pack(len(each)))
        pipe.write(each)
    pipe.flush()


def _receive(pipe: IO[bytes] | None, limit: int | None = None) -> bytes:
    """Raises ValueError where it ends, or has more bytes than `limit`."""
    assert pipe
    head = pipe.read(_LENGTH.size)
    size = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else -1
    if size < 0 or (limit is not None and size > limit) or len(content := pipe.read(size)) < size:
        raise ValueError(f"{size} bytes")
    return content


def _from_segment(content: bytes, kind: Kind, schema: Schema | None) -> Decoded:
    rows, lost = records(content, kind)
    if schema is None:
        names = sorted({name for row in rows for name in getattr(row, "features", ())})
        values = {name: {type(row.features.get(name)) for row in rows} for name in names}
        schema = COLUMNS[kind] | {f"{FEATURE}{name}": _dtype(types) for name, types in values.items()}
    columns = {name: [_value(row, name, dtype) for row in rows] for name, dtype in schema.items()}
    return Decoded(pl.DataFrame(columns, schema, strict=False), lost)


def _dtype(kinds: set[type]) -> Any:
    """One type for a feature in every file, whatever its values are."""
    kinds = kinds - {type(None)}
    return pl.String if str in kinds else pl.Boolean if kinds == {bool} else pl.Float64


def _value(row: Any, name: str, dtype: Any) -> Any:
    if not name.startswith(FEATURE):
        return getattr(row, name)
    value = row.features.get(name.removeprefix(FEATURE))
    return str(value).lower() if isinstance(value, bool) and dtype == pl.String else value


def _from_parquet(content: bytes, kind: Kind, schema: Schema | None) -> Decoded:
    there = pl.read_parquet_schema(BytesIO(content))
    if schema is None:
        logged = {name: dtype for name, dtype in there.items() if name.startswith(FEATURE)}
        schema = COLUMNS[kind] | {name: dtype for name, dtype in logged.items() if dtype in _TYPES.values()}
    found = pl.read_parquet(BytesIO(content), columns=[name for name in schema if name in there])
    absent = [name for name in schema if name not in there and may_lack(kind, name)]
    found = found.with_columns(pl.lit(None).alias(name) for name in absent)
    found = found.select(pl.col(name).cast(dtype, strict=name in COLUMNS[kind]) for name, dtype in schema.items())
    fits = found.select(pl.all_horizontal(within(kind, schema))).to_series()
    return Decoded(found, 0) if fits.all() else Decoded(found.filter(fits), found.height - int(fits.sum()))


def main(table: IO[bytes]) -> None:
    """Answers until its input ends. It dies of what its limits forbid, and of a panic, which is no Exception."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_TABLE, _MAX_TABLE))
    limit_memory(_MEMORY_MB)
    while True:
        try:
            request = msgspec.json.decode(_receive(sys.stdin.buffer), type=_Request)
            content = _receive(sys.stdin.buffer)
        except ValueError:
            return
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + _CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        schema = None if request.columns is None else {name: _TYPES[each] for name, each in request.columns.items()}
        read = _from_parquet if request.parquet else _from_segment
        try:
            rows, lost = read(content, KINDS[request.kind], schema)
        except MemoryError:
            raise
        except Exception:
            rows, lost = nothing(request.kind, schema)
        table.seek(0)
        rows.write_ipc_stream(table)
        _send(sys.stdout.buffer, msgspec.json.encode(_Answer(lost, table.tell())))


if __name__ == "__main__":
    main(os.fdopen(int(sys.argv[1]), "r+b", buffering=0))

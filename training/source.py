import os
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

from mlops.errors import UserError
from mlops.store import Store


def read(uri: str, query: str | None = None) -> pl.DataFrame:
    """A table from a CSV or Parquet file (a path, http(s):// or s3://), or from a database (a SQLAlchemy URI with `query`).

    `${NAME}` in the URI is taken from the environment, so that passwords stay in secrets.
    """
    resolved = re.sub(r"\$\{(\w+)\}", _secret, uri)
    if query is not None:
        import sqlalchemy
        from sqlalchemy.exc import SQLAlchemyError

        url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", resolved)
        try:
            engine = sqlalchemy.create_engine(url)
            with engine.connect() as connection:
                return pl.read_database(query, connection, infer_schema_length=None)
        except SQLAlchemyError as error:
            raise UserError("data", uri, f"the query failed: {str(error).splitlines()[0]}") from None
    if "://" not in resolved and not Path(resolved).is_file():
        raise UserError("data", uri, "no such file")
    try:
        if resolved.endswith((".parquet", ".pq")):
            return pl.read_parquet(resolved)
        if resolved.endswith((".csv", ".csv.gz")):
            how: Any = {"infer_schema_length": None, "try_parse_dates": True}
            return pl.read_csv(resolved, null_values=["", "NA", "NaN", "null"], **how)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError("data", uri, f"cannot be read: {str(error).splitlines()[0]}") from None
    raise UserError("data", uri, "is neither .csv nor .parquet; for a database give a query as well")


def to_parquet(frame: pl.DataFrame) -> bytes:
    content = BytesIO()
    frame.write_parquet(content, compression="zstd")
    return content.getvalue()


def snapshot_key(model: str) -> str:
    return f"data/{model}.parquet"


def put_snapshot(store: Store, model: str, content: bytes) -> str:
    """`content`: Parquet. Returns its key."""
    try:
        pl.read_parquet_schema(BytesIO(content))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError("snapshot", model, f"is not Parquet: {str(error).splitlines()[0]}") from None
    store.put(key := snapshot_key(model), content)
    return key


def read_snapshot(store: Store, model: str) -> pl.DataFrame:
    content = store.get(key := snapshot_key(model))
    if content is None:
        raise UserError("snapshot", key, "is not in the bucket; put it there: mlops --env ENVIRONMENT snapshot")
    return pl.read_parquet(BytesIO(content))


def _secret(match: re.Match[str]) -> str:
    if (name := match.group(1)) not in os.environ:
        raise UserError("data", match.group(), f"set {name} in the environment (a secret, not a file in git)")
    return os.environ[name]

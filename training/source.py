from __future__ import annotations

import os
import re
from pathlib import Path

import polars as pl

from mlops.errors import Fault


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
            raise Fault("data", uri, f"the query failed: {str(error).splitlines()[0]}") from None
    if "://" not in resolved and not Path(resolved).is_file():
        raise Fault("data", uri, "no such file")
    try:
        if resolved.endswith((".parquet", ".pq")):
            return pl.read_parquet(resolved)
        if resolved.endswith((".csv", ".csv.gz")):
            return pl.read_csv(resolved, infer_schema_length=None, null_values=["", "NA", "NaN", "null"], try_parse_dates=True)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise Fault("data", uri, f"cannot be read: {str(error).splitlines()[0]}") from None
    raise Fault("data", uri, "is neither .csv nor .parquet; for a database give a query as well")


def _secret(match: re.Match[str]) -> str:
    name = match.group(1)
    if name not in os.environ:
        raise Fault("data", f"${{{name}}}", f"set {name} in the environment (a secret, not a file in the repository)")
    return os.environ[name]

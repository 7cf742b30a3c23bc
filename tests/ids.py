"""Ids of predictions, as the app of the tests' environments issues them."""

from __future__ import annotations

from mlops.log_key import LogKey
from tests.service import LOG_SECRET
from tests.synthetic import MODEL

LOG_KEY = LogKey(LOG_SECRET, MODEL)
new_id = LOG_KEY.new_id


def id_at(at: float) -> str:
    """As the app would have issued it then, in Unix seconds."""
    return LOG_KEY._id(int(at * 1000), next(LOG_KEY._count) & (1 << 34) - 1)

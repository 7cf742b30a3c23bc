from collections.abc import Iterable
from typing import Any

import numpy as np
import onnxruntime

from mlops.bundle import Bundle
from mlops.rows import RowSchema

CHUNK_ROWS = 128  # that the graph is given at once: the sandbox has seen it take each number of rows up to this


class ScoreError(Exception):
    """The graph answers with something else than one score a row: no score can be told to be a row's."""


def session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.load_model_format", "ONNX")  # whatever else the bytes may look like
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class Model:
    """A verified bundle, loaded: validates rows and scores them in one thread."""

    def __init__(self, bundle: Bundle, digest: str):
        self.digest = digest
        self.contract = bundle.contract
        self.profile = bundle.json("profile.json")
        self.schema = RowSchema(self.contract, self.profile["levels"])
        self._session = session(bundle.files["model.onnx"])
        self._binary = self.contract.task == "binary"
        self._output = [self._session.get_outputs()[-1].name]

    def warm(self, bundle: Bundle) -> None:
        """The first calls take longer than later ones."""
        for row in bundle.json("golden.json")["rows"][:20]:
            self.score([self.schema.row(row)])

    def score(self, rows: Iterable[Any]) -> list[float]:
        """The probability of the positive class (binary) or the value (regression) of each row."""
        return self.score_arrays(self.schema.arrays(rows)).tolist()

    def score_arrays(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """`arrays`: as `RowSchema.arrays` makes them. Returns float32 of shape (rows,). Raises ScoreError."""
        rows = len(next(iter(arrays.values())))
        if rows <= CHUNK_ROWS:
            return self._chunk(arrays, rows)
        starts = range(0, rows, CHUNK_ROWS)
        parts = ({name: each[start : start + CHUNK_ROWS] for name, each in arrays.items()} for start in starts)
        return np.concatenate(
            [self._chunk(part, min(CHUNK_ROWS, rows - n)) for n, part in zip(starts, parts, strict=True)]
        )

    def _chunk(self, arrays: dict[str, np.ndarray], rows: int) -> np.ndarray:
        scores = np.asarray(self._session.run(self._output, arrays)[0])
        wanted = [(rows, 2)] if self._binary else [(rows,), (rows, 1)]
        if scores.shape not in wanted:
            raise ScoreError(f"the output for {rows} rows has the shape {scores.shape}")
        return scores[:, 1] if self._binary else scores.reshape(-1)

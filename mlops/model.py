from collections.abc import Iterable
from typing import Any

import numpy as np
import onnxruntime

from mlops.bundle import Bundle
from mlops.rows import RowSchema


class Model:
    """A verified bundle, loaded: validates rows and scores them in one thread."""

    def __init__(self, bundle: Bundle, digest: str):
        self.digest = digest
        self.contract = bundle.contract
        self.profile = bundle.json("profile.json")
        self.schema = RowSchema(self.contract, self.profile["levels"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        graph, providers = bundle.files["model.onnx"], ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(graph, options, providers=providers)
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
        """`arrays`: as `RowSchema.arrays` makes them. Returns float32 of shape (rows,)."""
        scores = np.asarray(self._session.run(self._output, arrays)[0])
        return scores[:, 1] if self._binary else scores.reshape(-1)

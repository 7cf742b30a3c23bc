from __future__ import annotations

import subprocess
import sys

from mlops.environment import ROOT

_TINY = """
import threading
import numpy as np
from mlops.processes import flush_denormals

def product():
    print(float(np.float32(1e-38) * np.float32(0.1)), end=" ")

product()
flush_denormals()
product()
thread = threading.Thread(target=product)
thread.start()
thread.join()
"""


def test_numbers_that_slow_a_processor_down_are_zero_in_a_thread_and_those_that_it_starts() -> None:
    said = subprocess.run([sys.executable, "-c", _TINY], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    first, *then = map(float, said.split())
    assert 0 < first < 1e-38
    assert then == [0, 0]

from __future__ import annotations

import pytest
from threadpoolctl import threadpool_limits

from tests import synthetic


@pytest.mark.parametrize("kind", ["boosting", "linear"])
def test_the_model_does_not_depend_on_how_many_cores_there_are(kind: str) -> None:
    digests = set()
    for threads in (1, 2, 4):
        with threadpool_limits(limits=threads):
            digests.add(synthetic.build(estimator=kind).digest)
    assert len(digests) == 1

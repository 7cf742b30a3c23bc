from __future__ import annotations

from pathlib import Path

import pytest

from mlops import promotion
from mlops.bundle import Bundle
from tests import synthetic
from tests.proofs import outage
from tests.service import Service, environment


@pytest.mark.parametrize("kind", ["hangs", "dies"])
def test_while_the_bucket_is_away_requests_go_on_and_what_waited_arrives_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_bundle: Bundle, second_bundle: Bundle, kind: outage.Kind
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "")  # so that they are as before afterwards
    found = outage.rehearse(tmp_path, kind, 7, 30, [first_bundle, second_bundle])
    assert outage.faults(found | {"swap_seconds": 0.0}) == []  # how long it took is for the proof


def test_a_replica_ends_within_its_grace_while_the_bucket_hangs_and_its_rows_wait_for_the_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_bundle: Bundle
) -> None:
    with outage.Bucket() as bucket:
        for name, value in bucket.variables.items():
            monkeypatch.setenv(name, value)
        made = environment(tmp_path, bucket.url)
        digest = synthetic.publish(made, first_bundle)
        with Service(made, synthetic.MODEL, segment_seconds=60) as service:
            service.serves(promotion.release(made.model(synthetic.MODEL), digest, "test").revision)
            outage.stops_in_time(service, bucket)
            assert [path.suffix for path in service.spool.glob("*.log")] == [".log"]
            service.start()
            service.until(lambda: len(outage.logged(made)[0]) == 5)

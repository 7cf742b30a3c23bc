from __future__ import annotations

from pathlib import Path

from tests.proofs.writers import contend, folder


def test_writers_of_one_release_log_lose_no_record_and_write_no_revision_twice(tmp_path: Path, s3_bucket: str) -> None:
    with folder(tmp_path) as url:
        for bucket in (url, s3_bucket):
            assert contend(bucket, 4, 10) == {"records": 40, "twice": 0, "lost": 0, "gaps": 0}

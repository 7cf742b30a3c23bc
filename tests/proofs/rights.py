"""Each identity reads, writes, deletes and lists in each part of the bucket exactly what the table in docs/cluster.md says: asked
of a real VersityGW as the setup makes it, and of AWS as infra/aws renders it (moto, with enforcement).
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from moto import mock_aws

from environments.local.platform import free_port
from infra import provision
from infra.identities import ACTIONS, IDENTITIES
from mlops.environment import ROOT
from tests.infra.rights import Call, Moto
from tests.proofs.writers import process

OF_MODELS = ("attestations", "bundles", "forgotten", "releases", "reports", "retrainings", "signed", "verdicts")
PREFIXES = [f"models/m/{each}" for each in OF_MODELS]
PREFIXES += [
    "access",
    "damaged/predictions/m",
    "data",
    "mlflow",
    "outcomes/m",
    "predictions/m",
    "replicas/m",
    "strange",
]
ROLES = {"setup": "setup-bucket"}  # of AWS, where they are named otherwise
LIST = "s3:ListBucket"
VERSITYGW = shutil.which("versitygw", path=os.pathsep.join([os.environ["PATH"], str(Path.home() / "go" / "bin")]))
Cell = tuple[str, str, str]  # identity, prefix, read | write | delete | list


def table() -> dict[Cell, bool]:
    """What docs/cluster.md says of each."""
    rows = (
        (ROOT / "docs" / "cluster.md").read_text().partition("\n## Bucket\n")[2].partition("\n\n")[0].splitlines()[2:]
    )
    said: dict[Cell, bool] = {}
    for row in rows:
        identity, *columns = (column.strip() for column in row.strip("|").split("|"))
        for right, words in zip(ACTIONS, columns, strict=True):
            for prefix in PREFIXES:
                said[identity, prefix, right] = _says(words, prefix)
        said |= {(identity, prefix, "list"): True for prefix in PREFIXES}
    return said


def _says(words: str, prefix: str) -> bool:
    """`words`: folders, then those of a model."""
    whole, _, parts = words.partition("of models: ")
    named, (folder, _, part) = whole.rstrip("; ").split(", "), prefix.partition("/m/")
    return (
        "everything" in named or prefix.partition("/")[0] in named or (folder == "models" and part in parts.split(", "))
    )


@contextmanager
def bundled(folder: Path) -> Generator[Callable[..., Any]]:
    """A VersityGW that the setup has been at. Yields what makes a client of an identity."""
    port, pairs = free_port(17170), {each: (f"{each}-id", secrets.token_hex(16)) for each in ("root", *IDENTITIES)}
    endpoint = f"http://127.0.0.1:{port}"
    for part in ("iam", "buckets"):
        (folder / part).mkdir()

    def client(identity: str) -> Any:
        session = boto3.Session(*pairs[identity], region_name="us-east-1")
        return session.client("s3", endpoint_url=endpoint, config=Config(retries={"total_max_attempts": 1}))

    told = {f"{each.upper()}_ACCESS_KEY_ID": pair[0] for each, pair in pairs.items()}
    told |= {f"{each.upper()}_SECRET_ACCESS_KEY": pair[1] for each, pair in pairs.items()}
    root = {"ROOT_ACCESS_KEY": pairs["root"][0], "ROOT_SECRET_KEY": pairs["root"][1]}
    command = (
        VERSITYGW or "versitygw",
        "--port",
        f"127.0.0.1:{port}",
        "--iam-dir",
        folder / "iam",
        "posix",
        folder / "buckets",
    )
    with pytest.MonkeyPatch.context() as patch, process(*command, ready=lambda: client("root").list_buckets(), **root):
        for name, value in told.items():
            patch.setenv(name, value)
        provision._bundled_bucket("mlops", endpoint)
        yield client


def of_versity(folder: Path) -> Iterator[tuple[Cell, bool]]:
    with bundled(folder) as client:
        root = client("root")
        for identity in IDENTITIES:
            s3 = client(identity)
            for prefix in PREFIXES:
                key = f"{prefix}/{identity}"
                root.put_object(Bucket="mlops", Key=key, Body=b"1")
                calls = {
                    "read": partial(s3.get_object, Key=key),
                    "write": partial(s3.put_object, Key=f"{key}-new", Body=b"1"),
                    "list": partial(s3.list_objects_v2, Prefix=prefix),
                    "delete": partial(s3.delete_object, Key=key),
                }
                yield from (((identity, prefix, right), _allowed(call)) for right, call in calls.items())


def _allowed(call: Callable[..., Any]) -> bool:
    try:
        call(Bucket="mlops")
    except ClientError as error:
        if error.response["Error"]["Code"] != "AccessDenied":
            raise
        return False
    return True


def of_aws() -> Iterator[tuple[Cell, bool]]:
    with mock_aws(), pytest.MonkeyPatch.context() as patch:
        moto = Moto(patch)
        for identity in IDENTITIES:
            for prefix in PREFIXES:
                for right, action in ACTIONS.items():
                    new = {"s3:if-none-match": "*"} if right == "write" else {}  # without it nobody writes a release
                    call = Call(ROLES.get(identity, identity), action, f"dev/{prefix}/{identity}", new)
                    yield (identity, prefix, right), moto.allows(call)
                about = {"s3:prefix": prefix}
                yield (identity, prefix, "list"), moto.allows(Call(ROLES.get(identity, identity), LIST, "dev", about))


def differing(found: Iterator[tuple[Cell, bool]]) -> tuple[int, list[str]]:
    """How many cells were asked, and those that are not as the table says."""
    said, asked = table(), dict(found)
    wrong = [
        f"{' '.join(cell)}: {'allowed' if asked[cell] else 'denied'}" for cell in said if asked[cell] != said[cell]
    ]
    return len(asked), wrong + [f"{' '.join(cell)}: not in the table" for cell in asked.keys() - said.keys()]


def prove(folder: Path) -> dict[str, Any]:
    found = {"VersityGW": differing(of_versity(folder)), "AWS": differing(of_aws())}
    figures = {name: {"asked": asked, "wrong": wrong} for name, (asked, wrong) in found.items()}
    wrong = [each for _, several in found.values() for each in several]
    return {
        "identities": len(IDENTITIES),
        "prefixes": len(PREFIXES),
        **figures,
        "holds": not wrong,
        "reason": "; ".join(wrong[:9]),
    }

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infra.identities import IDENTITIES
from infra.provision import Folder, files, keys, main, policy
from mlops.environment import ROOT
from mlops.errors import UserError
from mlops.keys import Keyring, Role


def test_secrets_made_again_are_the_same(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for _ in range(2):
        keys(folder, "local")
        files(folder)
        found = {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
        first = locals().get("first", found)
    assert found == first
    holders: tuple[tuple[Role, str, str | None], ...] = (("build", "training", None), ("approve", "approver", "local"))
    for role, holder, scope in holders:
        signer = Keyring(tmp_path / f"for-{holder}" / "keyring.json").signer(role, scope)
        signer.public_key.verify_signature(signer.sign(b"x"), b"x")


def test_nobody_may_delete_what_must_stay() -> None:
    found = policy("mlops", {identity: identity for identity in IDENTITIES})
    deletes = [s for s in found["Statement"] if s["Action"] == ["s3:DeleteObject"]]
    assert {path.rpartition(":::mlops/")[2] for s in deletes for path in s["Resource"]} == {
        "mlflow/*", "predictions/*", "outcomes/*", "damaged/*", "replicas/*",
    }  # fmt: skip
    assert all(s["Effect"] == "Allow" and "*" not in s["Principal"]["AWS"] for s in found["Statement"])


def test_the_policy_of_a_bucket_that_was_brought_along_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    principals = [f"{identity}=arn:aws:iam::000000000000:user/{identity}" for identity in IDENTITIES]
    main("policy", "theirs/ours", *principals)
    rights = json.loads(capsys.readouterr().out)["Statement"]
    listed = {each["Resource"][0] for each in rights if each["Action"] == ["s3:ListBucket"]}
    assert listed == {"arn:aws:s3:::theirs"}
    writers = [
        each["Principal"]["AWS"]
        for each in rights
        if "arn:aws:s3:::theirs/ours/models/*/releases/*" in each["Resource"]
    ]
    assert writers == [["arn:aws:iam::000000000000:user/approver"]]
    with pytest.raises(UserError, match="approver") as refused:
        main("policy", "theirs", *(each for each in principals if "approver" not in each))
    assert refused.value.key == "principal"


def test_the_image_holds_what_the_setup_imports() -> None:
    code = "import sys, infra.provision; print(*(name for name in sys.modules if name.split('.')[0] == 'infra'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    files = {f"!{name.replace('.', '/')}.py" for name in done.stdout.split() if name != "infra"}
    assert len(files) > 2
    assert files <= set((ROOT / ".dockerignore").read_text().splitlines())

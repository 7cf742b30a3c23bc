from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from infra.identities import IDENTITIES
from infra.provision import Folder, files, keys, policy
from mlops.environment import ROOT
from mlops.keys import Keyring


def test_secrets_made_again_are_the_same(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for _ in range(2):
        keys(folder, "local")
        files(folder)
        found = {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
        first = locals().get("first", found)
    assert found == first
    for role, scope in (("build", None), ("approve", "local")):
        signer = Keyring(tmp_path / f"keys-{role}" / "keyring.json").signer(role, scope)
        signer.public_key.verify_signature(signer.sign(b"x"), b"x")


def test_nobody_may_delete_what_must_stay() -> None:
    found = policy("mlops", {identity: identity for identity in IDENTITIES})
    deletes = [s for s in found["Statement"] if s["Action"] == ["s3:DeleteObject"]]
    assert {path.rpartition(":::mlops/")[2] for s in deletes for path in s["Resource"]} == {
        "mlflow/*", "predictions/*", "outcomes/*", "replicas/*",
    }  # fmt: skip
    assert all(s["Effect"] == "Allow" and "*" not in s["Principal"]["AWS"] for s in found["Statement"])


def test_the_image_holds_what_the_setup_imports() -> None:
    code = "import sys, infra.provision; print(*(name for name in sys.modules if name.split('.')[0] == 'infra'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    files = {f"!{name.replace('.', '/')}.py" for name in done.stdout.split() if name != "infra"}
    assert len(files) > 2
    assert files <= set((ROOT / ".dockerignore").read_text().splitlines())

from __future__ import annotations

from pathlib import Path

from infra.provision import Folder, files, keys, policy
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
    found = policy("mlops", {identity: identity for identity in ("serving", "training", "tracking", "controller")})
    deletes = [s for s in found["Statement"] if s["Action"] == ["s3:DeleteObject"]]
    assert {path.rpartition(":::mlops/")[2] for s in deletes for path in s["Resource"]} == {
        "mlflow/*", "predictions/*", "outcomes/*", "replicas/*",
    }  # fmt: skip
    assert all(s["Effect"] == "Allow" and "*" not in s["Principal"]["AWS"] for s in found["Statement"])

"""A model on its way from one environment to the next: the same bytes, and what was attested about them."""

import io
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from cli.terminal import state
from mlops import bundle as bundles
from mlops.attestations import require_gate
from mlops.errors import UserError, VerificationError
from mlops.registered_model import RegisteredModel
from mlops.store import Store

app = typer.Typer(no_args_is_help=True, help="Carry a model to another environment.")
_MAX_BYTES = 2 * bundles.MAX_BYTES


@app.command()
def export(digest: Annotated[str, typer.Argument(help="The bundle's digest, or its beginning.")]) -> None:
    """Write a bundle and its attestations to standard output, as a tar archive."""
    model = state.model
    found = bundles.find(model, digest)
    model.store.pack(sys.stdout.buffer, *_folders(model, found))


@app.command("import")
def take() -> None:
    """Read such an archive from standard input. A bundle that does not verify with the keys of this environment is refused."""
    state.announce("bundle import")
    found = receive(state.model, sys.stdin.buffer.read(_MAX_BYTES + 1))
    state.result({"digest": found}, f"{found[:12]} is here; next: mlops release {found[:12]} --mode shadow --why '…'")


def receive(model: RegisteredModel, data: bytes) -> str:
    if len(data) > _MAX_BYTES:
        raise UserError("archive", len(data), f"bytes are too many: at most {_MAX_BYTES}")
    with TemporaryDirectory() as folder:
        aside = RegisteredModel(model.name, model.environment, Store(str(Path(folder, "bucket"))), model.keyring)
        try:
            aside.store.unpack(io.BytesIO(data))
            [digest] = bundles.digests(aside)
        except Exception as error:
            hint = f"is not one bundle of {model.name} as `mlops bundle export` writes it"
            raise UserError("archive", f"{len(data)} bytes", f"{hint} ({type(error).__name__})") from None
        bundle = bundles.read(aside, digest)
        try:
            require_gate(aside, digest)
        except VerificationError as error:
            hint = f"{error.hint}; if that environment is to be trusted: mlops signing-key trust"
            raise VerificationError(error.reason, error.key, error.value, hint) from None
        bundles.write(model, bundle)
        for key in aside.store.keys(_folders(aside, digest)[1]):
            model.store.put_new(key, aside.store.get(key) or b"")
    return digest


def _folders(model: RegisteredModel, digest: str) -> tuple[str, str]:
    return bundles.folder(model, digest), f"{model.folder}/attestations/{digest}"

"""API keys of callers, and signing keys of trainings and approvals."""

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from cli.terminal import state
from mlops import access
from mlops.errors import UserError
from mlops.keys import Key, Role, Scheme
from mlops.moments import shown

api_keys = typer.Typer(no_args_is_help=True, help="API keys of callers.")
signing_keys = typer.Typer(no_args_is_help=True, help="Keys that sign trainings and approvals.")


@api_keys.command("new")
def new_api_key(
    name: Annotated[str, typer.Argument(help="Who uses it.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="predict, outcomes (both if not given), status, analysis.")
    ] = None,
    expires_days: Annotated[float | None, typer.Option(help="Lifetime in days.")] = None,
    per_second: Annotated[float, typer.Option(help="Rate limit of its requests.", min=0.001)] = 1000,
) -> None:
    """Create a key. It is shown once; only its hash is kept."""
    state.announce("api-key new")
    expires = datetime.now(UTC) + timedelta(days=expires_days) if expires_days is not None else None
    key, secret = access.new(state.environment.store, name, scope or ["predict", "outcomes"], per_second, expires)
    value = {**key.model_dump(mode="json", exclude={"sha256"}), "key": secret}
    state.result(value, f"{secret}\nstore it now: it is not shown again")


@api_keys.command("list")
def list_api_keys() -> None:
    """All API keys, without secrets."""
    keys = access.read(state.environment.store)
    table = Table("id", "name", "scopes", "state", "created", "expires")
    for key in keys:
        expires = shown(key.expires) if key.expires else ""
        status, created = "revoked" if key.revoked else "active", shown(key.created)
        table.add_row(key.id, escape(key.name), ", ".join(key.scopes), status, created, expires)
    state.result({"keys": [key.model_dump(mode="json", exclude={"sha256"}) for key in keys]}, table)


@api_keys.command("revoke")
def revoke_api_key(key_id: Annotated[str, typer.Argument(help="As `api-key list` shows it.")]) -> None:
    """Revoke a key: within seconds, without a restart."""
    state.announce("api-key revoke")
    access.revoke(state.environment.store, key_id)
    state.result({"id": key_id, "state": "revoked"}, f"{key_id} is revoked")


@signing_keys.command("new")
def new_signing_key(
    role: Annotated[Role, typer.Argument(help="build: signs trainings; approve: releases.")],
    scheme: Annotated[Scheme, typer.Option()] = "ed25519",
    kms: Annotated[str | None, typer.Option(help="ARN of the key in AWS KMS that is its private half.")] = None,
) -> None:
    """Create a key pair; an approval key counts in this environment only."""
    state.announce("signing-key new")
    environment = state.environment
    scope, keys = environment.name if role == "approve" else None, environment.keys
    key = keys.add_kms(role, scope, kms) if kms else keys.new(role, scope, scheme)
    where = kms or environment.keyring.parent
    state.result(key.model_dump(mode="json"), f"{key.id}: its private half is in {where}")


@signing_keys.command("list")
def list_signing_keys() -> None:
    """All public keys of the keyring."""
    keys = state.environment.keys.all()
    table = Table("id", "role", "environment", "scheme", "state", "created")
    for key in keys:
        table.add_row(key.id, key.role, key.environment, key.scheme, key.state, shown(key.created))
    state.result({"keys": [key.model_dump(mode="json") for key in keys]}, table)


@signing_keys.command("revoke")
def revoke_signing_key(
    key_id: Annotated[str, typer.Argument(help="As `signing-key list` shows it.")],
    verify_only: Annotated[bool, typer.Option("--verify-only", help="Existing signatures stay valid.")] = False,
) -> None:
    """Revoke a key: its signatures are no longer trusted."""
    state.announce("signing-key revoke")
    key = state.environment.keys.set_state(key_id, "verify-only" if verify_only else "revoked")
    state.result({"id": key_id, "state": key.state}, f"{key_id} is {key.state}")


@signing_keys.command("trust")
def trust_signing_keys(
    keys: Annotated[
        Path, typer.Argument(help="What `mlops --env OTHER --json signing-key list` printed; - reads stdin.")
    ],
) -> None:
    """Trust what the trainings of another environment signed, so that their models can be imported here."""
    state.announce("signing-key trust")
    try:
        text = sys.stdin.read() if str(keys) == "-" else keys.read_text("utf-8")
        found = [Key.model_validate(each) for each in json.loads(text)["keys"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = f"is not a list of keys ({type(error).__name__}); make it: mlops --env OTHER --json signing-key list"
        raise UserError("keys", str(keys), hint) from None
    trusted = [state.environment.keys.trust(key).id for key in found if key.role == "build" and key.state != "revoked"]
    state.result({"keys": trusted}, f"{', '.join(trusted) or 'none'}: trusted here, to verify with")

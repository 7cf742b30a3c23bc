"""Who may do what: the rights of each identity in the bucket, the secrets of each workload."""

from collections.abc import Iterator

# Keys of the bucket by identity. None may delete a bundle, an attestation or a release. Who trains writes no release, nor
# does who reads what callers sent; who approves reads nothing of that. All may list names, which is all a rollback asks for.
IDENTITIES = {
    "serving": {"read": ["models/*", "access/*"], "write": ["predictions/*", "outcomes/*", "replicas/*"]},
    "training": {
        "read": ["models/*", "data/*", "predictions/*", "outcomes/*"],
        "write": [f"models/*/{each}/*" for each in ("bundles", "attestations", "reports", "retrainings")],
    },
    "tracking": {"read": ["mlflow/*"], "write": ["mlflow/*"], "delete": ["mlflow/*"]},
    "controller": {
        "read": ["*"],
        "write": [
            *(f"models/*/{each}/*" for each in ("verdicts", "retrainings", "forgotten")),
            *("data/*", "predictions/*", "outcomes/*", "damaged/*"),
        ],
        "delete": ["predictions/*", "outcomes/*", "damaged/*", "replicas/*"],
    },
    "approver": {
        "read": ["models/*", "replicas/*", "access/*"],
        # A model from another environment is imported here: a bundle, with the attestations of its training.
        "write": [
            *(f"models/*/{each}/*" for each in ("bundles", "attestations", "releases", "signed", "verdicts")),
            "access/*",
        ],
    },
    "setup": {"read": ["access/*"], "write": ["access/*"]},
}
ACTIONS = {"read": "s3:GetObject", "write": "s3:PutObject", "delete": "s3:DeleteObject"}
TRACKING_USERS = ("training", "controller")
Secrets = dict[str, tuple[str, str]]  # variable → (Secret, key)


def grants(identity: str) -> Iterator[tuple[str, list[str]]]:
    """Actions and the keys on which they are allowed; an empty key is the bucket itself."""
    yield "s3:ListBucket", [""]
    for right, action in ACTIONS.items():
        if keys := IDENTITIES[identity].get(right):
            yield action, [f"/{key}" for key in keys]


def _bucket(identity: str, prefix: str = "AWS") -> Secrets:
    halves = ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")
    return {f"{prefix}_{half}": (f"bucket-{identity}", f"AWS_{half}") for half in halves}


def _login(user: str) -> Secrets:
    return {
        f"MLFLOW_TRACKING_{half}": (f"tracking-{user}", f"MLFLOW_TRACKING_{half}") for half in ("USERNAME", "PASSWORD")
    }


_DATABASE: Secrets = {"PGUSER": ("database-user", "user"), "PGPASSWORD": ("database-user", "password")}
_SERVER: Secrets = {
    "MLFLOW_AUTH_ADMIN_PASSWORD": ("tracking-admin", "password"),
    "MLFLOW_FLASK_SERVER_SECRET_KEY": ("tracking-admin", "secret-key"),
}
_LOG_KEY: Secrets = {"MLOPS_LOG_KEY": ("log-key", "key")}
_USERS = {f"{user.upper()}_PASSWORD": _login(user)["MLFLOW_TRACKING_PASSWORD"] for user in TRACKING_USERS}
_IDENTITIES = {name: key for each in ("root", *IDENTITIES) for name, key in _bucket(each, each.upper()).items()}
# The credentials in the environment of each workload.
SECRETS: dict[str, Secrets] = {
    "bucket": {f"ROOT_{name}": ("bucket-root", key) for name, key in
               (("ACCESS_KEY", "AWS_ACCESS_KEY_ID"), ("SECRET_KEY", "AWS_SECRET_ACCESS_KEY"))},
    "setup-keys": {},
    "setup-database": _DATABASE | {"DATABASE_ADMIN_PASSWORD": ("database", "password")}
    | {"ADMIN_PASSWORD": ("tracking-admin", "password")} | _USERS,
    "setup-bucket": {"CLIENT_KEY": ("client-key", "client.key")} | _IDENTITIES | _bucket("setup"),
    "tracking": _DATABASE | _SERVER | _bucket("tracking"),
    "serving": _bucket("serving") | _LOG_KEY,
    "training": _bucket("training") | _login("training") | _LOG_KEY,
    "controller": _bucket("controller") | _login("controller") | _LOG_KEY,
    "approver": _bucket("approver"),
}  # fmt: skip

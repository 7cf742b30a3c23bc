"""Set-ups that would make a deployment fail: each is named with a hint, and nothing is created."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import boto3
import botocore.client
import pytest
import yaml
from moto import mock_aws

from cli import cluster as clusters
from cli import doctor
from infra import images, render
from mlops.environment import ROOT

ACCOUNT, DIGEST = "123456789012", "sha256:" + 64 * "a"
_TOOLS = {
    "pulumi": f'if [ "$1" = plugin ]; then echo "[]"; else echo v{version("pulumi")}; fi',
    "aws": "echo aws-cli/2.31.0",
    "kubectl": 'case "$*" in *"get storageclass"*) cat "$0.classes" ;; *"get secret"*|*"get crd"*|*"get ingress"*) cat "$0.named" ;; esac',
}


class Setup:
    """A machine, the settings of dev and an AWS account, all of which are right."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.bin, self.monkeypatch = folder, folder / "bin", monkeypatch
        self.answers: dict[str, Any] = {
            "DescribeClusterVersions": {"clusterVersions": [{"clusterVersion": "1.34"}, {"clusterVersion": "1.35"}]},
            "DescribeOrderableDBInstanceOptions": {"OrderableDBInstanceOptions": [{}]},
            "GetServiceQuota": {"Quota": {"Value": 64.0}},
        }
        shutil.copytree(
            ROOT / "environments", folder / "environments", ignore=shutil.ignore_patterns("local", "__pycache__")
        )
        for name in ("infra", "Pulumi.yaml", "Dockerfile", ".dockerignore"):
            (folder / name).symlink_to(ROOT / name)
        for module in (clusters, doctor, render, images):
            monkeypatch.setattr(module, "ROOT", folder)
        self.bin.mkdir()
        for name, script in _TOOLS.items():
            self.tool(name, script)
        (self.bin / "kubectl.classes").write_text(json.dumps({"items": []}))
        (self.bin / "kubectl.named").write_text("secret/x")
        monkeypatch.setenv("PATH", f"{self.bin}:/usr/bin:/bin")
        self.change("aws/Pulumi.dev.yaml", lambda text: text.replace("0" * 12, ACCOUNT))
        self.release("mlops-")
        self.change("aws/Pulumi.dev.yaml", lambda text: text.replace("192.0.2.0/24", "198.51.100.7/32"))
        self.put("dev", "model", "churn")

    def release(self, prefix: str) -> None:
        registry = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/{prefix}"
        artifacts = {name: f"{registry}{name}@{DIGEST}" for name in images.TARGETS}
        file = self.folder / "environments" / "released" / "dev.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"commit": "unknown", "artifacts": artifacts}))

    def tool(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def change(self, name: str, change: Callable[[str], str]) -> None:
        file = self.folder / "environments" / name
        file.write_text(change(file.read_text()))

    def put(self, stack: str, path: str, value: Any) -> None:
        folder, _, name = stack.rpartition("/")
        file = self.folder / "environments" / folder / f"Pulumi.{name}.yaml"
        values, (group, _, key) = yaml.safe_load(file.read_text()), path.partition(".")
        prefix = "mlops-aws" if folder else "mlops"
        if key:
            values["config"].setdefault(f"{prefix}:{group}", {})[key] = value
        else:
            values["config"][f"{prefix}:{group}"] = value
        file.write_text(yaml.safe_dump(values))

    def environment(self, name: str) -> clusters.Cluster:
        found = clusters.Cluster.of(name)
        assert found
        return found


_RENDERED: dict[str, Any] = {}
_SESSIONS: dict[str, Any] = {}


def render_once(environment: str, project: render.Project) -> Any:
    """The real program, once for each configuration: most of these set-ups share theirs."""
    key = json.dumps(project.configuration(environment))
    if key not in _RENDERED:
        _RENDERED[key] = render.render(environment, project=project)
    return _RENDERED[key]


def one_session(region_name: str = "us-east-1", new: Any = boto3.Session) -> Any:
    """It keeps the models of AWS' services, which take a while to read."""
    return _SESSIONS.setdefault(region_name, new(region_name=region_name))


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setup]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION", raising=False)
    made, call = Setup(tmp_path, monkeypatch), botocore.client.BaseClient._make_api_call

    def answer(client: Any, operation: str, asked: Any) -> Any:
        assert operation.startswith(("Describe", "Get", "List", "Head", "BatchGet")) or not watching
        found = made.answers.get(operation)
        if isinstance(found, Exception):
            raise found
        return call(client, operation, asked) if found is None else found

    watching: list[bool] = []
    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", answer)
    monkeypatch.setattr(doctor, "render", render_once)
    monkeypatch.setattr(boto3, "Session", one_session)
    with mock_aws():
        kms = one_session("us-east-1").client("kms")
        key = kms.create_key(KeyUsage="SIGN_VERIFY", KeySpec="ECC_NIST_P256")["KeyMetadata"]["KeyId"]
        kms.create_alias(AliasName="alias/mlops-dev-approval", TargetKeyId=key)
        ecr = one_session("us-east-1").client("ecr")
        for name in ("app", "training", "mlflow"):
            ecr.create_repository(repositoryName=f"mlops-{name}")
        made.answers["BatchGetImage"] = image("amd64")
        trusted = "{}"
        one_session("us-east-1").client("iam").create_role(RoleName="yours", AssumeRolePolicyDocument=trusted)
        watching.append(True)
        yield made


def image(*architectures: str) -> dict[str, Any]:
    listed = [{"platform": {"architecture": each}} for each in architectures]
    return {"images": [{"imageManifest": json.dumps({"manifests": listed})}]}


def found(setup: Setup, environment: str = "dev") -> list[str]:
    return [str(problem) for problem in doctor.problems(setup.environment(environment))]


def test_a_set_up_that_is_right_has_no_problem(setup: Setup) -> None:
    assert found(setup) == []
    assert found(setup, "kind") == ["storageClass is '': the cluster has no default; name one of none"]


def disabled_key(setup: Setup) -> None:
    setup.answers["DescribeKey"] = {
        "KeyMetadata": {"KeyState": "Disabled", "KeyUsage": "SIGN_VERIFY", "KeySpec": "ECC_NIST_P256"}
    }


def another_kind_of_key(setup: Setup) -> None:
    key = {"KeyState": "Enabled", "KeyUsage": "ENCRYPT_DECRYPT", "KeySpec": "SYMMETRIC_DEFAULT"}
    setup.put("aws/dev", "keys.approval", f"arn:aws:kms:us-east-1:{ACCOUNT}:key/1")
    setup.answers["DescribeKey"] = {"KeyMetadata": key}


def existing(setup: Setup, **zones: str) -> None:
    for key, value in {"kind": "existing", "vpc": "vpc-0a", "subnets": "subnet-0a,subnet-0b"}.items():
        setup.put("aws/dev", f"network.{key}", value)
    subnets = [{"SubnetId": f"subnet-{name}", "AvailabilityZone": zone} for name, zone in zones.items()]
    setup.answers["DescribeSubnets"] = {"Subnets": subnets}


def quota(setup: Setup, few: float) -> None:
    setup.answers["GetServiceQuota"] = {"Quota": {"Value": few}}


def unreleased(setup: Setup) -> None:
    (setup.folder / "environments" / "released" / "dev.json").unlink()


def late(setup: Setup) -> None:
    said = format_datetime(datetime.now(UTC) - timedelta(minutes=7), usegmt=True)
    answer = {"Account": ACCOUNT, "ResponseMetadata": {"HTTPHeaders": {"date": said}}}
    setup.answers["GetCallerIdentity"] = answer


def expired(setup: Setup) -> None:
    from botocore.exceptions import ClientError

    error = {"Error": {"Code": "ExpiredToken", "Message": "The security token included in the request is expired"}}
    setup.answers["GetCallerIdentity"] = ClientError(error, "GetCallerIdentity")


def no_credentials(setup: Setup) -> None:
    from botocore.exceptions import NoCredentialsError

    setup.answers["GetCallerIdentity"] = NoCredentialsError()


def made(setup: Setup, **files: str) -> None:
    """The cluster is there."""
    setup.answers["ListClusters"] = {"clusters": ["mlops-dev"]}
    for name, content in files.items():
        (setup.bin / f"kubectl.{name}").write_text(content)


def no_dns(setup: Setup) -> None:
    def unknown(*_: Any) -> Any:
        raise socket.gaierror

    made(setup, named="ingress/proxy")
    setup.put("dev", "ingress.enabled", True)
    setup.put("dev", "ingress.host", "ml.example.com")
    setup.put("dev", "ingress.certificate", "arn:aws:acm:us-east-1:123456789012:certificate/1")
    setup.monkeypatch.setattr(socket, "getaddrinfo", unknown)


def unreachable(setup: Setup) -> None:
    made(setup)
    setup.tool("kubectl", "echo 'dial tcp: i/o timeout' >&2; exit 1")


def without(*names: str) -> Callable[[Setup], None]:
    def remove(setup: Setup) -> None:
        for name in names:
            (setup.bin / name).unlink()
            setup.monkeypatch.setenv("PATH", str(setup.bin))

    return remove


BROKEN: dict[str, tuple[Callable[[Setup], Any], str, str]] = {
    "no Pulumi": (without("pulumi"), "pulumi is 'missing'", "install it"),
    "an old Pulumi": (lambda s: s.tool("pulumi", "echo v3.100.0"), "pulumi is '3.100'", "is older than the SDK"),
    "no kubectl": (without("kubectl"), "kubectl is 'missing'", "install it"),
    "no AWS CLI": (without("aws"), "aws is 'missing'", "version 2"),
    "an old AWS CLI": (lambda s: s.tool("aws", "echo aws-cli/1.45.0"), "aws is '1.45'", "install version 2"),
    "no plugin, and none may be fetched": (
        lambda s: s.monkeypatch.setenv("PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION", "true"), "plugin is 'aws", "pulumi plugin install resource aws"),
    "the example's account": (lambda s: s.put("aws/dev", "account", "0" * 12), "account is '000000000000'", "the 12 digits"),
    "the example's addresses": (lambda s: s.put("aws/dev", "cluster.publicCidrs", "192.0.2.0/24"), "publicCidrs is '192.0.2.0/24'", "the addresses that you come from"),
    "no images": (unreleased, "images.app is ''", "images --push"),
    "a setting out of range": (lambda s: s.put("dev", "serving.minReplicas", 0), "settings is", "serving.minReplicas is 0"),
    "a setting of AWS out of range": (lambda s: s.put("aws/dev", "network.zones", 5), "settings is", "network.zones is 5"),
    "no settings for AWS": (lambda s: (s.folder / "environments/aws/Pulumi.dev.yaml").unlink(), "settings is 'environments/aws/Pulumi.dev.yaml'", "is missing"),
    "no credentials": (no_credentials, "credentials is", "aws sso login"),
    "expired credentials": (expired, "credentials is", "expired"),
    "another account": (lambda s: s.put("aws/dev", "account", "210987654321"), "account is '210987654321'", f"these credentials, {ACCOUNT}"),
    "a clock that is late": (late, "clock is '4", "time synchronization"),
    "nothing of the account": (lambda s: s.put("aws/dev", "region", "eu-west-1"), "approval key is 'alias/mlops-dev-approval'", "make account"),
    "a key that is off": (disabled_key, "approval key is", "enable it"),
    "a key of another kind": (another_kind_of_key, "keys.approval is 'SYMMETRIC_DEFAULT'", "ECC_NIST_P256"),
    "a role that is not there": (lambda s: s.put("aws/dev", "cluster.admins", f"arn:aws:iam::{ACCOUNT}:role/nobody"), "cluster.admins is", "does not exist"),
    "a role without its path": (
        lambda s: s.answers.update(GetRole={"Role": {"Arn": f"arn:aws:iam::{ACCOUNT}:role/aws-reserved/sso.amazonaws.com/yours"}}), "cluster.admins is", "role/aws-reserved/sso.amazonaws.com/yours, with its path"),
    "zones without EKS": (
        lambda s: s.answers.update(DescribeAvailabilityZones={"AvailabilityZones": [{"ZoneId": "use1-az1"}, {"ZoneId": "use1-az3"}]}), "network.zones is 2", "us-east-1 has 1 for EKS"),
    "fewer zones": (lambda s: s.answers.update(DescribeAvailabilityZones={"AvailabilityZones": [{}]}), "network.zones is 2", "us-east-1 has 1"),
    "a Kubernetes of yesterday": (lambda s: s.put("aws/dev", "cluster.version", "1.29"), "cluster.version is '1.29'", "use one of 1.34, 1.35"),
    "an instance that is not sold there": (lambda s: s.answers.update(DescribeOrderableDBInstanceOptions={"OrderableDBInstanceOptions": []}), "database.instanceClass is 'db.t4g.micro'", "choose another"),
    "subnets of another VPC": (lambda s: existing(s, **{"0a": "a"}), "network.subnets is 'subnet-0b'", "vpc-0a"),
    "subnets in one zone": (lambda s: existing(s, **{"0a": "a", "0b": "a"}), "network.subnets is", "in one zone"),
    "no such cluster": (lambda s: (s.put("aws/dev", "cluster.kind", "existing"), s.put("aws/dev", "cluster.name", "other")), "cluster.name is 'other'", "no cluster in us-east-1"),
    "no such bucket": (lambda s: (s.put("aws/dev", "bucket.kind", "existing"), s.put("aws/dev", "bucket.name", "not-there")), "bucket.name is 'not-there'", "404"),
    "no quota for nodes": (lambda s: quota(s, 2.0), "quota of vCPUs on demand is '2'", "ask for more: ec2 L-1216C47A"),
    "no quota for addresses": (lambda s: quota(s, 0.0), "quota of Elastic IPs is '0'", "ask for more"),
    "no repository": (lambda s: s.release("other-") or s.answers.pop("BatchGetImage"), "images.app is", "ECR has no repository other-app"),
    "an image that was not pushed": (lambda s: s.answers.update(BatchGetImage={"images": []}), "images.app is", "ECR does not have it"),
    "an image for other nodes": (lambda s: s.answers.update(BatchGetImage=image("arm64")), "images.app is", "is for arm64"),
    "a cluster that does not answer": (unreachable, "cluster.context is 'mlops-dev'", "i/o timeout"),
    "a Secret that is not there": (lambda s: (made(s, named=""), s.put("dev", "training.secret", "warehouse")), "training.secret is 'warehouse'", "create secret generic warehouse"),
    "a bucket's Secret of one identity that is not there": (lambda s: (made(s, named=""), s.put("dev", "bucket.kind", "external"), s.put("dev", "bucket.secret", "s3")), "bucket.secret is 's3-approver'", "create secret generic s3-approver"),
    "no KEDA": (lambda s: (made(s, named=""), s.put("dev", "serving.scaleOn", "keda")), "serving.scaleOn is 'keda'", "no scaledobjects.keda.sh"),
    "a host without a name": (no_dns, "ingress.host is 'ml.example.com'", "no DNS record"),
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_broken_is_named_with_a_hint(broken: str, setup: Setup) -> None:
    change, names, hint = BROKEN[broken]
    change(setup)
    problems = found(setup)
    assert [problem for problem in problems if names in problem and hint in problem], problems

"""What would make a deployment fail, found before anything is created. Each problem has the setting or tool, its value,
and a hint."""

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any

import httpx
import pulumi

from cli.cluster import Cluster
from infra.aws.settings import WITHOUT_EKS
from infra.identities import IDENTITIES, TRACKING_USERS
from infra.images import TARGETS
from infra.render import AWS, PLATFORM, render
from mlops.environment import ROOT
from mlops.errors import UserError

Problems = Iterator[UserError]
_EXAMPLES = {"000000000000": "the 12 digits of your AWS account", "192.0.2.0/24": "the addresses that you come from"}
# Settings that name several Secrets, by how each of these ends.
_EACH = {"bucket.secret": tuple(IDENTITIES), "tracking.secret": TRACKING_USERS}
_SKEW_SECONDS = 240  # AWS refuses requests that are five minutes off
# Service, code, what it counts, how many the environment needs at first.
_QUOTAS = (
    ("ec2", "L-1216C47A", "vCPUs on demand", 4),
    ("ec2", "L-34B43A08", "vCPUs on spot", 4),
    ("ec2", "L-0263D0A3", "Elastic IPs", 1),
    ("vpc", "L-F678F1CE", "VPCs", 1),
)


def problems(cluster: Cluster) -> list[UserError]:
    """Of an environment's tools, settings, AWS account and cluster. Later checks wait for those they build on."""
    on_aws = cluster.settings["cluster.kind"] == "eks"
    found = [*_tools(on_aws), *_settings(cluster.name, on_aws), *_released(cluster)]
    if on_aws and not found:
        found += _account(cluster)
    if not found:
        found += _cluster(cluster)
    return found


def _tools(on_aws: bool) -> Problems:
    wanted = version("pulumi")
    if (cli := _version("pulumi", "version")) is None:
        yield UserError("pulumi", "missing", "install it: https://www.pulumi.com/docs/install")
    elif cli < _numbers(wanted)[:2]:
        yield UserError("pulumi", ".".join(map(str, cli)), f"is older than the SDK: install {wanted} or newer")
    if shutil.which("kubectl") is None:
        yield UserError("kubectl", "missing", "install it: https://kubernetes.io/docs/tasks/tools")
    if on_aws and (aws := _version("aws", "--version")) is None:
        yield UserError("aws", "missing", "install the AWS CLI, version 2: it logs in to the cluster")
    elif on_aws and aws and aws < (2, 0):
        yield UserError("aws", ".".join(map(str, aws)), "is version 1: install version 2")
    if os.environ.get("PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION") and cli:
        listed = subprocess.run(["pulumi", "plugin", "ls", "--json"], capture_output=True, text=True).stdout
        have = {(each["name"], each.get("version", "").removeprefix("v")) for each in json.loads(listed or "[]")}
        for name in ("kubernetes", *(["aws"] if on_aws else [])):
            if (name, number := version(f"pulumi-{name}")) not in have:
                hint = f"is missing: pulumi plugin install resource {name} v{number}"
                yield UserError("plugin", f"{name} {number}", hint)


def _version(*command: str) -> tuple[int, ...] | None:
    if shutil.which(command[0]) is None:
        return None
    return _numbers(subprocess.run(command, capture_output=True, text=True).stdout)[:2]


def _numbers(text: str) -> tuple[int, ...]:
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else ()


def _settings(environment: str, on_aws: bool) -> Problems:
    for project in (AWS, PLATFORM) if on_aws else (PLATFORM,):
        file = project.file(environment)
        if not file.exists():
            yield UserError(
                "settings", str(file.relative_to(ROOT)), "is missing: copy another environment's and change it"
            )
            continue
        for line in file.read_text("utf-8").splitlines():
            key, _, value = line.strip().removeprefix(f"{project.name}:").partition(": ")
            for example, wanted in _EXAMPLES.items():
                if example in value:
                    yield UserError(key, example, f"is still the example: write {wanted} into {file.relative_to(ROOT)}")
        try:
            render(environment, project=project)
        except pulumi.RunError as error:
            for line in str(error).splitlines()[1:] or [str(error)]:
                yield UserError("settings", str(file.relative_to(ROOT)), line.strip())


def _released(cluster: Cluster) -> Problems:
    for name in TARGETS:
        if not cluster.image(name):
            hint = f"nothing was released to {cluster.name} yet: mlops --env {cluster.name} images --push REGISTRY"
            yield UserError(f"images.{name}", "", hint)


def _account(cluster: Cluster) -> Problems:
    """Of AWS, read only."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    settings = AWS.settings(cluster.name)
    session = boto3.Session(region_name=settings["region"])
    try:
        who = session.client("sts").get_caller_identity()
    except (BotoCoreError, ClientError) as error:
        yield UserError("credentials", type(error).__name__, f"of AWS are missing or expired ({error}); aws sso login")
        return
    if who["Account"] != settings["account"]:
        hint = f"is not the account of these credentials, {who['Account']}; choose another AWS_PROFILE"
        yield UserError("account", settings["account"], hint)
        return
    said = who["ResponseMetadata"]["HTTPHeaders"].get("date")
    skew = abs((datetime.now(UTC) - parsedate_to_datetime(said)).total_seconds()) if said else 0
    if skew > _SKEW_SECONDS:
        yield UserError("clock", f"{skew:.0f} s", "is off: AWS refuses signatures; turn on time synchronization")
    for check in (_shared, _admins, _zones, _version_of_cluster, _database, _existing, _quotas, _images):
        try:
            yield from check(cluster, settings, session.client)
        except (BotoCoreError, ClientError) as error:
            name = check.__name__.strip("_")
            yield UserError(name, settings["region"], f"cannot be checked: {error}")


def _shared(cluster: Cluster, settings: dict[str, Any], client: Callable[[str], Any]) -> Problems:
    """What infra/account makes."""
    alias = f"alias/mlops-{cluster.name}-approval"
    kms = client("kms")
    try:
        key = kms.describe_key(KeyId=settings["keys"]["approval"] or alias)["KeyMetadata"]
    except kms.exceptions.NotFoundException:
        yield UserError("approval key", alias, "is missing: make account (once per AWS account)")
        return
    if key["KeyState"] != "Enabled":
        yield UserError("approval key", alias, f"is {key['KeyState']}: enable it, or name another in keys.approval")
    if (key["KeyUsage"], key["KeySpec"]) != ("SIGN_VERIFY", "ECC_NIST_P256"):
        yield UserError("keys.approval", key["KeySpec"], "must be ECC_NIST_P256 for SIGN_VERIFY")


def _admins(_: Cluster, settings: dict[str, Any], client: Callable[[str], Any]) -> Problems:
    """A path that is left out, as roles of SSO have one, makes another principal, which EKS refuses after it has made the
    cluster."""
    iam = client("iam")
    for arn in filter(None, settings["cluster"]["admins"].split(",")):
        kind, name = arn.rpartition(":")[2].partition("/")[0], arn.rpartition("/")[2]
        try:
            found = iam.get_role(RoleName=name)["Role"] if kind == "role" else iam.get_user(UserName=name)["User"]
        except iam.exceptions.NoSuchEntityException:
            yield UserError("cluster.admins", arn, f"does not exist; see: aws iam get-{kind} --{kind}-name NAME")
            continue
        if found["Arn"] != arn:
            yield UserError("cluster.admins", arn, f"is {found['Arn']}, with its path")


def _zones(_: Cluster, settings: dict[str, Any], client: Callable[[str], Any]) -> Problems:
    asked = [{"Name": "opt-in-status", "Values": ["opt-in-not-required"]}, {"Name": "state", "Values": ["available"]}]
    found = client("ec2").describe_availability_zones(Filters=asked)["AvailabilityZones"]
    there = len([zone for zone in found if zone.get("ZoneId") not in WITHOUT_EKS])
    if settings["network"]["kind"] == "create" and there < (wanted := settings["network"]["zones"]):
        yield UserError(
            "network.zones", wanted, f"{settings['region']} has {there} for EKS; use as many, or another region"
        )


def _version_of_cluster(cluster: Cluster, settings: dict[str, Any], client: Callable[[str], Any]) -> Problems:
    """Of a new one: AWS upgrades those that are there."""
    eks, wanted = client("eks"), settings["cluster"]["version"]
    if cluster.eks["name"] in eks.list_clusters()["clusters"]:
        return
    found = eks.describe_cluster_versions(versionStatus="STANDARD_SUPPORT")["clusterVersions"]
    versions = [each["clusterVersion"] for each in found]
    if versions and settings["cluster"]["kind"] == "create" and wanted not in versions:
        yield UserError("cluster.version", wanted, f"is not in standard support; use one of {', '.join(versions)}")


def _database(_: Cluster, settings: dict[str, Any], client: Callable[[str], Any]) -> Problems:
    wanted = settings["database"]["instanceClass"]
    asked = {"Engine": "postgres", "DBInstanceClass": wanted}
    found = client("rds").describe_orderable_db_instance_options(**asked)["OrderableDBInstanceOptions"]
    if settings["database"]["kind"] == "create" and not found:
        yield UserError("database.instanceClass", wanted, f"cannot be ordered in {settings['region']}; choose another")


def _existing(_: Cluster, settings: dict[str, Any], client: Callable[[str], Any]) -> Problems:
    network, bucket = settings["network"], settings["bucket"]
    if network["kind"] == "existing":
        wanted = network["subnets"].split(",")
        asked = [{"Name": "vpc-id", "Values": [network["vpc"]]}]
        there = {
            each["SubnetId"]: each["AvailabilityZone"]
            for each in client("ec2").describe_subnets(Filters=asked)["Subnets"]
        }
        if missing := [subnet for subnet in wanted if subnet not in there]:
            yield UserError("network.subnets", ",".join(missing), f"are not in network.vpc, {network['vpc']}")
        elif len({there[subnet] for subnet in wanted}) < 2:
            yield UserError("network.subnets", network["subnets"], "are in one zone; EKS needs two")
    if settings["cluster"]["kind"] == "existing":
        name = settings["cluster"]["name"]
        if name not in client("eks").list_clusters()["clusters"]:
            yield UserError("cluster.name", name, f"is no cluster in {settings['region']}")
    if bucket["kind"] == "existing":
        s3 = client("s3")
        try:
            s3.head_bucket(Bucket=bucket["name"])
        except s3.exceptions.ClientError as error:
            yield UserError("bucket.name", bucket["name"], f"cannot be used: {error.response['Error']['Code']}")


def _quotas(cluster: Cluster, settings: dict[str, Any], client: Callable[[str], Any]) -> Problems:
    """Before the first `up`: afterwards what is used is partly its own."""
    ec2, quotas = client("ec2"), client("service-quotas")
    asked = [{"Name": "tag:environment", "Values": [cluster.name]}, {"Name": "tag:project", "Values": ["mlops"]}]
    if settings["network"]["kind"] == "existing" or ec2.describe_vpcs(Filters=asked)["Vpcs"]:
        return
    used = {"Elastic IPs": len(ec2.describe_addresses()["Addresses"]), "VPCs": len(ec2.describe_vpcs()["Vpcs"])}
    wanted = {"Elastic IPs": settings["network"]["natGateways"]}
    for service, code, what, needed in _QUOTAS:
        allowed = quotas.get_service_quota(ServiceCode=service, QuotaCode=code)["Quota"]["Value"]
        if used.get(what, 0) + (needed := wanted.get(what, needed)) > allowed:
            taken = f", {used[what]} are in use" if what in used else ""
            yield UserError(
                f"quota of {what}", f"{allowed:.0f}", f"{needed} are needed{taken}; ask for more: {service} {code}"
            )


def _images(cluster: Cluster, _: dict[str, Any], client: Callable[[str], Any]) -> Problems:
    """In ECR, and for the architecture of the nodes."""
    ecr, architecture = client("ecr"), cluster.settings["nodes.architecture"]
    for name in TARGETS:
        image = cluster.image(name)
        repository, digest = image.partition("/")[2].partition("@")[::2]
        if ".dkr.ecr." not in image:
            continue
        asked = {"repositoryName": repository, "imageIds": [{"imageDigest": digest}]}
        try:
            found = ecr.batch_get_image(**asked)["images"]
        except ecr.exceptions.RepositoryNotFoundException:
            yield UserError(f"images.{name}", image, f"ECR has no repository {repository}: make account")
            continue
        if not found:
            yield UserError(f"images.{name}", image, f"ECR does not have it: mlops --env {cluster.name} images --push")
        elif (
            there := _architectures(ecr, repository, json.loads(found[0]["imageManifest"]))
        ) and architecture not in there:
            hint = f"is for {', '.join(sorted(there))}; build it with --platform linux/{architecture}"
            yield UserError(f"images.{name}", image, hint)


def _architectures(ecr: Any, repository: str, manifest: dict[str, Any]) -> set[str]:
    if "manifests" in manifest:
        return {each["platform"]["architecture"] for each in manifest["manifests"]} - {"unknown"}
    asked = {"repositoryName": repository, "layerDigest": manifest["config"]["digest"]}
    return {httpx.get(ecr.get_download_url_for_layer(**asked)["downloadUrl"]).json()["architecture"]}


def _made(cluster: Cluster) -> bool:
    import boto3

    found = boto3.Session(region_name=cluster.eks["region"]).client("eks").list_clusters()["clusters"]
    return cluster.eks["name"] in found


def _cluster(cluster: Cluster) -> Problems:
    settings = cluster.settings
    try:
        cluster.ask("version", "--request-timeout=10s")
    except UserError as error:
        if settings["cluster.kind"] == "eks" and not _made(cluster):
            return  # the first `up` makes it
        yield UserError("cluster.context", settings["cluster.context"], f"does not answer: {error.hint}")
        return
    named = [
        path for path in settings if path.lower().endswith("secret") and settings[path] and settings[path] != "secret"
    ]
    for path in named:
        for secret in [f"{settings[path]}-{identity}" for identity in _EACH.get(path, ())] or [settings[path]]:
            if not cluster.ask("get", "secret", secret, "--ignore-not-found", "-o", "name"):
                hint = f"is missing: kubectl -n {settings['namespace']} create secret generic {secret} …"
                yield UserError(path, secret, hint)
    if settings["cluster.kind"] == "kubeconfig" and not settings["storageClass"]:
        classes = json.loads(cluster.ask("get", "storageclass", "-o", "json"))["items"]
        marks = [each["metadata"].get("annotations", {}) for each in classes]
        if not any(mark.get("storageclass.kubernetes.io/is-default-class") == "true" for mark in marks):
            names = ", ".join(each["metadata"]["name"] for each in classes) or "none"
            yield UserError("storageClass", "", f"the cluster has no default; name one of {names}")
    needs = {"keda": "scaledobjects.keda.sh"} | {"operator": "prometheusrules.monitoring.coreos.com"}
    for path in ("serving.scaleOn", "monitoring.kind"):
        kind = needs.get(settings[path])
        if kind and not cluster.ask("get", "crd", kind, "--ignore-not-found", "-o", "name"):
            yield UserError(path, settings[path], f"the cluster has no {kind}: install it, or choose another")
    host = settings["ingress.host"]
    if host and cluster.ask(
        "get", "ingress", "proxy", "--ignore-not-found", "-o", "name"
    ):  # else it has no address yet
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            yield UserError("ingress.host", host, "has no DNS record; point it to the load balancer")

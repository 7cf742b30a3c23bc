from ipaddress import IPv4Network
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from infra.configuration import Group, Labels, Name, ProgramSettings

# Zones in which EKS makes no control plane: https://docs.aws.amazon.com/eks (network requirements)
WITHOUT_EKS = ("use1-az3", "usw1-az2", "cac1-az3")


def _cidr(text: str) -> str:
    IPv4Network(text)
    return text


def _cidrs(text: str) -> str:
    for part in listed(text):
        _cidr(part)
    return text


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


Cidr = Annotated[str, AfterValidator(_cidr)]
Cidrs = Annotated[str, AfterValidator(_cidrs)]
AccountId = Annotated[str, Field(pattern=r"^\d{12}$")]
Region = Annotated[str, Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$")]
KeyArn = Annotated[str, Field(pattern=r"^(arn:aws[\w-]*:kms:[\w-]+:\d{12}:key/[\w-]+)?$")]
_ARN = r"arn:aws[\w-]*:iam::\d{12}:(role|user)/[\w+=.@/-]+"
Principals = Annotated[str, Field(pattern=rf"^({_ARN}(,{_ARN})*)?$")]
PolicyArn = Annotated[str, Field(pattern=r"^(arn:aws[\w-]*:iam::\d{12}:policy/[\w+=,.@/-]+)?$")]
Path = Annotated[str, Field(pattern=r"^/([\w+=.@-]+/)*$")]
Email = Annotated[str, Field(pattern=r"^([^@\s]+@[^@\s]+)?$")]


class Network(Group):
    kind: Literal["create", "existing"]
    cidr: Cidr
    zones: Annotated[int, Field(ge=2, le=3)]
    nat_gateways: Annotated[int, Field(ge=0, le=3)]
    vpc: Annotated[str, Field(pattern=r"^(vpc-[0-9a-f]+)?$")]
    subnets: Annotated[str, Field(pattern=r"^(subnet-[0-9a-f]+(,subnet-[0-9a-f]+)+)?$")]


class Cluster(Group):
    kind: Literal["create", "existing"]
    name: Annotated[str, Field(pattern=r"^([0-9A-Za-z][\w-]{0,99})?$")]
    version: Annotated[str, Field(pattern=r"^1\.\d\d$")]
    public_cidrs: Cidrs
    admins: Principals
    github: bool
    log_days: Literal[1, 3, 5, 7, 14, 30, 60, 90, 180, 365]


class Bucket(Group):
    kind: Literal["create", "existing"]
    name: Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])?$")]


class Database(Group):
    kind: Literal["create", "none"]
    instance_class: Annotated[str, Field(pattern=r"^db\.[a-z0-9]+\.[a-z0-9]+$")]
    gigabytes: Annotated[int, Field(ge=20)]
    max_gigabytes: int
    multi_az: bool
    backup_days: Annotated[int, Field(ge=1, le=35)]


class Keys(Group):
    data: KeyArn
    approval: KeyArn


class Iam(Group):
    boundary: PolicyArn
    path: Path


class Alarms(Group):
    email: Email


class Budget(Group):
    dollars: Annotated[int, Field(ge=0)]


class Settings(ProgramSettings):
    """What `infra/aws/Pulumi.yaml` declares and `environments/aws/Pulumi.<environment>.yaml` changes."""

    account: AccountId
    region: Region
    account_stack: Name
    namespace: Name
    tags: Labels
    unlock: bool
    network: Network
    cluster: Cluster
    bucket: Bucket
    database: Database
    keys: Keys
    iam: Iam
    alarms: Alarms
    budget: Budget

    def problems(self) -> dict[str, bool]:
        network, cluster, database, bucket = self.network, self.cluster, self.database, self.bucket
        zones, size = network.zones, IPv4Network(network.cidr).prefixlen
        existing = network.kind == "existing"
        return {
            f"{self.environment}: names in AWS have no room for more than 32 characters": len(self.environment) > 32,
            f"network.cidr is {network.cidr}: must be a /16 to a /20": not existing and not 16 <= size <= 20,
            f"network.natGateways is {network.nat_gateways}: must be 0, 1 or network.zones, {zones}":
                not existing and network.nat_gateways not in (0, 1, zones),
            "network.kind is existing: needs network.vpc and network.subnets": existing
            and not (network.vpc and network.subnets),
            "cluster.kind is existing: needs cluster.name": cluster.kind == "existing" and not cluster.name,
            "cluster.admins is empty: nobody could deploy the platform; write the ARN of your role, or cluster.github: true":
                cluster.kind == "create" and not (cluster.admins or cluster.github),
            "bucket.kind is existing: needs bucket.name": bucket.kind == "existing" and not bucket.name,
            f"database.maxGigabytes is {database.max_gigabytes}: must be at least database.gigabytes, {database.gigabytes}":
                database.max_gigabytes < database.gigabytes,
        }  # fmt: skip

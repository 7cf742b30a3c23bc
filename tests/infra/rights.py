"""What IAM says to a call of one of our roles, by two evaluators.

moto is the first, by calls with each role's own credentials. It evaluates actions, resources, and deny over allow, but no
Conditions, no policies of buckets and keys, and no boundary; of most services it does not know the resource of a call
either. So it is told the resource, and given of the rendered statements those whose Condition `holds`, with what the
resource's own policy denies. The second is `allowed`; it is alone where moto has no such call, and with EKS, whose
signatures moto cannot check.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import boto3
import pytest
from botocore import xform_name
from botocore.config import Config
from botocore.exceptions import ClientError
from moto.core import enable_iam_authentication
from moto.core.responses import BaseResponse
from moto.iam.responses import IamResponse
from moto.sts.responses import TokenResponse

from infra.render import ACCOUNT, AWS, Rendered, Resource, render

STAGES = ("dev", "staging", "prod")
NUMBER, REGION = "0" * 12, "us-east-1"
REPOSITORY = {"github.repository": "acme/ml"}
Statements = list[dict[str, Any]]
Context = dict[str, str]
# How a case names a key that signs → its name in the program.
SIGN = {f"approval of {stage}": stage for stage in STAGES} | {
    f"delivery of {stage}": f"{stage}-delivery" for stage in STAGES
}


def arn(service: str, resource: str) -> str:
    region, account = {"s3": ("", ""), "iam": ("", NUMBER)}.get(service, (REGION, NUMBER))
    return f"arn:aws:{service}:{region}:{account}:{resource}"


@cache
def programs() -> dict[str, Rendered]:
    of_aws = {stage: render(stage, project=AWS) for stage in STAGES}
    return of_aws | {"account": render("shared", REPOSITORY, project=ACCOUNT)}


def made(*kinds: str) -> list[Resource]:
    """Of the account, and of one environment, since the others have the same."""
    found = [*programs()["account"].of_aws, *programs()["dev"].of_aws]
    return [resource for resource in found if resource.type.split(":")[1].partition("/")[2] in kinds]


def statements(policy: str) -> Statements:
    return json.loads(policy)["Statement"]


@cache
def policies() -> dict[str, Statements]:
    """By the role's name, or the boundary's."""
    of_roles = {each.inputs["role"]: statements(each.inputs["policy"]) for each in made("rolePolicy")}
    return of_roles | {each.inputs["name"]: statements(each.inputs["policy"]) for each in made("policy")}


def listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def matches(patterns: Any, value: str) -> bool:
    return any(fnmatchcase(value, pattern) for pattern in listed(patterns))


OPERATORS: dict[str, Callable[[Any, str], bool]] = {
    "StringEquals": lambda wanted, found: found in listed(wanted),
    "StringLike": matches,
    "ArnEquals": matches,
    "ArnLike": matches,
    "Bool": lambda wanted, found: found == wanted,
}


def holds(statement: dict[str, Any], context: Context) -> bool:
    """https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_condition_operators.html"""
    for name, keys in statement.get("Condition", {}).items():
        operator = name.removesuffix("IfExists").replace("NotEquals", "Equals")
        for key, wanted in keys.items():
            if name == "Null":
                fulfilled = (key not in context) == (wanted == "true")
            elif key not in context:
                fulfilled = "Not" in name or "IfExists" in name
            else:
                fulfilled = OPERATORS[operator](wanted, context[key]) != ("Not" in name)
            if not fulfilled:
                return False
    return True


def concerns(statement: dict[str, Any], action: str, resource: str) -> bool:
    """Whether action and resource are those of the statement."""
    return all(
        matches(statement[name], value) if name in statement else not matches(statement[f"Not{name}"], value)
        for name, value in (("Action", action), ("Resource", resource))
    )


def allowed(found: Statements, action: str, resource: str, context: Context) -> bool:
    effects = {each["Effect"] for each in found if concerns(each, action, resource) and holds(each, context)}
    return effects == {"Allow"}


@dataclass(frozen=True)
class Call:
    """Of a role, as a policy sees it. `on`: STAGE/KEY of a bucket, the name of a key, or how an ARN ends."""

    role: str
    action: str
    on: str
    more: Context = field(default_factory=dict)

    @property
    def service(self) -> str:
        return self.action.partition(":")[0]

    @property
    def role_name(self) -> str:
        stage, _, purpose = self.role.partition(" ")
        if not purpose:
            return f"mlops-dev-{stage}"
        return f"{'' if purpose == 'boundary' else 'github-'}mlops-{stage}-{purpose}"

    @property
    def resource(self) -> str:
        where, _, key = self.on.partition("/")
        match self.service:
            case _ if self.on == "*":
                return "*"
            case "s3":
                return arn("s3", "/".join(filter(None, [bucket(where), key])))
            case "kms":
                return arn("kms", f"key/{({'data of dev': 'data'} | SIGN).get(self.on, self.on)}")
            case "secretsmanager":
                return arn("secretsmanager", f"secret:{self.on}")
            case "sts":
                return arn("iam", self.on)
        return arn(self.service, self.on)

    @property
    def context(self) -> Context:
        found = {"aws:SecureTransport": "true", "aws:RequestedRegion": REGION}
        found["aws:PrincipalArn"] = arn("iam", f"role/mlops/{self.role_name}")
        if self.service == "kms" and self.on != "*":
            tag = self.on.removeprefix("data of ")
            found["aws:ResourceTag/environment"] = tag if tag in STAGES else "account"
        return found | self.more

    @property
    def denied(self) -> Statements:
        """What the policy of the bucket or key denies everybody."""
        where = self.on.partition("/")[0]
        name = ({"dev": "bucket"} | SIGN).get(where, where)
        kinds = {"s3": ["bucketPolicy"], "kms": ["key"]}.get(self.service, [])
        found = [each for policy in made(*kinds) if policy.name == name for each in statements(policy.inputs["policy"])]
        return [each for each in found if (each["Effect"], each["Principal"]) == ("Deny", "*")]

    @property
    def statements(self) -> Statements:
        return [*policies()[self.role_name], *self.denied]


def bucket(of: str) -> str:
    return programs()[of].outputs["bucket"] if of in STAGES else f"mlops-{of}-{NUMBER}"


NOTHING = json.dumps({"Version": "2012-10-17", "Statement": []})
HARMLESS = json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Action": "x:X", "Resource": "*"}]})
IMAGE = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"})
TAG = ("environment", "dev")
# Parameters of a call, by how its ARN ends.
PARAMETERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "ec2:AuthorizeSecurityGroupIngress": lambda last: {"GroupId": last},
    "ec2:CreateRoute": lambda last: {"RouteTableId": last, "DestinationCidrBlock": "10.0.0.0/8"},
    "ec2:CreateSubnet": lambda last: {"VpcId": last, "CidrBlock": "10.0.0.0/24"},
    "ec2:CreateTags": lambda last: {"Resources": [last], "Tags": [dict(zip(("Key", "Value"), TAG, strict=True))]},
    "ec2:CreateVpc": lambda _: {"CidrBlock": "10.0.0.0/16"},
    "ec2:DeleteVpc": lambda last: {"VpcId": last},
    "ecr:BatchDeleteImage": lambda last: {"repositoryName": last, "imageIds": [{"imageTag": "1"}]},
    "ecr:BatchGetImage": lambda last: {"repositoryName": last, "imageIds": [{"imageTag": "1"}]},
    "ecr:PutImage": lambda last: {"repositoryName": last, "imageManifest": IMAGE, "imageTag": "1"},
    "ecr:PutImageTagMutability": lambda last: {"repositoryName": last, "imageTagMutability": "MUTABLE"},
    "iam:AttachRolePolicy": lambda last: {"RoleName": last, "PolicyArn": "arn:aws:iam::aws:policy/AdministratorAccess"},
    "iam:CreatePolicyVersion": lambda last: {"PolicyArn": arn("iam", f"policy/{last}"), "PolicyDocument": NOTHING},
    "iam:CreateRole": lambda last: {"RoleName": last, "AssumeRolePolicyDocument": NOTHING},
    "iam:CreateUser": lambda last: {"UserName": last},
    "iam:DeleteRolePermissionsBoundary": lambda last: {"RoleName": last},
    "iam:PutRolePermissionsBoundary": lambda last: {"RoleName": last, "PermissionsBoundary": arn("iam", "policy/x")},
    "iam:PutRolePolicy": lambda last: {"RoleName": last, "PolicyName": "new", "PolicyDocument": HARMLESS},
    "iam:UpdateAssumeRolePolicy": lambda last: {"RoleName": last, "PolicyDocument": NOTHING},
    "kms:Decrypt": lambda _: {"CiphertextBlob": b"1"},
    "kms:Encrypt": lambda _: {"Plaintext": b"1"},
    "kms:GenerateDataKey": lambda _: {"KeySpec": "AES_256"},
    "kms:PutKeyPolicy": lambda _: {"PolicyName": "default", "Policy": NOTHING},
    "kms:Sign": lambda _: {"Message": b"1" * 32, "MessageType": "DIGEST", "SigningAlgorithm": "ECDSA_SHA_256"},
    "kms:TagResource": lambda _: {"Tags": [dict(zip(("TagKey", "TagValue"), TAG, strict=True))]},
    "kms:UntagResource": lambda _: {"TagKeys": [TAG[0]]},
    "logs:DeleteLogGroup": lambda last: {"logGroupName": f"/mlops-dev/{last}"},
    "rds:DeleteDBInstance": lambda last: {"DBInstanceIdentifier": last},
    "s3:PutBucketPolicy": lambda _: {"Policy": NOTHING},
    "secretsmanager:GetSecretValue": lambda last: {"SecretId": last},
    "sns:DeleteTopic": lambda last: {"TopicArn": arn("sns", last)},
    "sts:AssumeRole": lambda last: {"RoleArn": arn("iam", f"role/{last}"), "RoleSessionName": "test"},
}
ONCE = Config(retries={"total_max_attempts": 1})
METHODS = {"s3:ListBucket": "list_objects_v2"}
SAID = {("s3:ListBucket", "s3:prefix"): "Prefix", ("s3:PutObject", "s3:if-none-match"): "IfNoneMatch"}  # of the context
NO_CALL = ("eks:*", "iam:PassRole", "ecr:*Layer*")
# What moto says of a thing that is not there, or is there already, when it has let the call through.
LET_THROUGH = (
    "DBInstanceNotFound", "InvalidCiphertextException", "InvalidID", "InvalidVpcID.NotFound", "NoSuchKey",
    "PreconditionFailed", "RepositoryNotFoundException", "ResourceNotFoundException",
)  # fmt: skip


class Moto:
    """An account with the rendered roles, and with the buckets and keys."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._clients: dict[tuple[str, str], Any] = {}
        self._resource = ""
        for kind in (BaseResponse, IamResponse, TokenResponse):
            monkeypatch.setattr(kind, "_determine_resource", lambda _: self._resource, raising=False)
        self._session = boto3.Session("x", "x", region_name=REGION)
        self._iam, kms, s3, ecr = (self._client("administrator", service) for service in ("iam", "kms", "s3", "ecr"))
        for role in policies():
            self._iam.create_role(RoleName=role, Path="/mlops/", AssumeRolePolicyDocument=NOTHING)
        signs = {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"}
        keys: dict[str, Any] = {"state": {}} | {f"data of {stage}": {} for stage in STAGES}
        keys |= dict.fromkeys(SIGN, signs)
        self._keys = {name: kms.create_key(**about)["KeyMetadata"]["KeyId"] for name, about in keys.items()}
        for each in ("state", *STAGES):
            s3.create_bucket(Bucket=bucket(each))
        ecr.create_repository(repositoryName="mlops-app")

    def allows(self, call: Call) -> bool:
        self._resource = call.resource
        held = [{key: value for key, value in each.items() if key not in ("Condition", "Principal")}
                for each in call.statements if holds(each, call.context)]  # fmt: skip
        policy = json.dumps({"Version": "2012-10-17", "Statement": held})
        self._iam.put_role_policy(RoleName=call.role_name, PolicyName="rendered", PolicyDocument=policy)
        method = getattr(
            self._client(call.role_name, call.service),
            METHODS.get(call.action) or xform_name(call.action.partition(":")[2]),
        )
        with enable_iam_authentication():
            try:
                method(**self._parameters(call))
            except ClientError as error:
                if "AccessDenied" in str(error):
                    return False
                if error.response["Error"]["Code"] not in LET_THROUGH:
                    raise
        return True

    def _client(self, role: str, service: str) -> Any:
        if (role, service) not in self._clients:
            about = {"RoleArn": arn("iam", f"role/mlops/{role}"), "RoleSessionName": "test"}
            found = self._session.client("sts").assume_role(**about)["Credentials"]
            names = {
                "AccessKeyId": "access_key_id",
                "SecretAccessKey": "secret_access_key",
                "SessionToken": "session_token",
            }
            who = {f"aws_{name}": found[key] for key, name in names.items()}
            self._clients[role, service] = self._session.client(service, config=ONCE, **who)
        return self._clients[role, service]

    def _parameters(self, call: Call) -> dict[str, Any]:
        said = {SAID.get((call.action, key), ""): value for key, value in call.more.items()}
        found = {name: value for name, value in said.items() if name}
        if call.service == "s3":
            name, _, key = call.resource.rpartition(":")[2].partition("/")
            found |= {"Bucket": name} | ({"Key": key} if key else {})
        elif call.on in self._keys:
            found["KeyId"] = self._keys[call.on]
        return found | PARAMETERS.get(call.action, lambda _: {})(re.split("[:/]", call.on)[-1])

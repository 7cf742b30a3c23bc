"""What AWS's own models of its API say of rendered resources: botocore has them, and checks less than they tell."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel
from botocore.validate import ParamValidator

from infra.render import Resource

_ACCOUNT, _SUFFIX = "0" * 12, "-0123456"  # of names that Pulumi makes up


@dataclass(frozen=True)
class Asked:
    """The operations that make a type of resource."""

    operations: str
    # Argument → member, where more differs than case: a path to it, or what makes members of the value.
    members: dict[str, str | Callable[[Any], dict[str, Any]]] = field(default_factory=dict)
    always: dict[str, Any] = field(default_factory=dict)  # members that Pulumi fills in
    named: str = ""  # the member that has the name, where Pulumi makes it up
    not_sent: tuple[str, ...] = ()  # arguments about the provider, and operations that take nothing but an id


def _dimensions(values: dict[str, str]) -> dict[str, Any]:
    return {"Dimensions": [{"Name": name, "Value": value} for name, value in values.items()]}


def _cost_filters(filters: list[Any]) -> dict[str, Any]:
    return {"Budget": {"CostFilters": {each["name"]: each["values"] for each in filters}}}


def _notifications(told: list[dict[str, Any]]) -> dict[str, Any]:
    found = []
    for each in told:
        addresses = [{"SubscriptionType": "SNS", "Address": arn} for arn in each["subscriberSnsTopicArns"]]
        about = {key[0].upper() + key[1:]: value for key, value in each.items() if key != "subscriberSnsTopicArns"}
        found.append({"Notification": about, "Subscribers": addresses})
    return {"NotificationsWithSubscribers": found}


_BUCKET_FLAGS = ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets")
ASKED = {
    "budgets/budget:Budget": Asked(
        "budgets:CreateBudget",
        {
            "name": "Budget.BudgetName", "budgetType": "Budget.BudgetType", "limitAmount": "Budget.BudgetLimit.Amount",
            "limitUnit": "Budget.BudgetLimit.Unit", "timeUnit": "Budget.TimeUnit", "costFilters": _cost_filters,
            "notifications": _notifications,
        },
        {"AccountId": _ACCOUNT},
    ),
    "cloudwatch/logGroup:LogGroup": Asked("logs:CreateLogGroup logs:PutRetentionPolicy", {"name": "logGroupName"}),
    "cloudwatch/metricAlarm:MetricAlarm": Asked(
        "cloudwatch:PutMetricAlarm", {"name": "AlarmName", "dimensions": _dimensions}
    ),
    "ec2/eip:Eip": Asked("ec2:AllocateAddress"),
    "ec2/flowLog:FlowLog": Asked(
        "ec2:CreateFlowLogs", {"vpcId": "ResourceIds", "iamRoleArn": "DeliverLogsPermissionArn"}, {"ResourceType": "VPC"}
    ),
    "ec2/internetGateway:InternetGateway": Asked("ec2:AttachInternetGateway", always={"InternetGatewayId": "igw-0"}),
    "ec2/natGateway:NatGateway": Asked("ec2:CreateNatGateway"),
    "ec2/route:Route": Asked("ec2:CreateRoute"),
    "ec2/routeTable:RouteTable": Asked("ec2:CreateRouteTable"),
    "ec2/routeTableAssociation:RouteTableAssociation": Asked("ec2:AssociateRouteTable"),
    "ec2/securityGroup:SecurityGroup": Asked("ec2:CreateSecurityGroup", named="GroupName"),
    "ec2/subnet:Subnet": Asked(
        "ec2:CreateSubnet ec2:ModifySubnetAttribute",
        {"mapPublicIpOnLaunch": "MapPublicIpOnLaunch.Value"},
        {"SubnetId": "subnet-0"},
    ),
    "ec2/vpc:Vpc": Asked(
        "ec2:CreateVpc ec2:ModifyVpcAttribute",
        {"enableDnsHostnames": "EnableDnsHostnames.Value", "enableDnsSupport": "EnableDnsSupport.Value"},
        {"VpcId": "vpc-0"},
    ),
    "ec2/vpcEndpoint:VpcEndpoint": Asked("ec2:CreateVpcEndpoint"),
    "ecr/lifecyclePolicy:LifecyclePolicy": Asked(
        "ecr:PutLifecyclePolicy", {"repository": "repositoryName", "policy": "lifecyclePolicyText"}
    ),
    "ecr/repository:Repository": Asked(
        "ecr:CreateRepository", {"name": "repositoryName", "encryptionConfigurations": "encryptionConfiguration"}
    ),
    "eks/accessEntry:AccessEntry": Asked("eks:CreateAccessEntry"),
    "eks/accessPolicyAssociation:AccessPolicyAssociation": Asked("eks:AssociateAccessPolicy"),
    "eks/addon:Addon": Asked("eks:CreateAddon"),
    "eks/cluster:Cluster": Asked(
        "eks:CreateCluster", {"vpcConfig": "resourcesVpcConfig", "enabledClusterLogTypes": "logging.clusterLogging.types"}
    ),
    "eks/podIdentityAssociation:PodIdentityAssociation": Asked("eks:CreatePodIdentityAssociation"),
    "iam/openIdConnectProvider:OpenIdConnectProvider": Asked(
        "iam:CreateOpenIDConnectProvider", {"clientIdLists": "ClientIDList"}
    ),
    "iam/policy:Policy": Asked("iam:CreatePolicy", {"name": "PolicyName", "policy": "PolicyDocument"}),
    "iam/role:Role": Asked("iam:CreateRole", {"name": "RoleName", "assumeRolePolicy": "AssumeRolePolicyDocument"}),
    "iam/rolePolicy:RolePolicy": Asked(
        "iam:PutRolePolicy", {"role": "RoleName", "policy": "PolicyDocument"}, named="PolicyName"
    ),
    "iam/rolePolicyAttachment:RolePolicyAttachment": Asked("iam:AttachRolePolicy", {"role": "RoleName"}),
    "kms/alias:Alias": Asked("kms:CreateAlias", {"name": "AliasName"}),
    "kms/key:Key": Asked(
        "kms:CreateKey kms:ScheduleKeyDeletion",
        {"deletionWindowInDays": "PendingWindowInDays"},
        {"KeyId": "0"},
        not_sent=("enableKeyRotation",),
    ),
    "rds/instance:Instance": Asked(
        "rds:CreateDBInstance rds:DeleteDBInstance",
        {
            "identifier": "DBInstanceIdentifier", "instanceClass": "DBInstanceClass", "username": "MasterUsername",
            "parameterGroupName": "DBParameterGroupName", "performanceInsightsEnabled": "EnablePerformanceInsights",
            "enabledCloudwatchLogsExports": "EnableCloudwatchLogsExports",
            "finalSnapshotIdentifier": "FinalDBSnapshotIdentifier",
        },
    ),
    "rds/parameterGroup:ParameterGroup": Asked(
        "rds:CreateDBParameterGroup rds:ModifyDBParameterGroup",
        {
            "name": "DBParameterGroupName", "family": "DBParameterGroupFamily", "parameters.name": "ParameterName",
            "parameters.value": "ParameterValue",
        },
    ),
    "rds/subnetGroup:SubnetGroup": Asked(
        "rds:CreateDBSubnetGroup", {"name": "DBSubnetGroupName", "description": "DBSubnetGroupDescription"}
    ),
    "s3/bucket:Bucket": Asked("s3:CreateBucket", not_sent=("forceDestroy",)),
    "s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration": Asked(
        "s3:PutBucketLifecycleConfiguration", {"rules": "LifecycleConfiguration.Rules"}
    ),
    "s3/bucketOwnershipControls:BucketOwnershipControls": Asked(
        "s3:PutBucketOwnershipControls", {"rule": "OwnershipControls.Rules"}
    ),
    "s3/bucketPolicy:BucketPolicy": Asked("s3:PutBucketPolicy"),
    "s3/bucketPublicAccessBlock:BucketPublicAccessBlock": Asked(
        "s3:PutPublicAccessBlock", {flag: f"PublicAccessBlockConfiguration.{flag}" for flag in _BUCKET_FLAGS}
    ),
    "s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration": Asked(
        "s3:PutBucketEncryption", {"rules": "ServerSideEncryptionConfiguration.Rules"}
    ),
    "s3/bucketVersioning:BucketVersioning": Asked("s3:PutBucketVersioning"),
    "sns/topic:Topic": Asked("sns:CreateTopic", {"kmsMasterKeyId": "Attributes.KmsMasterKeyId"}),
    "sns/topicPolicy:TopicPolicy": Asked(
        "sns:SetTopicAttributes", {"arn": "TopicArn", "policy": "AttributeValue"}, {"AttributeName": "Policy"}
    ),
    "sns/topicSubscription:TopicSubscription": Asked("sns:Subscribe", {"topic": "TopicArn"}),
    "vpc/securityGroupIngressRule:SecurityGroupIngressRule": Asked(
        "ec2:AuthorizeSecurityGroupIngress",
        {
            "securityGroupId": "GroupId", "ipProtocol": "IpPermissions.IpProtocol", "fromPort": "IpPermissions.FromPort",
            "toPort": "IpPermissions.ToPort", "cidrIpv4": "IpPermissions.IpRanges.CidrIp",
            "description": "IpPermissions.IpRanges.Description",
            "referencedSecurityGroupId": "IpPermissions.UserIdGroupPairs.GroupId",
        },
    ),
}  # fmt: skip
NOT_ASKED = {
    "ec2/defaultSecurityGroup:DefaultSecurityGroup": "AWS makes it with the VPC; the program takes its rules away"
}


def faults(resource: Resource) -> list[str]:
    """What the API would refuse."""
    asked = ASKED[resource.type.removeprefix("aws:")]
    found, sent = [], set(asked.not_sent)
    for operation in map(_operation, asked.operations.split()):
        shape = operation.input_shape
        params = {key: value for key, value in asked.always.items() if key in shape.members}
        if asked.named:
            params[asked.named] = f"{resource.name}{_SUFFIX}"
        for argument, value in resource.inputs.items():
            target: Any = asked.members.get(argument, partial(_tags, shape) if argument == "tags" else argument)
            made: dict[str, Any] = target(value) if callable(target) else _nested(target, shape, value, argument, asked)
            if made and set(made) <= set(shape.members):
                params = _merged(params, made)
                sent.add(argument)
        report = ParamValidator().validate(params, shape).generate_report()
        found += [*report.splitlines(), *_beyond(params, shape, operation.name)]
    return found + [f"no call has {argument}" for argument in resource.inputs if argument not in sent]


def _tags(shape: Any, values: dict[str, str]) -> dict[str, Any]:
    tags = [{"Key": key, "Value": value} for key, value in values.items()]
    if "TagSpecifications" in shape.members:
        return {"TagSpecifications": [{"ResourceType": "vpc", "Tags": tags}]}
    member = _member(shape, "tags")
    return {member: values if shape.members[member].type_name == "map" else tags} if member else {}


@cache
def _operation(name: str) -> OperationModel:
    service, _, operation = name.partition(":")
    return _service(service).operation_model(operation)


@cache
def _service(name: str) -> ServiceModel:
    return ServiceModel(Loader().load_service_model(name, "service-2"), name)


def _nested(path: str, shape: Any, value: Any, argument: str, asked: Asked) -> Any:
    """`value` at the `path`; empty, where the shape has no such member."""
    if not path:
        return _converted(value, shape, argument, asked)
    if shape.type_name == "list":
        return [_nested(path, shape.member, value, argument, asked)]
    first, _, rest = path.partition(".")
    if shape.type_name == "map":
        return {first: _nested(rest, shape.value, value, argument, asked)}
    member = _member(shape, first)
    return {member: _nested(rest, shape.members[member], value, argument, asked)} if member else {}


def _member(shape: Any, name: str) -> str:
    return next((each for each in shape.members if each.lower() == name.lower()), "")


def _converted(value: Any, shape: Any, path: str, asked: Asked) -> Any:
    if shape.type_name == "list":  # Pulumi has one where a list never has more
        values = value if isinstance(value, list) else [value]
        return [_converted(each, shape.member, path, asked) for each in values]
    if shape.type_name == "structure" and isinstance(value, list) and len(value) == 1:
        (value,) = value
    if shape.type_name != "structure" or not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for key, each in value.items():
        inner = f"{path}.{key}"
        target = str(asked.members.get(inner, key))
        found = _merged(found, _nested(target, shape, each, inner, asked) or {target: each})
    return found


def _merged(one: Any, other: Any) -> Any:
    if isinstance(one, dict) and isinstance(other, dict):
        return one | {key: _merged(one[key], value) if key in one else value for key, value in other.items()}
    if isinstance(one, list) and isinstance(other, list):
        return [_merged(*each) for each in zip(one, other, strict=True)]
    return other


def _beyond(value: Any, shape: Any, where: str) -> Iterator[str]:
    """Of what botocore leaves to the service: choices, patterns, and how much is too much."""
    rules = shape.metadata
    if isinstance(value, dict):
        parts = shape.members if shape.type_name == "structure" else dict.fromkeys(value, getattr(shape, "value", None))
        for key, each in value.items():
            if key in parts:
                yield from _beyond(each, parts[key], f"{where}.{key}")
    elif isinstance(value, list) and shape.type_name == "list":
        for each in value:
            yield from _beyond(each, shape.member, where)
    size = value if isinstance(value, (int, float)) else len(value)
    if "max" in rules and size > rules["max"]:
        yield f"{where} is {value!r}: more than {rules['max']}"
    if "enum" in rules and value not in rules["enum"]:
        yield f"{where} is {value!r}: none of {', '.join(rules['enum'])}"
    if "pattern" in rules and not re.fullmatch(_python(rules["pattern"]), value):
        yield f"{where} is {value!r}: not {rules['pattern']}"


def _python(pattern: str) -> str:
    """Of a pattern in Java's syntax."""
    for java, python in ((r"\p{L}", r"\w"), (r"\p{Z}", r"\s"), (r"\p{N}", r"\d"), ("(?i)", "")):
        pattern = pattern.replace(java, python)
    return pattern

"""Policies that the rendered resources of both AWS programs must meet.

They are plain functions from resources and the environment's name to violations. What checkov checks as well is left to
it: see tests/infra/test_aws_program.py; what a role may do on which resource: tests/infra/test_aws_rights.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

from infra.configuration import PROTECTED
from infra.render import ACCOUNT, Resource

Resources = list[Resource]
Statements = list[dict[str, Any]]
# Actions with a wildcard that an Allow may have → why.
_LOOKS = "tells how something is set up, not what is in it"
WILDCARDS = {"ec2:Describe*": _LOOKS, "eks:Describe*": _LOOKS, "eks:List*": _LOOKS}
# AWS' own policies that a role may have.
ATTACHED = (
    "AmazonEKSClusterPolicy", "AmazonEKSComputePolicy", "AmazonEKSBlockStoragePolicy", "AmazonEKSLoadBalancingPolicy",
    "AmazonEKSNetworkingPolicy", "AmazonEKSWorkerNodeMinimalPolicy", "AmazonEC2ContainerRegistryPullOnly",
)  # fmt: skip
# The workflows of main that may be a pipeline's role, by purpose; a preview's may be any.
WORKFLOWS = {
    "infrastructure": {"deploy"}, "build": {"deliver"}, "deploy": {"deploy"}, "train": {"train"},
    "promote": {"promote", "rollback"}, "watch": {"watch"},
}  # fmt: skip
_PODS, _SIGN = "pods.eks.amazonaws.com", "kms:sign"
_PUSH = {"ecr:putimage", "ecr:initiatelayerupload", "ecr:uploadlayerpart", "ecr:completelayerupload"}
_TRUSTED = (_PODS, "eks.amazonaws.com", "ec2.amazonaws.com", "vpc-flow-logs.amazonaws.com")
_FOR_EVER = ("iam/User", "iam/AccessKey", "iam/ServiceSpecificCredential", "iam/SshKey")
_FLAGS = ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets")


def of(resources: Resources, *kinds: str) -> Resources:
    """`kinds`: MODULE/TYPE of AWS."""
    made = [each for each in resources if each.type.startswith("aws:")]
    return [each for each in made if f"{each.type[4:].partition('/')[0]}/{each.type.rpartition(':')[2]}" in kinds]


def policy(resource: Resource, key: str = "policy") -> Statements:
    return json.loads(resource.inputs[key])["Statement"]


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def actions(statement: dict[str, Any]) -> list[str]:
    """As IAM reads them: in any case."""
    return [action.lower() for action in listed(statement.get("Action", []))]


def for_all(resources: Resources) -> bool:
    """Whether these are of infra/account."""
    return any("::mlops-account::" in each.urn for each in resources)


def stages(stack: str) -> list[str]:
    """Of infra/account, in order."""
    return ACCOUNT.settings(stack)["environments"].split(",")


def purpose(name: str) -> tuple[str, str]:
    """Of a pipeline's role: its environment, and what it is for."""
    environment, _, what = name.removeprefix("mlops-").rpartition("-")
    return environment, what


def locked(resources: Resources, environment: str) -> bool:
    return environment in PROTECTED or for_all(resources)


def _about(resources: Resources, kind: str, bucket: Resource) -> Resources:
    return [each for each in of(resources, kind) if each.inputs["bucket"] == bucket.inputs["bucket"]]


def _denied(resources: Resources, bucket: Resource) -> Statements:
    """To everybody."""
    found = [statement for each in _about(resources, "s3/BucketPolicy", bucket) for statement in policy(each)]
    return [each for each in found if each["Effect"] == "Deny" and each["Principal"] == "*"]


def _keys(statement: dict[str, Any]) -> set[str]:
    """BUCKET or BUCKET/KEY."""
    return {arn.rpartition(":::")[2] for arn in statement["Resource"]}


def buckets_are_private(resources: Resources, environment: str) -> Iterator[str]:
    for bucket in of(resources, "s3/Bucket"):
        blocks = _about(resources, "s3/BucketPublicAccessBlock", bucket)
        if not any(all(block.inputs.get(flag) is True for flag in _FLAGS) for block in blocks):
            yield f"{bucket.name}: may be public"
        owners = _about(resources, "s3/BucketOwnershipControls", bucket)
        if [each.inputs["rule"]["objectOwnership"] for each in owners] != ["BucketOwnerEnforced"]:
            yield f"{bucket.name}: an object may have another owner"
        for each in _about(resources, "s3/BucketPolicy", bucket):
            if any(statement["Effect"] == "Allow" for statement in policy(each)):
                yield f"{bucket.name}: its policy lets somebody in"


def buckets_speak_tls(resources: Resources, environment: str) -> Iterator[str]:
    for bucket in of(resources, "s3/Bucket"):
        name, plain = bucket.inputs["bucket"], {"Bool": {"aws:SecureTransport": "false"}}
        wanted = [each for each in _denied(resources, bucket) if each.get("Condition") == plain]
        if not any(actions(each) == ["s3:*"] and {name, f"{name}/*"} <= _keys(each) for each in wanted):
            yield f"{bucket.name}: answers without TLS"


def buckets_are_versioned(resources: Resources, environment: str) -> Iterator[str]:
    for bucket in of(resources, "s3/Bucket"):
        found = _about(resources, "s3/BucketVersioning", bucket)
        if [each.inputs["versioningConfiguration"]["status"] for each in found] != ["Enabled"]:
            yield f"{bucket.name}: not versioned"


def models_stay(resources: Resources, environment: str) -> Iterator[str]:
    """None is deleted, no release is written twice, and no rule of the lifecycle touches them."""
    for bucket in [each for each in of(resources, "s3/Bucket") if not for_all([each])]:
        models, denied = f"{bucket.inputs['bucket']}/models/*", _denied(resources, bucket)
        kept = [each for each in denied if "Condition" not in each and models in _keys(each)]
        if not any({"s3:deleteobject", "s3:deleteobjectversion"} <= {*actions(each)} for each in kept):
            yield f"{bucket.name}: models can be deleted"
        once = [each for each in denied if each.get("Condition") == {"Null": {"s3:if-none-match": "true"}}]
        if not any("s3:putobject" in actions(e) and f"{models}/releases/*" in _keys(e) for e in once):
            yield f"{bucket.name}: a release can be overwritten"
        for lifecycle in _about(resources, "s3/BucketLifecycleConfiguration", bucket):
            for rule in lifecycle.inputs["rules"]:
                prefix = rule.get("filter", {}).get("prefix", "")
                harmless = {"id", "status", "filter", "abortIncompleteMultipartUpload"}
                if rule.keys() - harmless and (prefix.startswith("models/") or "models/".startswith(prefix)):
                    yield f"{bucket.name}: rule {rule['id']} touches models/"


_KEYS = {
    "cloudwatch/LogGroup": ["kmsKeyId"],
    "sns/Topic": ["kmsMasterKeyId"],
    "rds/Instance": ["kmsKeyId", "masterUserSecretKmsKeyId", "performanceInsightsKmsKeyId"],
}


def everything_is_encrypted_with_our_key(resources: Resources, environment: str) -> Iterator[str]:
    for kind, arguments in _KEYS.items():
        for each in of(resources, kind):
            yield from (f"{each.name}: no {argument}" for argument in arguments if not each.inputs.get(argument))
    for each in of(resources, "rds/Instance"):
        if each.inputs.get("storageEncrypted") is not True:
            yield f"{each.name}: its disk is in the clear"
    for each in of(resources, "eks/Cluster"):
        found = each.inputs.get("encryptionConfig", {})
        if found.get("resources") != ["secrets"] or not found.get("provider", {}).get("keyArn"):
            yield f"{each.name}: Secrets in the clear"
    for each in of(resources, "ecr/Repository"):
        found = each.inputs.get("encryptionConfigurations", [])
        if not any(one.get("encryptionType") == "KMS" and one.get("kmsKey") for one in found):
            yield f"{each.name}: images in the clear"
    for bucket in of(resources, "s3/Bucket"):
        found = _about(resources, "s3/BucketServerSideEncryptionConfiguration", bucket)
        rules = [rule["applyServerSideEncryptionByDefault"] for each in found for rule in each.inputs["rules"]]
        if [rule.get("sseAlgorithm") for rule in rules] != ["aws:kms"] or not rules[0].get("kmsMasterKeyId"):
            yield f"{bucket.name}: objects in the clear"


def _wide(cidr: str) -> bool:
    """Everybody, in one piece or in a few."""
    return ip_network(cidr).prefixlen < 8


def nothing_is_open_to_everybody(resources: Resources, environment: str) -> Iterator[str]:
    for rule in of(resources, "vpc/SecurityGroupIngressRule"):
        if any(_wide(rule.inputs[key]) for key in ("cidrIpv4", "cidrIpv6") if rule.inputs.get(key)):
            yield f"{rule.name}: open to everybody"
    for group in of(resources, "ec2/SecurityGroup", "ec2/DefaultSecurityGroup"):
        if group.inputs.get("ingress"):
            yield f"{group.name}: has rules that nobody looks at"
    yield from (f"{each.name}: another kind of rule" for each in of(resources, "ec2/SecurityGroupRule"))
    for subnet in of(resources, "ec2/Subnet"):
        if subnet.inputs.get("mapPublicIpOnLaunch"):
            yield f"{subnet.name}: gives public addresses"


def nodes_and_database_are_in_private_subnets(resources: Resources, environment: str) -> Iterator[str]:
    tables = {each.inputs["routeTableId"] for each in of(resources, "ec2/Route") if each.inputs.get("gatewayId")}
    joined = of(resources, "ec2/RouteTableAssociation")
    public = {each.inputs["subnetId"] for each in joined if each.inputs["routeTableId"] in tables}
    for each in of(resources, "rds/SubnetGroup", "eks/Cluster"):
        if public & {*each.inputs.get("vpcConfig", each.inputs)["subnetIds"]}:
            yield f"{each.name}: in a public subnet"


def the_cluster_answers_who_is_listed(resources: Resources, environment: str) -> Iterator[str]:
    for cluster in of(resources, "eks/Cluster"):
        network, who = cluster.inputs["vpcConfig"], cluster.inputs["vpcConfig"].get("publicAccessCidrs") or []
        if network.get("endpointPrivateAccess") is not True:
            yield f"{cluster.name}: nodes reach the API from outside"
        if network.get("endpointPublicAccess") is not False:
            if not who:
                yield f"{cluster.name}: without a list, its API is open to everybody"
            if environment in PROTECTED and any(_wide(cidr) for cidr in who):
                yield f"{cluster.name}: its API is open to everybody"


def the_database_answers_the_cluster(resources: Resources, environment: str) -> Iterator[str]:
    for instance in of(resources, "rds/Instance"):
        if instance.inputs.get("publiclyAccessible") is not False:
            yield f"{instance.name}: has a public address"
        if instance.inputs.get("password") or instance.inputs.get("manageMasterUserPassword") is not True:
            yield f"{instance.name}: its password is in the state"
        clusters = {each.urn for each in of(resources, "eks/Cluster")}
        for rule in of(resources, "vpc/SecurityGroupIngressRule"):
            if rule.inputs["securityGroupId"] not in instance.inputs["vpcSecurityGroupIds"]:
                continue
            if not rule.inputs.get("referencedSecurityGroupId") or not clusters <= {*rule.depends_on}:
                yield f"{rule.name}: reached by more than the cluster"
            if (rule.inputs.get("fromPort"), rule.inputs.get("toPort")) != (5432, 5432):
                yield f"{rule.name}: more ports than PostgreSQL's"
    for group in of(resources, "rds/ParameterGroup"):
        if {each["name"]: each["value"] for each in group.inputs["parameters"]}.get("rds.force_ssl") != "1":
            yield f"{group.name}: answers without TLS"


def the_cluster_is_what_we_run(resources: Resources, environment: str) -> Iterator[str]:
    """Nobody is its administrator unnamed, nothing of Auto Mode is half on, and support costs what it should."""
    for cluster in of(resources, "eks/Cluster"):
        access, given = cluster.inputs.get("accessConfig", {}), cluster.inputs
        if access.get("authenticationMode") != "API":
            yield f"{cluster.name}: a ConfigMap says who is who"
        if access.get("bootstrapClusterCreatorAdminPermissions") is not False:
            yield f"{cluster.name}: who made it is administrator for ever"
        if given.get("upgradePolicy", {}).get("supportType") != "STANDARD":
            yield f"{cluster.name}: extended support, at six times the price"
        modes = [given.get("computeConfig", {}), given.get("storageConfig", {}).get("blockStorage", {})]
        modes.append(given.get("kubernetesNetworkConfig", {}).get("elasticLoadBalancing", {}))
        if [mode.get("enabled") for mode in modes] != [True] * 3:
            yield f"{cluster.name}: the parts of Auto Mode disagree"


def logs_are_written_and_end(resources: Resources, environment: str) -> Iterator[str]:
    """Into groups that are there before: AWS would make some that never expire."""
    groups = {each.inputs["name"]: each for each in of(resources, "cloudwatch/LogGroup")}
    yield from (f"{each.name}: for ever" for each in groups.values() if not each.inputs.get("retentionInDays"))
    written: list[tuple[Resource, str]] = []
    for each in of(resources, "eks/Cluster"):
        written.append((each, f"/aws/eks/{each.inputs['name']}/cluster"))
        if not {"audit", "authenticator", "api"} <= {*each.inputs.get("enabledClusterLogTypes", [])}:
            yield f"{each.name}: no audit log"
    for each in of(resources, "rds/Instance"):
        kinds = each.inputs.get("enabledCloudwatchLogsExports", [])
        written += [(each, f"/aws/rds/instance/{each.inputs['identifier']}/{kind}") for kind in kinds]
    for writer, name in written:
        if name not in groups or groups[name].urn not in writer.depends_on:
            yield f"{writer.name}: {name} is not there before"


def roles_have_a_boundary(resources: Resources, environment: str) -> Iterator[str]:
    """Those of pipelines have none: what they may do is listed, and they are not of the names that infra/aws changes."""
    for role in of(resources, "iam/Role"):
        own = f"/mlops-{environment}-boundary"
        if not for_all([role]) and not str(role.inputs.get("permissionsBoundary")).endswith(own):
            yield f"{role.name}: no permissions boundary of its environment"
        if for_all([role]) and not role.inputs["name"].startswith("github-"):
            yield f"{role.name}: infra/aws could change it"


def boundaries_keep_environments_apart(resources: Resources, environment: str) -> Iterator[str]:
    """What is named or tagged for another one is denied, and what the account shares is pulled and signs."""
    boundaries = {each.inputs["name"]: policy(each) for each in of(resources, "iam/Policy")}
    for stage in stages(environment) if for_all(resources) else ():
        found = boundaries.get(f"mlops-{stage}-boundary", [])
        denied = [each for each in found if each["Effect"] == "Deny" and actions(each) == ["*"]]
        named = {
            arn.partition(":")[2] for each in denied if "Condition" not in each for arn in listed(each["Resource"])
        }
        tagged = [each.get("Condition", {}).get("StringEquals", {}) for each in denied if each["Resource"] == "*"]
        others = [each for each in stages(environment) if each != stage]
        wanted = {f":::mlops-{each}-*" for each in (*others, "state")}
        wanted |= {
            f"{part}mlops-{each}{rest}"
            for each in others
            for part, rest in ((":*/", ""), (":*/", "/*"), (":*:", ""), (":*:", "-*"))
        }
        yield from (f"{stage}: {end} is not denied" for end in wanted if not any(each.endswith(end) for each in named))
        for tag, values in {
            "environment": others,
            "eks:eks-cluster-name": [f"mlops-{each}" for each in others],
        }.items():
            if values and {f"aws:ResourceTag/{tag}": values} not in tagged:
                yield f"{stage}: what {tag} tells is another's is not denied"
        passed = [arn for each in found if "iam:passrole" in actions(each) for arn in listed(each["Resource"])]
        if not all(arn.rpartition("/")[2].startswith(f"mlops-{stage}-") for arn in passed):
            yield f"{stage}: passes roles of another environment"
        ours = {"StringEquals": {"aws:ResourceTag/environment": ["account"]}}
        if not any(each["Effect"] == "Deny" and "NotAction" in each and each["Condition"] == ours for each in found):
            yield f"{stage}: changes what the account shares"


def roles_trust_one(resources: Resources, environment: str) -> Iterator[str]:
    """A service, or what a token of GitHub says word for word."""
    for role in of(resources, "iam/Role"):
        for statement in policy(role, "assumeRolePolicy"):
            principal, condition = statement["Principal"], statement.get("Condition", {})
            kind, who = next(iter(principal.items())) if principal != "*" and len(principal) == 1 else ("", "")
            if kind == "Service" and who in _TRUSTED:
                continue
            claims = {key.rpartition(":")[2]: value for key, value in condition.get("StringEquals", {}).items()}
            wanted = {"aud", "sub"} | ({"job_workflow_ref"} if not role.name.endswith("-preview") else set())
            if kind != "Federated" or condition.keys() != {"StringEquals"} or claims.keys() != wanted:
                yield f"{role.name}: whoever may be it"
            elif any(mark in json.dumps(claims) for mark in "*?") or not all(claims.values()):
                yield f"{role.name}: claims that are not exact"
            else:
                yield from (f"{role.name}: a job that {fault}" for fault in _strangers(role.name, claims, environment))


def _strangers(role: str, claims: dict[str, Any], stack: str) -> Iterator[str]:
    """Besides the jobs of a role's own environment, in the workflows that act for its purpose."""
    stage, what = purpose(role)
    branch = ACCOUNT.settings(stack)["github"]["branch"]
    own = [f"environment:{stage}"] + (["pull_request"] if what == "preview" and stage != stages(stack)[-1] else [])
    own = [f"ref:refs/heads/{branch}"] if what == "watch" else own
    if [each.split(":", 2)[-1] for each in listed(claims["sub"])] != own:
        yield "is of another environment, or of none"
    if what != "preview":
        file = re.compile(rf"[\w.-]+/[\w.-]+/\.github/workflows/([\w-]+)\.yml@refs/heads/{re.escape(branch)}")
        found = [file.fullmatch(each) for each in listed(claims["job_workflow_ref"])]
        if {each.group(1) if each else "" for each in found} != WORKFLOWS.get(what):
            yield "another workflow runs"


def no_key_lives_long(resources: Resources, environment: str) -> Iterator[str]:
    yield from (f"{each.name}: {each.type}" for each in of(resources, *_FOR_EVER))


def _rights(resources: Resources) -> Iterator[tuple[str, dict[str, Any]]]:
    """What identities are allowed; a boundary allows nothing by itself."""
    for each in of(resources, "iam/RolePolicy", "iam/Policy"):
        if not each.name.endswith("-boundary"):
            yield from ((each.name, one) for one in policy(each) if one["Effect"] == "Allow")


def rights_are_named(resources: Resources, environment: str) -> Iterator[str]:
    known = {each.lower() for each in WILDCARDS}
    for name, statement in _rights(resources):
        yield from (f"{name}: {each}" for each in actions(statement) if {*"*?"} & {*each} and each not in known)
        if {"NotAction", "NotResource"} & statement.keys():
            yield f"{name}: all but what is named"
        passed = statement.get("Condition", {}).get("StringEquals", {}).get("iam:PassedToService")
        if "iam:passrole" in actions(statement) and (not passed or "*" in str(passed)):
            yield f"{name}: passes roles to any service"
    for each in of(resources, "iam/RolePolicyAttachment"):
        if not any(each.inputs["policyArn"].endswith(f":iam::aws:policy/{name}") for name in ATTACHED):
            yield f"{each.name}: a policy of which we do not know what it allows"
    for role in of(resources, "iam/Role"):
        if role.inputs.get("managedPolicyArns") or role.inputs.get("inlinePolicies"):
            yield f"{role.name}: rights that nobody looks at"


def _signs(resources: Resources, use: str) -> Resources:
    """Keys of KMS with which one signs: approvals, or deliveries."""
    keys = [each for each in of(resources, "kms/Key") if each.inputs.get("keyUsage") == "SIGN_VERIFY"]
    return [each for each in keys if each.name.endswith("-delivery") == (use == "delivery")]


def _signers(key: Resource) -> list[str]:
    """Whom alone a key's policy lets sign, whatever IAM says; empty: nobody in particular."""
    denied = [e for e in policy(key) if e["Effect"] == "Deny" and e["Principal"] == "*" and actions(e) == [_SIGN]]
    conditions = [each.get("Condition", {}) for each in denied]
    found = [each["ArnNotEquals"]["aws:PrincipalArn"] for each in conditions if each.keys() == {"ArnNotEquals"}]
    return sorted(who for each in found[:1] for who in listed(each))


def _arn(key: Resource) -> str:
    """As what is rendered has it."""
    return f":key/{key.name}"


def the_approver_alone_approves(resources: Resources, environment: str) -> Iterator[str]:
    deliveries = tuple(_arn(key) for key in _signs(resources, "delivery"))
    for name, statement in _rights(resources):
        if _SIGN in actions(statement):
            keys = listed(statement["Resource"])
            if name != "approver" and not (deliveries and all(each.endswith(deliveries) for each in keys)):
                yield f"{name}: may approve"
            if any(each.endswith("*") for each in keys):
                yield f"{name}: signs with any key"
    approvals = _signs(resources, "approval")
    for key in approvals:
        if [signer.rpartition("/")[2] for signer in _signers(key)] != [f"mlops-{key.name}-approver"]:
            yield f"{key.name}: signs for more than its environment's approver"
    for key in [each for each in of(resources, "kms/Key") if each.inputs.get("keyUsage") == "SIGN_VERIFY"]:
        if key.inputs.get("customerMasterKeySpec") != "ECC_NIST_P256":
            yield f"{key.name}: not the kind of key that we verify with"
    if for_all(resources) and {key.name for key in approvals} != {*stages(environment)}:
        yield "approval: not a key for each environment"
    yield from (f"{each.name}: a grant passes by all policies" for each in of(resources, "kms/Grant"))


def pipelines_sign_their_own_deliveries(resources: Resources, environment: str) -> Iterator[str]:
    """What deploys to an environment signs with its key; what builds, with that of the first one; nobody else with any."""
    roles = {each.name: each for each in of(resources, "iam/Role") if for_all([each])}
    if not roles:
        return
    first, *_ = stages(environment)
    wanted = {stage: {f"mlops-{stage}-deploy"} for stage in stages(environment)}
    wanted[first].add(f"mlops-{first}-build")
    keys = {purpose(key.inputs["description"])[0]: key for key in _signs(resources, "delivery")}
    yield from (f"{stage}: no key for its deliveries" for stage in wanted if stage not in keys)
    for stage, key in keys.items():
        own = [roles[name].inputs for name in wanted.get(stage, set()) if name in roles]
        if [who.partition(":role")[2] for who in _signers(key)] != sorted(
            f"{each['path']}{each['name']}" for each in own
        ):
            yield f"{key.name}: signs for others than {sorted(wanted.get(stage, set()))}"
    for name, statement in _rights(resources):
        if _SIGN in actions(statement):
            stage, _ = purpose(name)
            if name not in wanted.get(stage, set()):
                yield f"{name}: signs deliveries"
            elif stage in keys and not all(each.endswith(_arn(keys[stage])) for each in listed(statement["Resource"])):
                yield f"{name}: signs with a key that is not its own"


def images_are_built_once(resources: Resources, environment: str) -> Iterator[str]:
    """In the first environment, by its build: what the others run was proven there."""
    builds = [each.name for each in of(resources, "iam/Role") if for_all([each]) and purpose(each.name)[1] == "build"]
    first = [f"mlops-{stage}-build" for stage in stages(environment)[:1]] if for_all(resources) else []
    yield from (f"{name}: builds for another environment than the first" for name in builds if name not in first)
    for name, statement in _rights(resources):
        if _PUSH & {*actions(statement)} and name not in first:
            yield f"{name}: pushes images"


def pipelines_leave_data_alone(resources: Resources, environment: str) -> Iterator[str]:
    """Models, rows and predictions of an environment are its workloads'; a training and a promotion only find the cluster,
    and a watch reads models."""
    for name, statement in _rights(resources) if for_all(resources) else ():
        objects = [each for each in actions(statement) if re.fullmatch(r"s3:(?!getbucket)\w*object\w*", each)]
        stage, what = purpose(name)
        own = re.compile(rf"arn:[\w-]+:s3:::mlops-{stage}-\d+/models/\*")
        if what == "watch" and objects == ["s3:getobject"] and all(map(own.fullmatch, listed(statement["Resource"]))):
            continue
        if objects and not all(":::mlops-state-" in resource for resource in listed(statement["Resource"])):
            yield f"{name}: {', '.join(objects)} beyond the state's bucket"
        if what in ("train", "promote") and actions(statement) != ["eks:describecluster"]:
            yield f"{name}: {', '.join(actions(statement))}"


def keys_are_the_accounts(resources: Resources, environment: str) -> Iterator[str]:
    """Symmetric ones rotate; services use them for this account alone, and nobody else does by the key's own policy."""
    for key in of(resources, "kms/Key"):
        if key.inputs.get("keyUsage") != "SIGN_VERIFY" and key.inputs.get("enableKeyRotation") is not True:
            yield f"{key.name}: never rotates"
        for statement in [each for each in policy(key) if each["Effect"] == "Allow"]:
            who = statement["Principal"] if isinstance(statement["Principal"], dict) else {}
            service = who.keys() == {"Service"} and statement.get("Condition")
            if not service and not (who.keys() == {"AWS"} and str(who["AWS"]).endswith(":root")):
                yield f"{key.name}: for others"


def pods_have_their_own_role(resources: Resources, environment: str) -> Iterator[str]:
    associations = of(resources, "eks/PodIdentityAssociation")
    for role in of(resources, "iam/Role"):
        who = [each["Principal"] for each in policy(role, "assumeRolePolicy")]
        found = [a for a in associations if a.inputs["roleArn"].rpartition("/")[2] == role.inputs["name"]]
        if (_PODS in json.dumps(who)) != (len(found) == 1):
            yield f"{role.name}: {len(found)} workloads have it"
    for each in associations:
        if not each.inputs["roleArn"].endswith(f"/mlops-{environment}-{each.inputs['serviceAccount']}"):
            yield f"{each.name}: the role of another workload"


def data_is_protected(resources: Resources, environment: str) -> Iterator[str]:
    """Always in the account, else in staging and prod."""
    if not locked(resources, environment):
        return
    for each in of(resources, "s3/Bucket", "rds/Instance", "eks/Cluster", "kms/Key", "ecr/Repository"):
        if not each.protect:
            yield f"{each.name}: `pulumi destroy` deletes it"
    for each in of(resources, "s3/Bucket", "ecr/Repository"):
        if each.inputs.get("forceDestroy") or each.inputs.get("forceDelete"):
            yield f"{each.name}: is emptied with it"
    for each in of(resources, "rds/Instance", "eks/Cluster"):
        if each.inputs.get("deletionProtection") is not True:
            yield f"{each.name}: AWS would delete it"
    for instance in of(resources, "rds/Instance"):
        if instance.inputs.get("skipFinalSnapshot") is not False or not instance.inputs.get("finalSnapshotIdentifier"):
            yield f"{instance.name}: no last snapshot"
        if instance.inputs.get("backupRetentionPeriod", 0) < 7:
            yield f"{instance.name}: backups of less than a week"


def prod_survives_the_loss_of_a_zone(resources: Resources, environment: str) -> Iterator[str]:
    if environment != "prod":
        return
    yield from (f"{each.name}: no standby" for each in of(resources, "rds/Instance") if not each.inputs.get("multiAz"))
    out = [each.inputs["natGatewayId"] for each in of(resources, "ec2/Route") if each.inputs.get("natGatewayId")]
    if len({*out} & {each.id for each in of(resources, "ec2/NatGateway")}) < len(out):
        yield "network: a zone's gateway is in another one"


def images_stay_what_they_are(resources: Resources, environment: str) -> Iterator[str]:
    for repository in of(resources, "ecr/Repository"):
        if repository.inputs.get("imageTagMutability") != "IMMUTABLE":
            yield f"{repository.name}: a tag can move"
        if repository.inputs.get("imageScanningConfiguration", {}).get("scanOnPush") is not True:
            yield f"{repository.name}: not scanned"
    for lifecycle in of(resources, "ecr/LifecyclePolicy"):
        rules = json.loads(lifecycle.inputs["policy"])["rules"]
        if any(rule["selection"]["tagStatus"] != "untagged" for rule in rules):
            yield f"{lifecycle.name}: removes what an environment may name"


def somebody_is_told(resources: Resources, environment: str) -> Iterator[str]:
    """Of what Prometheus cannot see, and of the bill."""
    topics, alarms = of(resources, "sns/Topic"), of(resources, "cloudwatch/MetricAlarm")
    watched = {(*each.inputs["dimensions"].values(), each.inputs["metricName"]) for each in alarms}
    metrics = ("FreeStorageSpace", "CPUUtilization", "DatabaseConnections")
    wanted = {(e.inputs["identifier"], metric) for e in of(resources, "rds/Instance") for metric in metrics}
    gateways = of(resources, "ec2/NatGateway")
    wanted |= {(each.id, metric) for each in gateways for metric in ("ErrorPortAllocation", "PacketsDropCount")}
    yield from (f"{what}: nobody watches {metric}" for what, metric in sorted(wanted - watched))
    budgets = of(resources, "budgets/Budget")
    told = [(each, each.inputs.get("alarmActions") or []) for each in alarms]
    told += [(e, n.get("subscriberSnsTopicArns", [])) for e in budgets for n in e.inputs.get("notifications") or [{}]]
    names = {topic.inputs["name"] for topic in topics}
    yield from (f"{e.name}: tells nobody" for e, arns in told if not names & {arn.rpartition(":")[2] for arn in arns})
    if environment in PROTECTED and not budgets:
        yield "budget: none"
    publish = {service for each in of(resources, "sns/TopicPolicy") for service in _publishers(policy(each))}
    if topics and publish != {"cloudwatch.amazonaws.com", "budgets.amazonaws.com"}:
        yield f"topic: takes messages of {sorted(publish)}"


def _publishers(statements: Statements) -> list[str]:
    allowed = [each["Principal"] for each in statements if each["Effect"] == "Allow"]
    return [name for who in allowed for name in (listed(who["Service"]) if "Service" in who else ["anybody"])]


def programs_stay_in_their_account(resources: Resources, environment: str) -> Iterator[str]:
    providers = [each for each in resources if each.type == "pulumi:providers:aws"]
    for each in providers:
        tags = json.loads(each.inputs.get("defaultTags", "{}")).get("tags", {})
        if not {"project", "environment"} <= tags.keys():
            yield f"{each.name}: nobody knows whose its resources are"
        if len(json.loads(each.inputs.get("allowedAccountIds", "[]"))) != 1:
            yield f"{each.name}: takes any account"
    known = {each.urn for each in providers}
    for each in resources:
        if each.type.startswith("aws:") and each.provider.rpartition("::")[0] not in known:
            yield f"{each.name}: by another provider"


EVERYWHERE = (
    buckets_are_private, buckets_speak_tls, buckets_are_versioned, models_stay, everything_is_encrypted_with_our_key,
    nothing_is_open_to_everybody, nodes_and_database_are_in_private_subnets, the_cluster_answers_who_is_listed,
    the_database_answers_the_cluster, the_cluster_is_what_we_run, logs_are_written_and_end, roles_have_a_boundary,
    boundaries_keep_environments_apart, roles_trust_one, no_key_lives_long, rights_are_named, the_approver_alone_approves,
    pipelines_sign_their_own_deliveries, images_are_built_once, pipelines_leave_data_alone, keys_are_the_accounts,
    pods_have_their_own_role, data_is_protected, prod_survives_the_loss_of_a_zone, images_stay_what_they_are,
    somebody_is_told, programs_stay_in_their_account,
)  # fmt: skip


def violations(resources: Resources, environment: str) -> list[str]:
    return [f"{check.__name__}: {found}" for check in EVERYWHERE for found in check(resources, environment)]

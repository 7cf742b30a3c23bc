"""What the roles of infra/account and infra/aws may do, and who may be one of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from moto import mock_aws

from infra.account.components.github import ISSUER
from infra.account.outputs import PURPOSES
from infra.render import ACCOUNT, render
from mlops.environment import ROOT
from tests.infra.rights import (
    NO_CALL,
    NUMBER,
    REPOSITORY,
    STAGES,
    Call,
    Context,
    Moto,
    allowed,
    arn,
    holds,
    listed,
    made,
    matches,
    policies,
    statements,
)

YES, NO = True, False
BOUNDARY = arn("iam", "policy/mlops/mlops-dev-boundary")
OF_OTHERS = arn("iam", "policy/mlops/mlops-prod-boundary")
OF_DEV, OF_PROD = ({"aws:ResourceTag/environment": each} for each in ("dev", "prod"))
FOR_DEV = {"aws:RequestTag/environment": "dev"}
NEW = {"s3:if-none-match": "*"}
OF_ACCOUNT = {"aws:ResourceTag/environment": "account"}
BY_S3 = {"kms:ViaService": "s3.us-east-1.amazonaws.com"}
OF_DATABASE = {
    stage: {"aws:ResourceTag/aws:rds:primaryDBInstanceArn": arn("rds", f"db:mlops-{stage}")} for stage in STAGES
}
OF_STATE = {"kms:EncryptionContext:aws:s3:arn": arn("s3", f"mlops-state-{NUMBER}")}
FIRST, *_ = STAGES
PIPELINES = [f"{stage} {purpose}" for stage in STAGES for purpose in PURPOSES if purpose != "build" or stage == FIRST]
LOOKS = ("preview", "watch")
READ_STATE = (*LOOKS, "infrastructure", "deploy")
# Of the state's bucket: what is an environment's own, what a build leaves, and all that is kept of deliveries.
OWN = (
    "delivery/deployments/{}/00000001.json",
    "delivery/running/{}.json",
    ".pulumi/locks/organization/mlops/{}/1.json",
)
BUILT = ("attestations/d/built-1.json", "wheels/d.whl", "sboms/d.cdx.json")
KEPT = (*BUILT, "deployments/{}/00000001.json", "running/{}.json")
# The workflows that may be a role; a preview's may be any.
ACTS = {
    "infrastructure": ["deploy.yml"], "build": ["deliver.yml"], "deploy": ["deploy.yml"], "train": ["train.yml"],
    "promote": ["promote.yml", "rollback.yml"], "watch": ["watch.yml"],
}  # fmt: skip

# Role, call, on what, and whether it may; then more of the request's context. `dev/KEY` is in the bucket of dev.
CASES: list[tuple[Any, ...]] = [
    ("serving", "s3:ListBucket", "dev", YES),
    ("serving", "s3:GetObject", "dev/models/m/bundles/d/model.onnx", YES),
    ("serving", "s3:GetObject", "dev/access/keys.json", YES),
    ("serving", "s3:GetObject", "dev/data/rows.parquet", NO),
    ("serving", "s3:GetObject", "staging/models/m/bundles/d/model.onnx", NO),
    ("serving", "s3:PutObject", "dev/predictions/m/1", YES),
    ("serving", "s3:PutObject", "dev/outcomes/m/1", YES),
    ("serving", "s3:PutObject", "dev/replicas/1", YES),
    ("serving", "s3:PutObject", "dev/models/m/bundles/d/model.onnx", NO),
    ("serving", "s3:PutObject", "dev/models/m/attestations/d/1", NO),
    ("serving", "s3:GetObject", "dev/models/m/reports/d/card.html", YES),
    ("serving", "s3:PutObject", "dev/models/m/reports/d/card.html", NO),
    ("serving", "s3:PutObject", "dev/models/m/releases/2", NO, NEW),
    ("serving", "s3:PutObject", "dev/access/keys.json", NO),
    ("serving", "s3:DeleteObject", "dev/predictions/m/1", NO),
    ("serving", "kms:GenerateDataKey", "data of dev", YES),
    ("serving", "kms:Sign", "approval of dev", NO),
    ("serving", "secretsmanager:GetSecretValue", "rds!db-1-abcdef", NO),
    ("training", "s3:GetObject", "dev/data/rows.parquet", YES),
    ("training", "s3:GetObject", "dev/models/m/releases/1", YES),
    ("training", "s3:GetObject", "dev/access/keys.json", NO),
    ("training", "s3:GetObject", "dev/predictions/m/1", YES),
    ("training", "s3:GetObject", "dev/outcomes/m/1", YES),
    ("training", "s3:GetObject", "staging/predictions/m/1", NO),
    ("training", "s3:PutObject", "dev/models/m/retrainings/00000001.json", YES),
    ("training", "s3:DeleteObject", "dev/models/m/retrainings/00000001.json", NO),
    ("training", "s3:PutObject", "dev/models/m/bundles/d/model.onnx", YES),
    ("training", "s3:PutObject", "dev/models/m/attestations/d/1", YES),
    ("training", "s3:PutObject", "dev/models/m/reports/d/card.html", YES),
    ("training", "s3:PutObject", "dev/models/m/releases/2", NO, NEW),
    ("training", "s3:PutObject", "dev/data/rows.parquet", NO),
    ("training", "s3:PutObject", "dev/predictions/m/1", NO),
    ("training", "s3:PutObject", "dev/outcomes/m/1", NO),
    ("training", "s3:PutObject", "dev/mlflow/1", NO),
    ("training", "s3:PutObject", "staging/models/m/bundles/d/model.onnx", NO),
    ("training", "s3:DeleteObject", "dev/models/m/bundles/d/model.onnx", NO),
    ("training", "kms:Sign", "approval of dev", NO),
    ("training", "kms:Sign", "approval of prod", NO),
    ("tracking", "s3:GetObject", "dev/mlflow/1", YES),
    ("tracking", "s3:PutObject", "dev/mlflow/1", YES),
    ("tracking", "s3:DeleteObject", "dev/mlflow/1", YES),
    ("tracking", "s3:GetObject", "dev/models/m/bundles/d/model.onnx", NO),
    ("tracking", "s3:PutObject", "dev/models/m/bundles/d/model.onnx", NO),
    ("tracking", "kms:Sign", "approval of dev", NO),
    ("controller", "s3:GetObject", "dev/outcomes/m/1", YES),
    *(("controller", "s3:PutObject", f"dev/models/m/{each}/2", NO, NEW)
      for each in ("releases", "signed", "attestations/d", "bundles/d")),
    *(("controller", "s3:PutObject", f"dev/{each}/m/1", YES) for each in ("models/m/verdicts", "predictions", "damaged")),
    ("controller", "s3:PutObject", "dev/access/1", NO),
    ("controller", "s3:DeleteObject", "dev/predictions/m/1", YES),
    ("controller", "s3:DeleteObject", "dev/models/m/releases/1", NO),
    *(("controller", "kms:Sign", f"approval of {stage}", NO) for stage in STAGES),
    ("approver", "s3:GetObject", "dev/models/m/verdicts/r/1", YES),
    *(("approver", "s3:GetObject", f"dev/{each}/m/1", NO) for each in ("predictions", "outcomes", "data", "damaged")),
    ("approver", "s3:PutObject", "dev/models/m/releases/2", YES, NEW),
    ("approver", "s3:PutObject", "dev/models/m/releases/2", NO),
    ("approver", "s3:PutObject", "dev/models/m/attestations/d/1", YES),
    ("approver", "s3:PutObject", "dev/models/m/verdicts/r/result.html", YES),
    ("approver", "s3:DeleteObject", "dev/models/m/releases/1", NO),
    ("approver", "s3:PutObject", "staging/models/m/releases/2", NO, NEW),
    ("approver", "kms:Sign", "approval of dev", YES),
    ("approver", "kms:Sign", "approval of staging", NO),
    ("approver", "kms:Sign", "approval of prod", NO),
    ("approver", "kms:PutKeyPolicy", "approval of dev", NO),
    ("setup-bucket", "s3:PutObject", "dev/access/keys.json", YES),
    ("setup-bucket", "s3:GetObject", "dev/access/keys.json", YES),
    ("setup-bucket", "s3:PutObject", "dev/models/m/releases/2", NO, NEW),
    ("setup-bucket", "s3:GetObject", "dev/models/m/bundles/d/model.onnx", NO),
    ("setup-bucket", "kms:Sign", "approval of dev", NO),
    ("setup-keys", "kms:GetPublicKey", "approval of dev", YES),
    ("setup-keys", "kms:GetPublicKey", "approval of prod", NO),
    ("setup-keys", "kms:Sign", "approval of dev", NO),
    ("setup-keys", "s3:GetObject", "dev/access/keys.json", NO),
    ("setup-database", "secretsmanager:GetSecretValue", "rds!db-1-abcdef", YES),
    ("setup-database", "secretsmanager:GetSecretValue", "rds!db-2-abcdef", NO),
    ("setup-database", "kms:Decrypt", "data of dev", YES),
    ("setup-database", "kms:Decrypt", "data of staging", NO),
    ("setup-database", "s3:ListBucket", "dev", NO),
    ("dev preview", "s3:GetObject", "state/.pulumi/stacks/mlops/dev.json", YES),
    ("dev preview", "s3:GetObject", "state/.pulumi/stacks/mlops-account/shared.json", YES),
    ("dev preview", "s3:GetObject", "state/.pulumi/stacks/mlops/prod.json", NO),
    ("dev preview", "s3:GetObject", "dev/models/m/bundles/d/model.onnx", NO),
    ("dev preview", "kms:Decrypt", "state", YES),
    ("dev preview", "kms:Decrypt", "data of dev", NO),
    ("dev preview", "ec2:DescribeVpcs", "*", YES),
    ("dev preview", "eks:DescribeCluster", "cluster/mlops-dev", YES),
    ("dev preview", "secretsmanager:GetSecretValue", "rds!db-1-abcdef", NO),
    ("dev preview", "s3:PutObject", "state/.pulumi/stacks/mlops/dev.json", NO),
    ("dev preview", "s3:PutObject", "state/.pulumi/locks/organization/mlops/dev/1.json", NO),
    ("dev preview", "s3:PutObject", "dev/models/m/bundles/d/model.onnx", NO),
    ("dev preview", "s3:DeleteObject", "state/.pulumi/stacks/mlops/dev.json", NO),
    ("dev preview", "s3:PutBucketPolicy", "dev", NO),
    ("dev preview", "s3:DeleteBucket", "dev", NO),
    ("dev preview", "iam:CreateRole", "role/mlops/mlops-dev-new", NO, {"iam:PermissionsBoundary": BOUNDARY}),
    ("dev preview", "iam:PutRolePolicy", "role/mlops/mlops-dev-serving", NO),
    ("dev preview", "iam:AttachRolePolicy", "role/mlops/github-mlops-dev-preview", NO),
    ("dev preview", "iam:UpdateAssumeRolePolicy", "role/mlops/mlops-dev-serving", NO),
    ("dev preview", "kms:CreateKey", "*", NO, FOR_DEV),
    ("dev preview", "kms:Encrypt", "state", NO),
    ("dev preview", "kms:PutKeyPolicy", "data of dev", NO),
    ("dev preview", "kms:ScheduleKeyDeletion", "data of dev", NO),
    ("dev preview", "kms:Sign", "approval of dev", NO),
    ("dev preview", "ec2:CreateVpc", "*", NO),
    ("dev preview", "ec2:CreateTags", "vpc/vpc-1", NO, OF_DEV),
    ("dev preview", "ec2:DeleteVpc", "vpc/vpc-1", NO, OF_DEV),
    ("dev preview", "rds:DeleteDBInstance", "db:mlops-dev", NO),
    ("dev preview", "ecr:PutImage", "repository/mlops-app", NO),
    ("dev preview", "eks:CreateAccessEntry", "cluster/mlops-dev", NO),
    ("dev preview", "eks:DeleteCluster", "cluster/mlops-dev", NO),
    ("dev preview", "logs:DeleteLogGroup", "log-group:/mlops-dev/flows", NO),
    ("dev preview", "sns:DeleteTopic", "mlops-dev", NO),
    ("dev infrastructure", "iam:CreateRole", "role/mlops/mlops-dev-new", YES, {"iam:PermissionsBoundary": BOUNDARY}),
    ("dev infrastructure", "iam:CreateRole", "role/mlops/mlops-dev-new", NO),
    ("dev infrastructure", "iam:CreateRole", "role/mlops/mlops-dev-new", NO,
     {"iam:PermissionsBoundary": "arn:aws:iam::aws:policy/AdministratorAccess"}),
    ("dev infrastructure", "iam:CreateRole", "role/mlops/mlops-dev-new", NO, {"iam:PermissionsBoundary": OF_OTHERS}),
    ("dev infrastructure", "iam:PutRolePermissionsBoundary", "role/mlops/mlops-dev-serving", YES, {"iam:PermissionsBoundary": BOUNDARY}),
    ("dev infrastructure", "iam:PutRolePermissionsBoundary", "role/mlops/mlops-dev-serving", NO, {"iam:PermissionsBoundary": OF_OTHERS}),
    ("dev infrastructure", "iam:PutRolePermissionsBoundary", "role/mlops/mlops-prod-serving", NO, {"iam:PermissionsBoundary": BOUNDARY}),
    ("dev infrastructure", "iam:CreateRole", "role/mlops/mlops-prod-new", NO, {"iam:PermissionsBoundary": BOUNDARY}),
    ("dev infrastructure", "iam:DeleteRolePermissionsBoundary", "role/mlops/mlops-dev-serving", NO),
    ("dev infrastructure", "iam:CreatePolicyVersion", "policy/mlops/mlops-dev-boundary", NO),
    ("dev infrastructure", "iam:PutRolePolicy", "role/mlops/mlops-dev-serving", YES),
    ("dev infrastructure", "iam:PutRolePolicy", "role/mlops/github-mlops-dev-train", NO),
    ("dev infrastructure", "iam:UpdateAssumeRolePolicy", "role/mlops/github-mlops-prod-deploy", NO),
    ("dev infrastructure", "iam:CreateUser", "user/somebody", NO),
    ("dev infrastructure", "iam:PassRole", "role/mlops/mlops-dev-nodes", YES, {"iam:PassedToService": "eks.amazonaws.com"}),
    ("dev infrastructure", "iam:PassRole", "role/mlops/mlops-dev-nodes", NO, {"iam:PassedToService": "lambda.amazonaws.com"}),
    ("dev infrastructure", "ec2:CreateVpc", "*", YES),
    ("dev infrastructure", "ec2:CreateVpc", "*", NO, {"aws:RequestedRegion": "eu-west-1"}),
    ("dev infrastructure", "ec2:CreateSubnet", "vpc/vpc-1", YES, OF_DEV),
    ("dev infrastructure", "ec2:CreateSubnet", "vpc/vpc-1", NO, OF_PROD),
    ("dev infrastructure", "ec2:CreateRoute", "route-table/rtb-1", NO, OF_PROD),
    ("dev infrastructure", "ec2:CreateTags", "vpc/vpc-1", YES),
    ("dev infrastructure", "ec2:CreateTags", "vpc/vpc-1", NO, OF_PROD | FOR_DEV),
    ("dev infrastructure", "ec2:DeleteVpc", "vpc/vpc-1", YES, OF_DEV),
    ("dev infrastructure", "ec2:DeleteVpc", "vpc/vpc-1", NO, OF_PROD),
    ("dev infrastructure", "ec2:DeleteVpc", "vpc/vpc-1", NO),
    ("dev infrastructure", "ec2:AuthorizeSecurityGroupIngress", "security-group/sg-1", NO),
    ("dev infrastructure", "eks:DeleteCluster", "cluster/mlops-dev", YES),
    ("dev infrastructure", "eks:DeleteCluster", "cluster/mlops-dev2", NO),
    ("dev infrastructure", "rds:DeleteDBInstance", "db:mlops-dev", YES),
    ("dev infrastructure", "rds:DeleteDBInstance", "db:mlops-prod", NO),
    ("dev infrastructure", "s3:PutBucketPolicy", "dev", YES),
    ("dev infrastructure", "s3:PutBucketPolicy", "prod", NO),
    ("dev infrastructure", "s3:PutBucketPolicy", "state", NO),
    ("dev infrastructure", "s3:GetObject", "dev/models/m/bundles/d/model.onnx", NO),
    ("dev infrastructure", "s3:PutObject", "state/.pulumi/stacks/mlops-aws/dev.json", YES),
    ("dev infrastructure", "s3:PutObject", "state/.pulumi/stacks/mlops-aws/prod.json", NO),
    ("dev infrastructure", "s3:PutObject", "state/.pulumi/stacks/mlops-account/shared.json", NO),
    ("dev infrastructure", "kms:CreateKey", "*", YES, FOR_DEV),
    ("dev infrastructure", "kms:CreateKey", "*", NO),
    ("dev infrastructure", "kms:PutKeyPolicy", "data of dev", YES),
    ("dev infrastructure", "kms:PutKeyPolicy", "data of prod", NO),
    ("dev infrastructure", "kms:PutKeyPolicy", "approval of dev", NO),
    ("dev infrastructure", "kms:TagResource", "approval of prod", NO, FOR_DEV),
    ("dev infrastructure", "kms:ScheduleKeyDeletion", "state", NO),
    ("dev infrastructure", "kms:Sign", "approval of dev", NO),
    ("dev infrastructure", "s3:DeleteObject", "state/.pulumi/locks/organization/mlops-aws/dev/1.json", YES),
    ("dev infrastructure", "s3:DeleteObject", "state/.pulumi/locks/organization/mlops/dev/1.json", NO),
    *(("dev infrastructure", f"s3:{act}Object", f"state/delivery/{key}", NO, NEW) for act in ("Put", "Delete") for key in (
        "attestations/d/built-1.json", "deployments/dev/00000001.json", "deployments/prod/00000001.json",
        "running/prod.json")),
    *(("dev infrastructure", f"kms:{act}", f"delivery of {stage}", NO) for stage in STAGES for act in (
        "PutKeyPolicy", "ScheduleKeyDeletion")),
    ("dev infrastructure", "kms:TagResource", "delivery of dev", NO, FOR_DEV),
    ("dev infrastructure", "ecr:PutImage", "repository/mlops-app", NO),
    # Who reads the state reads how far deliveries came, in its own environment.
    *((f"{stage} {purpose}", "s3:ListBucket", "state", YES) for stage in STAGES for purpose in READ_STATE),
    *((f"{stage} {purpose}", "s3:GetObject", f"state/{key.format(stage)}", YES)
      for stage in STAGES for purpose in READ_STATE for key in ("delivery/attestations/d/built-1.json", *OWN)),
    *((f"{stage} {purpose}", "s3:GetObject", f"state/{key.format(other)}", NO)
      for stage, other in (("dev", "staging"), ("staging", "prod"), ("prod", "dev")) for purpose in READ_STATE for key in OWN),
    *((f"dev {purpose}", "s3:GetObject", "state/delivery/wheels/d.whl", NO) for purpose in READ_STATE),
    # What only looks writes nothing of it, and what trains or promotes does not even look.
    *((f"{stage} {looks}", f"s3:{act}Object", f"state/{key.format(stage)}", NO, NEW)
      for looks in LOOKS for stage in STAGES for act in ("Put", "Delete") for key in ("delivery/attestations/d/built-1.json", *OWN)),
    ("dev preview", "kms:GenerateDataKey", "state", NO),
    ("dev preview", "kms:PutKeyPolicy", "delivery of dev", NO),
    *((f"{stage} {purpose}", f"s3:{act}Object", f"state/delivery/{key.format(stage)}", NO, NEW)
      for stage in STAGES for purpose in ("train", "promote") for act in ("Get", "Put", "Delete") for key in KEPT),
    *((f"{stage} {purpose}", action, "state", NO)
      for stage in STAGES for purpose in ("train", "promote") for action in ("s3:ListBucket", "kms:Decrypt", "kms:GenerateDataKey")),
    *(("serving", f"s3:{act}Object", "state/delivery/attestations/d/built-1.json", NO, NEW) for act in ("Get", "Put")),
    *(("controller", f"s3:{act}Object", "state/delivery/attestations/d/built-1.json", NO, NEW) for act in ("Get", "Put")),
    *((f"{stage} infrastructure", f"s3:{act}Object", f"state/delivery/running/{other}.json", other == stage)
      for stage in STAGES for other in STAGES for act in ("Put", "Delete")),
    # Nobody writes twice what others rely on.
    *(("dev build", "s3:PutObject", f"state/delivery/{key}", NO) for key in BUILT),
    *((f"{stage} deploy", "s3:PutObject", f"state/delivery/{key}", NO) for stage in STAGES for key in (
        "attestations/d/withdrawn-1.json", f"deployments/{stage}/00000001.json")),
    # Of each key for deliveries, the signers.
    *((role, "kms:Sign", f"delivery of {stage}", role in (f"{stage} deploy", f"{FIRST} build") and stage in role)
      for role in (*PIPELINES, "serving", "training", "tracking", "controller", "approver", "dev boundary") for stage in STAGES),
    *((role, "kms:Sign", f"approval of {stage}", NO) for role in ("dev build", "dev deploy", "prod promote") for stage in STAGES),
    ("dev build", "kms:GetPublicKey", "delivery of dev", YES),
    ("dev build", "kms:PutKeyPolicy", "delivery of dev", NO),
    ("dev deploy", "kms:GetPublicKey", "delivery of dev", YES),
    ("dev deploy", "kms:PutKeyPolicy", "delivery of dev", NO),
    ("dev build", "ecr:GetAuthorizationToken", "*", YES),
    *(("dev build", f"ecr:{action}", "repository/mlops-app", YES) for action in (
        "BatchCheckLayerAvailability", "BatchGetImage", "CompleteLayerUpload", "GetDownloadUrlForLayer",
        "InitiateLayerUpload", "PutImage", "UploadLayerPart")),
    ("dev build", "ecr:BatchDeleteImage", "repository/mlops-app", NO),
    ("dev build", "ecr:PutImageTagMutability", "repository/mlops-app", NO),
    ("dev build", "ecr:PutImage", "repository/other", NO),
    ("dev build", "s3:ListBucket", "state", YES),
    *(("dev build", "s3:PutObject", f"state/delivery/{key}", YES, NEW) for key in BUILT),
    *(("dev build", "s3:GetObject", f"state/delivery/{key}", YES) for key in BUILT),
    *(("dev build", "s3:DeleteObject", f"state/delivery/{key}", NO) for key in BUILT),
    *(("dev build", f"s3:{act}Object", f"state/{key.format(stage)}", NO, NEW)
      for act in ("Get", "Put", "Delete") for stage in ("dev", "prod") for key in OWN),
    *(("dev build", f"s3:{act}Object", "state/.pulumi/stacks/mlops/dev.json", NO) for act in ("Get", "Put")),
    ("dev build", "s3:PutObject", "dev/models/m/bundles/d/model.onnx", NO),
    *(("dev build", f"kms:{act}", "state", may, OF_STATE if may else {}) for act in ("Decrypt", "GenerateDataKey") for may in (YES, NO)),
    ("dev build", "kms:Encrypt", "state", NO),
    ("dev build", "kms:GenerateDataKey", "data of dev", NO),
    ("dev build", "eks:DescribeCluster", "cluster/mlops-dev", NO),
    ("dev build", "iam:PutRolePolicy", "role/mlops/github-mlops-dev-build", NO),
    ("dev build", "sts:AssumeRole", "role/mlops/github-mlops-dev-deploy", NO),
    *((f"{stage} deploy", f"ecr:{action}", on, NO) for stage in STAGES for action, on in (
        ("BatchGetImage", "repository/mlops-app"), ("PutImage", "repository/mlops-app"),
        ("InitiateLayerUpload", "repository/mlops-app"), ("UploadLayerPart", "repository/mlops-app"),
        ("GetAuthorizationToken", "*"))),
    ("dev deploy", "eks:DescribeCluster", "cluster/mlops-dev", YES),
    ("dev deploy", "eks:DescribeCluster", "cluster/mlops-staging", NO),
    *((f"{stage} deploy", "s3:PutObject", f"state/delivery/{key}", YES, NEW) for stage in STAGES for key in (
        "attestations/d/passed-1.json", f"deployments/{stage}/00000001.json", f"running/{stage}.json")),
    *((f"{stage} deploy", "s3:PutObject", f"state/delivery/{key.format(other)}", NO, NEW)
      for stage in STAGES for other in STAGES if other != stage
      for key in ("deployments/{}/00000001.json", "running/{}.json")),
    *((f"{stage} deploy", "s3:DeleteObject", f"state/delivery/running/{other}.json", other == stage)
      for stage in STAGES for other in STAGES),
    *(("dev deploy", "s3:DeleteObject", f"state/delivery/{key}", NO) for key in (
        "attestations/d/withdrawn-1.json", "deployments/dev/00000001.json", "running/dev.json.json")),
    *(("dev deploy", f"s3:{act}Object", f"state/delivery/{key}", NO, NEW) for act in ("Get", "Put") for key in BUILT[1:]),
    ("prod deploy", "kms:GenerateDataKey", "state", YES),
    ("prod deploy", "s3:DeleteObject", "state/.pulumi/locks/organization/mlops-aws/prod/1.json", NO),
    ("prod deploy", "s3:PutObject", "state/.pulumi/stacks/mlops/prod.json", YES),
    ("prod deploy", "s3:PutObject", "state/.pulumi/stacks/mlops/dev.json", NO),
    ("prod deploy", "s3:PutObject", "state/.pulumi/stacks/mlops-aws/prod.json", NO),
    ("prod deploy", "s3:DeleteObject", "state/.pulumi/locks/organization/mlops/prod/1.json", YES),
    ("prod deploy", "s3:DeleteObject", "state/.pulumi/stacks/mlops/prod.json", NO),
    ("prod deploy", "s3:PutObject", "prod/models/m/releases/2", NO, NEW),
    ("prod deploy", "kms:Sign", "approval of prod", NO),
    ("dev train", "eks:DescribeCluster", "cluster/mlops-dev", YES),
    ("dev train", "eks:DescribeCluster", "cluster/mlops-prod", NO),
    ("dev train", "kms:Sign", "approval of dev", NO),
    ("dev train", "s3:PutObject", "dev/models/m/releases/2", NO, NEW),
    ("dev train", "s3:PutObject", "dev/models/m/bundles/d/model.onnx", NO),
    ("dev train", "s3:GetObject", "state/.pulumi/stacks/mlops/dev.json", NO),
    ("dev train", "ecr:PutImage", "repository/mlops-training", NO),
    # A model comes as an archive, and the controller takes it in.
    *((f"{stage} promote", "eks:DescribeCluster", f"cluster/mlops-{other}", other == stage)
      for stage in STAGES for other in STAGES),
    *((f"{stage} promote", "s3:ListBucket", other, NO, {"s3:prefix": "models/m/"}) for stage in STAGES for other in STAGES),
    *((f"{stage} promote", f"s3:{act}Object", f"{other}/models/m/{key}", NO, NEW)
      for stage in STAGES for other in STAGES for act in ("Get", "Put", "Delete")
      for key in ("bundles/d/model.onnx", "attestations/d/1", "releases/2")),
    ("staging promote", "s3:GetObject", "dev/data/rows.parquet", NO),
    *((f"{stage} promote", f"kms:{act}", f"data of {other}", NO)
      for stage in STAGES for other in STAGES for act in ("Decrypt", "GenerateDataKey")),
    ("staging promote", "s3:GetObject", "state/.pulumi/stacks/mlops/staging.json", NO),
    ("staging promote", "ecr:PutImage", "repository/mlops-app", NO),
    # A watch copies its environment's models, and writes nothing.
    *((f"{stage} watch", "s3:ListBucket", other, other == stage, {"s3:prefix": "models/"}) for stage in STAGES for other in STAGES),
    *((f"{stage} watch", f"s3:{act}Object", f"{other}/models/m/{key}", other == stage and act == "Get", NEW)
      for stage in STAGES for other in STAGES for act in ("Get", "Put", "Delete") for key in ("bundles/d/model.onnx", "releases/2")),
    *((f"{stage} watch", f"kms:{act}", f"data of {other}", other == stage and act == "Decrypt", BY_S3)
      for stage in STAGES for other in STAGES for act in ("Decrypt", "GenerateDataKey")),
    ("dev watch", "kms:Decrypt", "data of dev", NO),
    ("dev watch", "kms:Decrypt", "data of dev", NO, {"kms:ViaService": "rds.us-east-1.amazonaws.com"}),
    *(("dev watch", "s3:GetObject", f"dev/{key}", NO) for key in ("data/rows.parquet", "predictions/m/1", "access/keys.json", "mlflow/1")),
    ("dev watch", "eks:DescribeCluster", "cluster/mlops-dev", YES),
    ("dev watch", "eks:CreateAccessEntry", "cluster/mlops-dev", NO),
    ("dev watch", "iam:PutRolePolicy", "role/mlops/mlops-dev-serving", NO),
    ("dev watch", "secretsmanager:GetSecretValue", "rds!db-1-abcdef", NO),
    # The most that a role made by infrastructure can be, and nothing of another environment.
    *((f"{stage} boundary", action, on.format(other), other == stage, *more)
      for stage in STAGES for other in STAGES for action, on, *more in (
        ("s3:GetObject", "{}/models/m/bundles/d/model.onnx"), ("s3:PutObject", "{}/models/m/releases/2", NEW),
        ("s3:PutBucketPolicy", "{}"), ("s3:ListBucket", "{}"), ("eks:CreateAccessEntry", "cluster/mlops-{}"),
        ("eks:AssociateAccessPolicy", "access-entry/mlops-{}/role/1/a/b"), ("eks:DeleteCluster", "cluster/mlops-{}"),
        ("rds:DeleteDBInstance", "db:mlops-{}"), ("kms:Decrypt", "data of {}"), ("kms:PutKeyPolicy", "data of {}"),
        ("ec2:DeleteVpc", "vpc/vpc-1", {"aws:ResourceTag/environment": other}),
        ("ec2:DeleteVpc", "vpc/vpc-1", {"aws:ResourceTag/eks:eks-cluster-name": f"mlops-{other}"}),
        ("secretsmanager:GetSecretValue", "rds!db-2-abcdef", OF_DATABASE[other]),
        ("iam:PassRole", "role/mlops/mlops-{}-controller"), ("iam:PassRole", "role/mlops-{}-nodes"))),
    ("dev boundary", "s3:GetObject", "state/.pulumi/stacks/mlops/dev.json", NO),
    ("dev boundary", "s3:PutObject", "state/.pulumi/stacks/mlops/prod.json", NO),
    ("dev boundary", "kms:Decrypt", "state", NO),
    ("dev boundary", "kms:GetPublicKey", "approval of dev", YES),
    ("dev boundary", "ecr:BatchGetImage", "repository/mlops-app", YES, OF_ACCOUNT),
    ("dev boundary", "ecr:PutImage", "repository/mlops-app", NO, OF_ACCOUNT),
    ("dev boundary", "ecr:BatchDeleteImage", "repository/mlops-app", NO, OF_ACCOUNT),
    ("dev boundary", "s3:GetObject", "dev/models/m/bundles/d/model.onnx", YES),
    ("dev boundary", "iam:CreateUser", "user/somebody", NO),
    ("dev boundary", "iam:CreateRole", "role/mlops/mlops-dev-new", NO, {"iam:PermissionsBoundary": BOUNDARY}),
    ("dev boundary", "iam:UpdateAssumeRolePolicy", "role/mlops/mlops-prod-controller", NO),
    ("dev boundary", "iam:PassRole", "role/mlops/mlops-dev-nodes", YES),
    ("dev boundary", "iam:PassRole", "role/administrator", NO),
    ("dev boundary", "sts:AssumeRole", "role/administrator", NO),
    ("dev boundary", "organizations:LeaveOrganization", "*", NO),
    ("dev boundary", "kms:PutKeyPolicy", "data of dev", YES),
    ("dev boundary", "kms:PutKeyPolicy", "approval of prod", NO),
    ("dev boundary", "kms:UntagResource", "approval of prod", NO),
    ("dev boundary", "kms:Sign", "approval of prod", NO),
]  # fmt: skip

# What the policies of a bucket and a key deny, whatever a role may: action, on what, whether it is denied, context.
PLAIN = {"aws:SecureTransport": "false"}
DENIED: list[tuple[Any, ...]] = [
    ("s3:GetObject", "dev/models/m/bundles/d/model.onnx", NO),
    ("s3:GetObject", "dev/models/m/bundles/d/model.onnx", YES, PLAIN),
    ("s3:ListBucket", "dev", YES, PLAIN),
    ("s3:GetObject", "state/.pulumi/stacks/mlops/dev.json", YES, PLAIN),
    ("s3:DeleteObject", "dev/models/m/releases/1", YES),
    ("s3:DeleteObjectVersion", "dev/models/m/bundles/d/model.onnx", YES),
    ("s3:DeleteObject", "dev/predictions/m/1", NO),
    ("s3:PutObject", "dev/models/m/releases/2", YES),
    ("s3:PutObject", "dev/models/m/releases/2", NO, NEW),
    ("s3:PutObject", "dev/models/m/bundles/d/model.onnx", NO),
    *(("kms:Sign", f"approval of {stage}", NO, {"aws:PrincipalArn": arn("iam", f"role/mlops/mlops-{stage}-approver")})
      for stage in STAGES),
    *(("kms:Sign", "approval of prod", YES, {"aws:PrincipalArn": arn("iam", who)}) for who in (
        "root", "user/administrator", "role/administrator", "role/mlops/mlops-dev-approver", "role/mlops-prod-approver",
        "role/mlops/mlops-prod-training", "role/mlops/github-mlops-prod-deploy", "role/mlops/mlops-prod-approver2")),
    ("kms:GetPublicKey", "approval of prod", NO, {"aws:PrincipalArn": arn("iam", "role/administrator")}),
    *(("kms:Sign", f"delivery of {stage}", NO, {"aws:PrincipalArn": arn("iam", f"role/mlops/github-mlops-{stage}-{purpose}")})
      for stage in STAGES for purpose in ("build", "deploy") if (stage, purpose) in {(FIRST, "build"), (stage, "deploy")}),
    *(("kms:Sign", f"delivery of {stage}", YES, {"aws:PrincipalArn": arn("iam", who)}) for stage in ("dev", "prod") for who in (
        "root", "user/administrator", "role/administrator", f"role/mlops/mlops-{stage}-approver",
        f"role/github-mlops-{stage}-deploy", f"role/mlops/github-mlops-{stage}-deploy2", f"role/other/github-mlops-{stage}-deploy",
        f"role/mlops/github-mlops-{stage}-infrastructure", f"role/mlops/github-mlops-{stage}-promote",
        "role/mlops/github-mlops-staging-deploy", "role/mlops/github-mlops-prod-build")),
    ("kms:Sign", "delivery of prod", YES, {"aws:PrincipalArn": arn("iam", "role/mlops/github-mlops-dev-build")}),
    ("kms:Sign", "delivery of prod", YES, {"aws:PrincipalArn": arn("iam", "role/mlops/github-mlops-dev-deploy")}),
    ("kms:GetPublicKey", "delivery of prod", NO, {"aws:PrincipalArn": arn("iam", "role/administrator")}),
]  # fmt: skip
READS = ("BatchGet", "Describe", "Get", "List", "View")
LOOKED_AT = (
    "autoscaling", "budgets", "cloudwatch", "ec2", "ecr", "eks", "iam", "kms", "logs", "rds", "servicequotas", "sns",
)  # fmt: skip
# Why something allowed is a wildcard: actions (a pattern) on a resource, where the keys of its condition. ENV is an
# environment.
WILDCARDS: dict[str, tuple[str, ...]] = {
    "the boundary: a role may what its own policy says, too": ("not *iam:[*]* on *", "iam:*Instance* on *", "iam:GetRole on *"),
    "the account's administrators own its keys": ("kms:[*] on this key",),
    "services of AWS choose which": ("kms:GenerateDataKey[*] on this key", "kms:ReEncrypt[*] on this key"),
    "how things are set up, not what is in them; most take no resource": tuple(
        f"{service}:{verb}* on *" for service in LOOKED_AT for verb in READS
    ),
    "takes no resource": (
        "ecr:GetAuthorizationToken on *",
        "eks:CreateCluster on * where aws:RequestTag/environment",
        "iam:CreateServiceLinkedRole on *",
        "iam:CreateServiceLinkedRole on * where iam:AWSServiceName",
        "sns:Unsubscribe on *",
    ),
    "AWS gives the id, so a tag tells whose it is": (
        "ec2:* on * where aws:RequestedRegion, aws:ResourceTag/environment",
        "ec2:* on * where aws:ResourceTag/environment",
        "kms:*Key on * where aws:RequestTag/environment, aws:ResourceTag/environment",
        "kms:TagResource on * where aws:RequestTag/environment, aws:ResourceTag/environment",
        "kms:* on kms key/* where aws:ResourceTag/environment",
        "kms:Decrypt on kms key/* where aws:ResourceTag/environment, kms:ViaService",
    ),
    "a new rule of a group whose tag another statement checks": (
        "ec2:AuthorizeSecurityGroupIngress on ec2 security-group-rule/*",
    ),
    "AWS makes up the rest of the name": (
        "rds:* on rds og:default:*",
        "secretsmanager:* on secretsmanager secret:rds!db-*",
        *(f"eks:* on eks {part}/mlops-ENV/*" for part in ("access-entry", "addon", "podidentityassociation")),
    ),
    "what the programs name after their environment": (
        "* on cloudwatch alarm:mlops-ENV-*",
        "iam:* on iam role/mlops/mlops-ENV-*",
        "iam:*Role* on iam role/mlops/mlops-ENV-* where iam:PermissionsBoundary",
        "iam:PassRole on iam role/mlops/mlops-ENV-* where iam:PassedToService",
        "kms:*Alias on kms alias/mlops-ENV-* where aws:ResourceTag/environment",
        *(f"logs:* on logs log-group:{each}mlops-ENV/*" for each in ("/", "/aws/eks/", "/aws/rds/instance/")),
        "logs:* on logs log-group:/mlops-ENV/flows:*",
    ),
    "the three images": ("ecr:* on ecr repository/mlops-*",),
    "folders of the bucket, and all of it for the controller to read": (
        *(f"s3:GetObject on s3 mlops-ENV/{each}*" for each in ("", "models/")),
        *(f"s3:PutObject on s3 mlops-ENV/models/*/{each}/*" for each in (
            "attestations", "bundles", "forgotten", "releases", "reports", "retrainings", "signed", "verdicts")),
        *(f"s3:[GP]* on s3 mlops-ENV/{each}/*" for each in ("access", "data")),
        *(f"s3:[DGP]* on s3 mlops-ENV/{each}/*" for each in ("damaged", "mlflow", "outcomes", "predictions", "replicas")),
    ),
    "files of an environment in Pulumi's state, and what the account's stack exports": (
        "s3:GetObject on s3 mlops-state/.pulumi/stacks/*/ENV.json*",
        "s3:GetObject on s3 mlops-state/.pulumi/stacks/mlops-account/*",
        *(f"s3:[GP]* on s3 mlops-state/.pulumi/{folder}/{project}/ENV{rest}" for project in ("mlops", "mlops-aws")
          for folder, rest in (("stacks", ".json*"), ("history", "/*"), ("backups", "/*"))),
        *(f"s3:[DGP]* on s3 mlops-state/.pulumi/locks/organization/{each}/ENV/*" for each in ("mlops", "mlops-aws")),
        "s3:GetObject on s3 mlops-state/.pulumi/locks/*/ENV/*",
    ),
    "what is built and attested is named by its hash": tuple(
        f"s3:{action} on s3 mlops-state/delivery/{each}/*{where}"
        for each in ("attestations", "wheels", "sboms")
        for action, where in (("GetObject", ""), ("PutObject", " where s3:if-none-match"))
    ),
    "deployments of an environment are numbered": (
        "s3:GetObject on s3 mlops-state/delivery/deployments/ENV/*",
        "s3:PutObject on s3 mlops-state/delivery/deployments/ENV/* where s3:if-none-match",
    ),
}  # fmt: skip
# Findings of parliament (patterns) that are no mistakes.
PARLIAMENT = {
    "RESOURCE_STAR *": "WILDCARDS gives each its reason",
    "RESOURCE_POLICY_PRIVILEGE_ESCALATION *": "who sets a bucket up could change who reads it; no other role can",
    "RESOURCE_MISMATCH *'ec2:AuthorizeSecurityGroupIngress'*": "two statements: for the group, and for its new rule",
}
RIGHT = {
    "aud": "sts.amazonaws.com",
    "sub": "repo:acme/ml:environment:prod",
    "job_workflow_ref": "acme/ml/.github/workflows/deploy.yml@refs/heads/main",
}
WITH_IDS = {"sub": "repo:acme@1/ml@2:environment:prod"}
WORKFLOW = "acme/ml/.github/workflows/{}@refs/{}".format
# What a token says otherwise than the right one, and whether it may deploy to prod.
TOKENS: dict[str, tuple[Context, bool]] = {
    "the right one": ({}, YES),
    "another repository": ({"sub": "repo:acme/other:environment:prod"}, NO),
    "a fork": ({"sub": "repo:mallory/ml:environment:prod"}, NO),
    "a repository whose name begins so": ({"sub": "repo:acme/ml-2:environment:prod"}, NO),
    "another environment": ({"sub": "repo:acme/ml:environment:staging"}, NO),
    "an environment whose name begins so": ({"sub": "repo:acme/ml:environment:prod-2"}, NO),
    "a pull request": ({"sub": "repo:acme/ml:pull_request"}, NO),
    "a branch without the environment": ({"sub": "repo:acme/ml:ref:refs/heads/main"}, NO),
    "other case": ({"sub": "repo:Acme/ML:environment:prod"}, NO),
    "ids that are not asked for": (WITH_IDS, NO),
    "another audience": ({"aud": "https://github.com/acme"}, NO),
    "another workflow": ({"job_workflow_ref": WORKFLOW("train.yml", "heads/main")}, NO),
    "the workflow that calls it": ({"job_workflow_ref": WORKFLOW("deliver.yml", "heads/main")}, NO),
    "a workflow whose name ends so": ({"job_workflow_ref": WORKFLOW("my-deploy.yml", "heads/main")}, NO),
    "a workflow in a folder": ({"job_workflow_ref": WORKFLOW("x/deploy.yml", "heads/main")}, NO),
    "another branch's workflow": ({"job_workflow_ref": WORKFLOW("deploy.yml", "heads/mine")}, NO),
    "a tag's workflow": ({"job_workflow_ref": WORKFLOW("deploy.yml", "tags/main")}, NO),
    "a pull request's workflow": ({"job_workflow_ref": WORKFLOW("deploy.yml", "pull/1/merge")}, NO),
    "another repository's workflow": (
        {"job_workflow_ref": "mallory/ml/.github/workflows/deploy.yml@refs/heads/main"}, NO),
}  # fmt: skip
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SERVICES = {"pods.eks.amazonaws.com", "eks.amazonaws.com", "ec2.amazonaws.com", "vpc-flow-logs.amazonaws.com"}


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    with pytest.MonkeyPatch.context() as monkeypatch, mock_aws():
        yield Moto(monkeypatch)


def named(case: tuple[Any, ...]) -> str:
    return " ".join({YES: "yes", NO: "no"}[word] if isinstance(word, bool) else str(word) for word in case)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_role_may_do_its_work_and_no_more(case: tuple[Any, ...], moto: Moto) -> None:
    role, action, on, may, *more = case
    call = Call(role, action, on, *more)
    assert allowed(call.statements, action, call.resource, call.context) == may
    if not matches(NO_CALL, action):
        assert moto.allows(call) == may


def test_every_role_that_has_rights_is_asked_about() -> None:
    of_pipelines = {f"github-mlops-{role.replace(' ', '-')}" for role in PIPELINES}
    asked = {Call(role, action, on).role_name for role, action, on, *_ in CASES}
    assert policies().keys() - asked == {"mlops-dev-flows"}
    assert {name for name in policies() if name.startswith("github-")} == of_pipelines


@pytest.mark.parametrize("case", DENIED, ids=named)
def test_the_policy_of_a_bucket_or_key_denies_what_no_role_may(case: tuple[Any, ...]) -> None:
    action, on, denied, *more = case
    call = Call("dev boundary", action, on, *more)
    everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    assert allowed([everything, *call.denied], action, call.resource, call.context) != denied


def test_what_looks_only_reads() -> None:
    of_previews = [each for name, found in policies().items() if name.endswith(LOOKS) for each in found]
    actions = {action for each in of_previews for action in listed(each["Action"])}
    reads = re.compile(rf"[a-z0-9]+:({'|'.join(READS)})\w*\*?")
    assert {action for action in actions if not reads.fullmatch(action)} == {"kms:Decrypt"}
    assert not any(action.startswith("secretsmanager:") for action in actions)
    for stage in STAGES:  # with those of the state, the one other folder
        preview, watch = (policies()[f"github-mlops-{stage}-{each}"] for each in LOOKS)
        assert watch[: len(preview)] == preview
        assert [each["Action"] for each in watch[len(preview) :]] == ["s3:GetObject", "kms:Decrypt"]


def allowed_wildcards() -> set[str]:
    found = set()
    for resource in made("policy", "rolePolicy", "bucketPolicy", "topicPolicy", "key"):
        for each in statements(resource.inputs["policy"]):
            keys = sorted({key for condition in each.get("Condition", {}).values() for key in condition})
            where = f" where {', '.join(keys)}" if keys and "Principal" not in each else ""
            actions = [f"not {', '.join(each['NotAction'])}"] if "NotAction" in each else listed(each["Action"])
            for action in actions if each["Effect"] == "Allow" else []:
                for there in listed(each["Resource"]):
                    place = "this key" if resource.type.startswith("aws:kms/") else short(there)
                    if "*" in f"{action}{place}":
                        found.add(f"{action} on {place}{where}")
    return found


def short(there: str) -> str:
    there = re.sub(r"^arn:aws:(\w+):[\w-]*:\d*:", r"\1 ", there.replace(f"-{NUMBER}", ""))
    return re.sub(rf"\b({'|'.join(STAGES)})\b", "ENV", there)


def excuses(wildcard: str, excuse: str) -> bool:
    (action, place), (pattern, there) = wildcard.split(" on "), excuse.split(" on ")
    return place == there and fnmatchcase(action, pattern)


def test_every_wildcard_has_a_reason_and_every_reason_a_wildcard() -> None:
    found = allowed_wildcards()
    excused = {reason: {each for each in found for excuse in those if excuses(each, excuse)}
               for reason, those in WILDCARDS.items()}  # fmt: skip
    assert found - set().union(*excused.values()) == set()
    assert [reason for reason, those in excused.items() if not those] == []


def test_policies_are_as_small_as_aws_takes_them() -> None:
    def length(policy: str) -> int:
        return len(json.dumps(json.loads(policy), separators=(",", ":")))

    inline = {each.inputs["role"]: length(each.inputs["policy"]) for each in made("rolePolicy")}
    trusts = {each.inputs["name"]: length(each.inputs["assumeRolePolicy"]) for each in made("role")}
    boundaries = [length(each.inputs["policy"]) for each in made("policy")]
    assert max(inline.values()) < 10_240 - 500  # longer names must fit, too
    assert max(trusts.values()) < 2048 - 500
    assert max(boundaries) < 6144 - 7 * 420  # as many again of seven more environments must fit


def trust(role: str, changes: Context | None = None) -> dict[str, Any]:
    rendered = render("shared", REPOSITORY | (changes or {}), project=ACCOUNT)
    [found] = [
        each for each in rendered.of_aws if each.inputs.get("name") == role and "assumeRolePolicy" in each.inputs
    ]
    [statement] = statements(found.inputs["assumeRolePolicy"])
    return statement


def passes(statement: dict[str, Any], claims: Context) -> bool:
    assert (statement["Effect"], statement["Action"]) == ("Allow", "sts:AssumeRoleWithWebIdentity")
    return holds(statement, {f"{ISSUER}:{claim}": value for claim, value in claims.items()})


@pytest.mark.parametrize("token", TOKENS)
def test_prod_is_deployed_by_the_one_right_token(token: str) -> None:
    said, may = TOKENS[token]
    assert passes(of_prod(), RIGHT | said) == may


@cache
def of_prod(subject: str = "") -> dict[str, Any]:
    return trust("github-mlops-prod-deploy", {"github.subject": subject} if subject else None)


def test_a_token_that_leaves_a_claim_out_passes_nowhere() -> None:
    assert not any(passes(of_prod(), {k: v for k, v in RIGHT.items() if k != claim}) for claim in RIGHT)


def test_a_subject_with_ids_is_asked_for_its_ids() -> None:
    statement = of_prod("repo:acme@1/ml@2")
    assert passes(statement, RIGHT | WITH_IDS)
    assert not passes(statement, RIGHT)
    assert not passes(statement, RIGHT | {"sub": "repo:acme@1/ml@3:environment:prod"})


def test_nobody_else_can_be_one_of_the_roles() -> None:
    pull_request = "repo:acme/ml:pull_request"
    for role in made("role"):
        [statement] = statements(role.inputs["assumeRolePolicy"])
        if "Federated" not in statement["Principal"]:
            assert set(statement["Principal"]) == {"Service"}
            assert statement["Principal"]["Service"] in SERVICES
            continue
        _, _, stage, purpose = role.inputs["name"].split("-")
        subjects = [f"repo:acme/ml:environment:{stage}"]
        subjects += [pull_request] if purpose == "preview" and stage != "prod" else []
        subjects = ["repo:acme/ml:ref:refs/heads/main"] if purpose == "watch" else subjects
        wanted: dict[str, Any] = {"aud": RIGHT["aud"], "sub": subjects}
        if purpose != "preview":
            wanted["job_workflow_ref"] = [WORKFLOW(file, "heads/main") for file in ACTS[purpose]]
        assert statement["Principal"] == {"Federated": arn("iam", "openidconnectprovider/github")}
        assert statement["Condition"] == {"StringEquals": {f"{ISSUER}:{key}": value for key, value in wanted.items()}}
        assert role.inputs["maxSessionDuration"] == (5400 if purpose in ("infrastructure", "deploy", "train") else 3600)


@cache
def trusts() -> dict[tuple[str, str], dict[str, Any]]:
    """By environment and purpose."""
    found = {}
    for role in made("role"):
        if role.inputs["name"].startswith("github-"):
            _, _, stage, purpose = role.inputs["name"].split("-")
            [found[stage, purpose]] = statements(role.inputs["assumeRolePolicy"])
    return found


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_job_can_be_the_roles_that_its_workflow_names_in_its_environment(stage: str, file: Path) -> None:
    acting = {purpose for purpose in ACTS if purpose != "build" or stage == FIRST}
    variables = {each: f"AWS_ROLE_{each}_{stage}" if each == "watch" else f"AWS_ROLE_{each}" for each in acting}
    named = {each for each, name in variables.items() if f"vars.{name.upper()} " in file.read_text("utf-8")}
    on_main = {"sub": f"repo:acme/ml:environment:{stage}", "job_workflow_ref": WORKFLOW(file.name, "heads/main")}
    may = {role for role, trusted in trusts().items() if passes(trusted, RIGHT | on_main)}
    assert may == {(stage, purpose) for purpose in (named | {"preview"}) - {"watch"}}
    assert named == {purpose for purpose in acting if file.name in ACTS[purpose]}
    on_a_branch = on_main | {"job_workflow_ref": WORKFLOW(file.name, "heads/mine")}
    of_a_pull_request = on_a_branch | {"sub": "repo:acme/ml:pull_request"}
    assert {role for role, trusted in trusts().items() if passes(trusted, RIGHT | on_a_branch)} == {(stage, "preview")}
    of_no_environment = on_main | {"sub": "repo:acme/ml:ref:refs/heads/main"}
    watches = {(each, "watch") for each in STAGES if "watch" in named}
    assert {role for role, trusted in trusts().items() if passes(trusted, RIGHT | of_no_environment)} == watches
    elsewhere = of_no_environment | {"sub": "repo:acme/ml:ref:refs/heads/mine"}
    assert not any(passes(trusted, RIGHT | elsewhere) for trusted in trusts().values())
    looks = {(each, "preview") for each in STAGES[:-1]}
    assert {role for role, trusted in trusts().items() if passes(trusted, RIGHT | of_a_pull_request)} == looks


def test_every_workflow_that_may_be_a_role_is_there() -> None:
    assert {file for files in ACTS.values() for file in files} <= {file.name for file in WORKFLOWS}


@pytest.mark.skipif(not shutil.which("parliament"), reason="needs parliament: pip install parliament 'setuptools<81'")
def test_parliament_finds_nothing(tmp_path: Path) -> None:
    for role, found in policies().items():
        (tmp_path / f"{role}.json").write_text(json.dumps({"Version": "2012-10-17", "Statement": found}))
    run = subprocess.run(["parliament", "--directory", tmp_path, "--json"], capture_output=True, text=True)
    findings = [json.loads(line) for line in run.stdout.splitlines()]
    said = {f"{each['issue']} {each['detail']}": each["location"] for each in findings}
    assert {text: where for text, where in said.items() if not matches([*PARLIAMENT], text)} == {}
    assert [pattern for pattern in PARLIAMENT if not any(fnmatchcase(text, pattern) for text in said)] == [], run.stderr

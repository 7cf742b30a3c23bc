"""aws-actions/configure-aws-credentials: notes the role in the forge."""

import json
import os
import sys

role, region = os.environ["ROLE"], os.environ["REGION"]
if not role or not region:
    sys.exit("Input required and not supplied: role-to-assume, aws-region")
asked = {"role": role, "region": region, "run": os.environ["GITHUB_RUN_ID"], "job": os.environ["GITHUB_JOB"]}
with open(os.environ["FORGE_ROLES"], "a") as roles:
    roles.write(json.dumps(asked) + "\n")
given = {
    "AWS_REGION": region,
    "AWS_DEFAULT_REGION": region,
    "AWS_ACCESS_KEY_ID": "forge",
    "AWS_SECRET_ACCESS_KEY": "forge",
}
with open(os.environ["GITHUB_ENV"], "a") as env:
    env.writelines(f"{name}={value}\n" for name, value in given.items())

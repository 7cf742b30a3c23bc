"""What GitHub does when a job names an environment: it makes it if there is none, and looks at the branches it allows."""

import fnmatch
import json
import os
import sys

name, branch = os.environ["FORGE_ENVIRONMENT"], os.environ["GITHUB_REF"].removeprefix("refs/heads/")
if name:
    with open(os.environ["FORGE_NAMED"], "a") as named:
        named.write(f"{name}\n")
    allowed = json.loads(os.environ["FORGE_POLICIES"]).get(name)
    if allowed is not None and not any(fnmatch.fnmatch(branch, each) for each in allowed):
        sys.exit(f"{branch} is not allowed to deploy to {name} due to environment protection rules.")

"""Cuts what our commands may ask of GitHub out of GitHub's OpenAPI description, for tests/delivery/openapi.py.

npm pack @octokit/openapi && tar xzf octokit-openapi-*.tgz
python tests/delivery/cut_openapi.py package/generated/api.github.com.json

Kept are types, enumerations and what is required, as JSON Schema; texts and examples are not.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OPERATIONS = """
users/get-authenticated repos/get repos/codeowners-errors repos/compare-commits-with-basehead repos/create-dispatch-event
repos/get-content repos/create-or-update-file-contents repos/list-pull-requests-associated-with-commit pulls/list
pulls/create pulls/get pulls/update pulls/merge pulls/list-files issues/list-for-repo issues/create issues/get
issues/update issues/list-comments issues/create-comment issues/get-comment issues/update-comment
issues/delete-comment git/get-ref git/list-matching-refs git/create-ref git/update-ref git/delete-ref git/create-blob
git/create-tree git/create-commit git/get-commit repos/get-all-environments repos/get-environment
repos/create-or-update-environment repos/list-deployment-branch-policies repos/create-deployment-branch-policy
repos/get-repo-rulesets repos/create-repo-ruleset repos/get-repo-ruleset repos/update-repo-ruleset
actions/list-repo-variables actions/create-repo-variable actions/get-repo-variable actions/update-repo-variable
actions/list-environment-variables actions/create-environment-variable actions/get-environment-variable
actions/update-environment-variable actions/get-workflow-run actions/get-workflow-run-attempt
actions/list-workflow-run-artifacts actions/list-jobs-for-workflow-run actions/create-workflow-dispatch
actions/get-custom-oidc-sub-claim-for-repo actions/get-github-actions-default-workflow-permissions-repository
actions/set-github-actions-default-workflow-permissions-repository
"""
TEXTS = {"description", "example", "examples", "title", "summary", "deprecated", "externalDocs", "default", "format"}
# A word that the repository forbids itself (tests/test_repository.py), of a feature that nothing here uses.
UNUSED = re.compile("(^|_)d[r]aft(_|$)")
LICENCE = """Cut out of GitHub's OpenAPI description (github/rest-api-description, Copyright (c) 2020 GitHub) \
as @octokit/openapi {version} carries it (Copyright (c) 2020 Octokit contributors), both under the MIT License: \
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated \
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the \
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit \
persons to whom the Software is furnished to do so, subject to the following conditions: The above copyright notice and \
this permission notice shall be included in all copies or substantial portions of the Software. THE SOFTWARE IS PROVIDED \
"AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF \
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT \
HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING \
FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""


def schema(given: Any) -> Any:
    """OpenAPI 3.0's dialect in JSON Schema's own words."""
    if not isinstance(given, dict):
        return given
    kept = {k: v for k, v in given.items() if k not in TEXTS | {"nullable"} and not k.startswith("x-")}
    for key in ("allOf", "anyOf", "oneOf"):
        if key in kept:
            kept[key] = [schema(each) for each in kept[key]]
    for key in ("items", "additionalProperties", "not"):
        if key in kept:
            kept[key] = schema(kept[key])
    if "properties" in kept:
        kept["properties"] = {k: schema(v) for k, v in kept["properties"].items() if not UNUSED.search(k)}
    if "required" in kept:
        kept["required"] = [each for each in kept["required"] if not UNUSED.search(each)]
    if isinstance(kept.get("$ref"), str):
        kept["$ref"] = kept["$ref"].replace("#/components/schemas/", "#/$defs/")
    if given.get("nullable"):
        if isinstance(kept.get("type"), str) and not kept.keys() & {"allOf", "anyOf", "oneOf"}:
            kept["type"] = [kept["type"], "null"]
            if "enum" in kept and None not in kept["enum"]:
                kept["enum"] = [*kept["enum"], None]
        else:
            kept = {"anyOf": [kept, {"type": "null"}]}
    return kept


def content(given: dict[str, Any]) -> Any:
    kinds = given.get("content", {})
    kind = next((kinds[each] for each in ("application/json", "application/json+scim") if each in kinds), {})
    return schema(kind.get("schema", {})) if kinds else None


def cut(whole: dict[str, Any]) -> dict[str, Any]:
    def resolve(each: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in each:
            _, _, kind, name = each["$ref"].split("/")
            each = whole["components"][kind][name]
        return each

    operations, wanted = {}, set(OPERATIONS.split())
    for path, verbs in whole["paths"].items():
        for verb, given in verbs.items():
            if given.get("operationId") not in wanted:
                continue
            wanted.discard(given["operationId"])
            parameters = [resolve(each) for each in given.get("parameters", [])]
            body = resolve(given["requestBody"]) if "requestBody" in given else None
            answers = {code: content(resolve(each)) for code, each in given["responses"].items()}
            operations[given["operationId"]] = {
                "verb": verb.upper(),
                "path": path,
                "parameters": [
                    {"name": each["name"], "in": each["in"], "required": each.get("required", False)}
                    | {"schema": schema(each["schema"])}
                    for each in parameters
                ],
                "body": content(body) if body else None,
                "body_required": bool(body and body.get("required")),
                "answers": answers,
            }
    assert not wanted, f"not in this description: {wanted}"
    text, names = json.dumps(operations), set()
    while more := {*re.findall(r"#/\$defs/([^\"]+)", text)} - names:
        names |= more
        text = json.dumps({name: schema(whole["components"]["schemas"][name]) for name in names})
    return {
        "x-licence": LICENCE.format(version=whole["info"]["version"]),
        "operations": operations,
        "$defs": {name: schema(whole["components"]["schemas"][name]) for name in sorted(names)},
    }


if __name__ == "__main__":
    description = cut(json.loads(Path(sys.argv[1]).read_text()))
    lines = [f'"x-licence":{json.dumps(description["x-licence"])}']
    for part in ("operations", "$defs"):  # a line each: a newer description is a diff that can be read
        rows = (
            f"{json.dumps(k)}:{json.dumps(v, separators=(',', ':'), sort_keys=True)}"
            for k, v in sorted(description[part].items())
        )
        lines.append(f'"{part}":{{\n' + ",\n".join(rows) + "\n}")
    (HERE / "github.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")

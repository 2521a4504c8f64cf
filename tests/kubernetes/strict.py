"""What an API server with strict field validation, KubeRay's operator and Kueue would say of an object.

Custom resources against their CRDs, with every object closed to unknown fields; pods in them, and all other kinds,
against Kubernetes' own schemas; then the rules that schemas do not hold.
"""

import functools
import gzip
import json
from pathlib import Path

import jsonschema
import kubernetes_validate

from dist_sft.kubernetes.rules import broken_rules

VERSION = "1.34"
"""Of Kubernetes."""

SCHEMAS = Path(__file__).parent / "schemas"


def complaints(made):
    """Everything wrong with an object, each with its place; [] for one that would be accepted."""
    api, kind = made["apiVersion"], made["kind"]
    if not (SCHEMAS / schema_file(api, kind)).exists():
        return core(made)
    found = [f"{error.json_path}: {error.message}" for error in validator(api, kind).iter_errors(made)]
    found += core({"apiVersion": "v1", "kind": "ConfigMap", "metadata": made.get("metadata", {})})
    for template in pod_templates(made.get("spec", {})):
        found += core({"apiVersion": "v1", "kind": "Pod", **template})
    return found or list(broken_rules(made))  # rules are for values of the right types


def core(made):
    try:
        kubernetes_validate.validate(made, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{made['kind']} {'.'.join(map(str, error.path))}: {error.message}"]
    return []


def pod_templates(value):
    """Every pod template in a spec, wherever it stands."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("template", "submitterPodTemplate"):
                yield inner
            else:
                yield from pod_templates(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pod_templates(inner)


def schema_file(api, kind):
    return f"{api.replace('/', '_')}_{kind}.json.gz"


@functools.cache
def validator(api, kind):
    schema = json.loads(gzip.decompress((SCHEMAS / schema_file(api, kind)).read_bytes()))
    return jsonschema.Draft202012Validator(closed(schema))


def closed(schema):
    """An OpenAPI schema as JSON Schema in which an object has no fields but those that are named."""
    schema = {key: inner for key, inner in schema.items() if key not in ("default", "format")}
    if schema.pop("x-kubernetes-int-or-string", False):
        return {"type": ["integer", "string"]}
    if "properties" in schema:
        schema["properties"] = {name: closed(inner) for name, inner in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            schema[key] = closed(schema[key])
    if schema.pop("nullable", False) and "type" in schema:
        schema["type"] = [schema["type"], "null"]
    return schema

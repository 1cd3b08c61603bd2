"""Schemas of objects: Kubernetes' own, as the pinned Pulumi provider carries them, and those of the vendored CRDs.

Stricter than the API server, which drops in silence a field that it does not know.
"""

import functools
import json
from typing import Any

import jsonschema

from infra.config import ROOT
from infra.platform import kuberay

_SOURCE = ROOT / "scripts" / "tools" / "pulumi-kubernetes" / "schema.json"


@functools.cache
def _source() -> dict[str, Any]:
    return json.loads(_SOURCE.read_text())


def validate(manifest: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError for what is not the Kubernetes object that it says it is."""
    _validator(manifest["apiVersion"], manifest["kind"]).validate(manifest)


@functools.cache
def _validator(version: str, kind: str) -> jsonschema.Draft202012Validator:
    resource = _source()["resources"][f"kubernetes:{version if '/' in version else f'core/{version}'}:{kind}"]
    definitions: dict[str, Any] = {}
    schema = _object(resource["inputProperties"], [], definitions)
    return jsonschema.Draft202012Validator({**schema, "$defs": definitions})


def _object(properties: dict[str, Any], required: list[str], definitions: dict[str, Any]) -> dict[str, Any]:
    known = {name: _value(schema, definitions) for name, schema in properties.items()}
    return {"type": "object", "properties": known, "required": required, "additionalProperties": False}


def _value(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """One of Pulumi's property types as JSON schema; what it refers to is added to the definitions."""
    if "$ref" in schema:
        token = schema["$ref"].removeprefix("#/types/")
        name = token.replace("/", "-")
        if name not in definitions:
            definitions[name] = {}  # for types that contain themselves
            found = _source()["types"].get(token, {})
            if "properties" in found:
                definitions[name] = _object(found["properties"], found.get("required", []), definitions)
        return {"$ref": f"#/$defs/{name}"}
    if "oneOf" in schema:
        return {"anyOf": [_value(choice, definitions) for choice in schema["oneOf"]]}
    nested = {key: _value(schema[key], definitions) for key in ("items", "additionalProperties") if key in schema}
    return {key: schema[key] for key in ("type", "const") if key in schema} | nested


@functools.cache
def custom(manifests: str, name: str, version: str = "v1") -> jsonschema.Draft202012Validator:
    """Of a CRD in one of the files in infra/platform/manifests."""
    found = {crd["metadata"]["name"]: crd for crd in kuberay.manifests(manifests)}[name]
    schema = next(v for v in found["spec"]["versions"] if v["name"] == version)["schema"]["openAPIV3Schema"]
    strict = _strict(schema)
    strict["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(strict)


def _strict(schema: Any) -> Any:
    """A CRD's schema as JSON schema that refuses unknown fields."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result

"""Schemas of objects: Kubernetes' own, as the pinned Pulumi provider carries them, and those of the vendored CRDs.

Stricter than the API server, which drops in silence a field that it does not know. The rules of a CRD that are written
in CEL are not looked at.
"""

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema

from infra.config import ROOT
from infra.observability import prometheus
from infra.platform import kuberay

_SOURCE = ROOT / "scripts" / "tools" / "pulumi-kubernetes" / "schema.json"
_CRDS = (kuberay.MANIFESTS, prometheus.MANIFESTS, Path(__file__).parent / "crds")
_METADATA = "#/types/kubernetes:meta/v1:ObjectMeta"


@functools.cache
def _source() -> dict[str, Any]:
    return json.loads(_SOURCE.read_text())


def validate(manifest: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError for what is not the Kubernetes object that it says it is, LookupError for a
    kind of which there is no schema here.
    """
    _validator(manifest["apiVersion"], manifest["kind"]).validate(manifest)


@functools.cache
def _validator(version: str, kind: str) -> jsonschema.Draft202012Validator:
    definitions: dict[str, Any] = {}
    resource = _source()["resources"].get(f"kubernetes:{version if '/' in version else f'core/{version}'}:{kind}")
    if resource:
        schema = _object(resource["inputProperties"], [], definitions)
    else:
        schema = _strict(_crd_versions()[version, kind])
        schema["properties"]["metadata"] = _value({"$ref": _METADATA}, definitions)
    return jsonschema.Draft202012Validator({**schema, "$defs": definitions})


@functools.cache
def _crd_versions() -> dict[tuple[str, str], dict[str, Any]]:
    """The schemas of the vendored CRDs, by apiVersion and kind."""
    lists = [json.loads(path.read_text()) for directory in _CRDS for path in directory.glob("*-crds.json")]
    return {
        (f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]): version["schema"][
            "openAPIV3Schema"
        ]
        for found in lists
        for crd in found["items"]
        for version in crd["spec"]["versions"]
        if version["served"]
    }


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

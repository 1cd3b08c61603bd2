"""The policies of the pack. What they look for is in the modules beside this, as functions of type and properties."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pulumi_policy import (
    Policy,
    PolicyConfigSchema,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
    StackValidationArgs,
    StackValidationPolicy,
)

from infra.policy import encryption, endpoints, gpus, images, load_balancers, runtime_env, tags
from infra.policy.resources import Resource, plain

CONFIG = Path(__file__).with_name("config.json")
_NAMES: dict[str, Any] = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_NUMBER: dict[str, Any] = {"type": "integer", "minimum": 0}


def _each(rule: Callable[..., Iterator[str]]) -> Callable[[ResourceValidationArgs, ReportViolation], None]:
    """A rule for every resource, with the policy's config as keywords: what is wrong, why, and the fix."""

    def validate(args: ResourceValidationArgs, report: ReportViolation) -> None:
        resource = Resource(args.resource_type, plain(args.props), args.urn)
        for message in rule(resource, **(args.get_config() or {})):
            report(message, None)

    return validate


def _all(rule: Callable[..., Iterator[tuple[str, str]]]) -> Callable[[StackValidationArgs, ReportViolation], None]:
    """A rule for a whole stack: which resource, and the message."""

    def validate(args: StackValidationArgs, report: ReportViolation) -> None:
        resources = [
            Resource(
                found.resource_type,
                plain(found.props),
                found.urn,
                {key: [source.urn for source in of] for key, of in found.property_dependencies.items()},
            )
            for found in args.resources
        ]
        for urn, message in rule(resources, **(args.get_config() or {})):
            report(message, urn)

    return validate


def is_passed_over(kind: str) -> bool:
    """Megabytes in which there is nothing to find: what is in a ConfigGroup comes by itself."""
    return kind.startswith("kubernetes:") and kind.endswith((":CustomResourceDefinition", ":ConfigGroup"))


POLICIES: list[Policy] = [
    ResourceValidationPolicy(
        "required-tags",
        "All that AWS bills carries the tags by which one knows whose it is.",
        _each(tags.required_tags),
        config_schema=PolicyConfigSchema({"tags": _NAMES}, ["tags"]),
    ),
    ResourceValidationPolicy(
        "no-public-endpoint-in-production",
        "The Kubernetes API of a production stack is private.",
        _each(endpoints.public_endpoint),
        config_schema=PolicyConfigSchema({"stacks": _NAMES}, ["stacks"]),
    ),
    ResourceValidationPolicy(
        "allowed-gpu-families",
        "Instances with GPUs are of families that somebody has agreed to pay for.",
        _each(gpus.allowed_families),
        config_schema=PolicyConfigSchema({"families": _NAMES}, ["families"]),
    ),
    StackValidationPolicy(
        "gpu-cap",
        "A stack may start no more GPUs than its cap.",
        _all(gpus.over_cap),
        config_schema=PolicyConfigSchema(
            {"most": _NUMBER, "stacks": {"type": "object", "additionalProperties": _NUMBER}}, ["most", "stacks"]
        ),
    ),
    ResourceValidationPolicy(
        "no-mutable-images",
        "Images, charts and machine images are named by what does not move.",
        _each(images.mutable_images),
    ),
    ResourceValidationPolicy(
        "no-foreign-code",
        "Ray installs and downloads no code when it starts: all of it is in the image.",
        _each(runtime_env.foreign_code),
    ),
    StackValidationPolicy(
        "public-load-balancers",
        "What the internet reaches has TLS, and asks for a key.",
        _all(load_balancers.open_to_all),
    ),
    ResourceValidationPolicy(
        "encryption",
        "What is stored is encrypted.",
        _each(encryption.unencrypted),
    ),
]


def initial_config() -> dict[str, Any]:
    """The values in config.json, of which `--policy-pack-config` may replace some. Types the engine checks."""
    config = json.loads(CONFIG.read_text())
    schemas = {policy.name: policy.config_schema.properties for policy in POLICIES if policy.config_schema}
    for name, values in config.items():
        if unknown := values.keys() - schemas[name] if name in schemas else {name}:
            known = ", ".join(schemas.get(name, schemas))
            sys.exit(f"error: {CONFIG}: {unknown.pop()} is not known there; fix: use one of {known}")
    return config

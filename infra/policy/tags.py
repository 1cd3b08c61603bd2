"""Tags that everything carries: who answers for it, who pays, what it is for."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from infra.policy.resources import UNKNOWN, Resource, at, objects


def required_tags(resource: Resource, tags: Sequence[str]) -> Iterator[str]:
    """Where tags are missing. A provider gives its own to all that it makes, but not to what AWS starts by itself from
    a launch template, or Karpenter from a class.
    """
    for place, given in _places(resource):
        missing = [] if given is UNKNOWN else [tag for tag in tags if not at(given, tag)]
        if missing:
            yield (
                f"{place}: has no {' and no '.join(missing)}, and a bill or an incident would be nobody's; "
                "fix: set cluster.tags in the stack file, and pass eks.tags.all here"
            )


def _places(resource: Resource) -> Iterator[tuple[str, Any]]:
    if resource.kind == "pulumi:providers:aws":
        default = resource.at("defaultTags")
        # Of providers Pulumi encodes what is no string.
        yield "defaultTags.tags", at(json.loads(default) if isinstance(default, str) else default, "tags")
    if resource.kind == "aws:ec2/launchTemplate:LaunchTemplate":
        given = {item.get("resourceType"): item.get("tags") for item in objects(resource.at("tagSpecifications"))}
        for made in ("instance", "volume"):
            yield f"tagSpecifications of {made}s", given.get(made)
    if resource.is_kubernetes("EC2NodeClass"):
        yield "spec.tags", resource.at("spec", "tags")

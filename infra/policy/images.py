"""Images, charts and machine images that mean the same tomorrow as today."""

import re
from collections.abc import Iterator
from typing import Any

from infra.policy.resources import Resource, walk

_SAYS = "pods that start tomorrow may run something else, and a rollback would not bring it back"
_VERSION = re.compile(r"(^|[^0-9.])\d+\.\d+\.\d+($|[^0-9.])")
_HASH = re.compile(r"(^|[^0-9a-zA-Z])[0-9a-f]{7,64}$")


def mutable_images(resource: Resource) -> Iterator[str]:
    """Images without a digest, a whole version or a hash; charts without a version; tags that may be moved."""
    if resource.kind == "aws:ecr/repository:Repository" and resource.at("imageTagMutability") != "IMMUTABLE":
        yield f"imageTagMutability: lets a tag be moved: {_SAYS}; fix: set IMMUTABLE"
    elif resource.is_kubernetes("Release", "Chart"):
        yield from _chart(resource.props)
    elif resource.kind.startswith("kubernetes:"):
        for path, value in walk(resource.props):
            if re.search(r"ontainers\.\d+\.image$", path) and isinstance(value, str) and is_mutable(value):
                yield f"{path} = {value}: {_SAYS}; fix: name a digest, a whole version (1.2.3) or a commit"
            if path.endswith(".alias") and resource.is_kubernetes("EC2NodeClass") and str(value).endswith("@latest"):
                yield f"{path} = {value}: nodes that start tomorrow may run something else; fix: name a release"


def _chart(props: dict[str, Any]) -> Iterator[str]:
    version = props.get("version")
    if not isinstance(version, str) or not re.fullmatch(r"v?\d+\.\d+\.\d+([-+].+)?", version):
        yield f"version = {version}: another release of the chart, another cluster; fix: name a whole version (1.2.3)"
    for path, value in walk(props.get("values")):
        if path.rpartition(".")[2] == "tag" and isinstance(value, str) and value and is_mutable(f"image:{value}"):
            yield f"values.{path} = {value}: {_SAYS}; fix: name a whole version (1.2.3), or leave the chart's own"


def is_mutable(image: str) -> bool:
    """Whether the image's name tells that what it stands for will change: no tag, `latest`, `1.2`, a branch."""
    last = image.rpartition("/")[2]
    tag = last.partition(":")[2]
    return "@" not in last and not _VERSION.search(tag) and not _HASH.search(tag)

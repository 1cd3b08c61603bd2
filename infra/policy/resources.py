"""Resources as rules read them: some of their properties are known only when `up` has made others.

Pulumi puts this directory before the standard library, so no module here may have the name of one there.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from pulumi_policy.proxy import UnknownValueError


class Unknown:
    """In place of a value that is there, but not known yet. `up` asks the policies again, and knows it."""


UNKNOWN: Final = Unknown()


class Resource(NamedTuple):
    kind: str
    """Pulumi's type, as aws:sqs/queue:Queue or kubernetes:apps/v1:Deployment."""
    props: dict[str, Any]
    urn: str = "urn:pulumi:stack::blueprint::type::name"
    depends: Mapping[str, Collection[str]] = {}
    """By property, the URNs of what its value comes from."""

    @property
    def stack(self) -> str:
        return self.urn.split(":")[2]

    def is_kubernetes(self, *kinds: str) -> bool:
        """Whether it is an object of one of these kinds, of whatever API version."""
        return self.kind.startswith("kubernetes:") and self.kind.rpartition(":")[2] in kinds

    def at(self, *path: str) -> Any:
        return at(self.props, *path)


def plain(value: Any) -> Any:
    """Properties as dictionaries and lists, with UNKNOWN where pulumi_policy's own would raise."""
    if isinstance(value, Mapping):
        return {key: _item(value, key) for key in value}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_item(value, index) for index in range(len(value))]
    return value


def _item(values: Any, key: Any) -> Any:
    try:
        return plain(values[key])
    except UnknownValueError:
        return UNKNOWN


def at(value: Any, *path: str) -> Any:
    """What is there by these keys: None where one is missing, UNKNOWN where what should have it is."""
    for key in path:
        if not isinstance(value, dict):
            return value if value is UNKNOWN else None
        value = value.get(key)
    return value


def objects(value: Any) -> list[dict[str, Any]]:
    """Of a list, or of a single one, the objects that are known."""
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, dict)]


def strings(value: Any) -> list[str]:
    """Of a list, or of a single one, the strings that are known."""
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a value, with where it is: `containers.0.image`."""
    yield path, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from walk(item, f"{path}.{key}" if path else str(key))

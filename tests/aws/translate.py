"""A Pulumi program as a Terraform document, so that the real AWS provider can judge what the program asks for.

Pulumi's own AWS provider is the Terraform provider behind a bridge, which renames: camelCase for snake_case, plurals
for collections, objects for blocks that occur once. This goes the way back, by the provider's schema. Outputs of mocked
resources are marks that survive whatever a program does with strings, and become references in the document. What has
no counterpart is an error that names it: nothing is left out in silence.

Not Terraform's, and not here: `protect`, `retainOnDelete`, `deleteBeforeReplace`, `aliases`. They are the engine's.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pulumi
from pulumi.runtime import mocks, rpc

from infra.config import PROJECT

PROVIDER = "registry.terraform.io/hashicorp/aws"

TYPES = {
    "aws:lb/loadBalancer:LoadBalancer": "aws_lb",
    "aws:lb/targetGroup:TargetGroup": "aws_lb_target_group",
    "aws:iam/openIdConnectProvider:OpenIdConnectProvider": "aws_iam_openid_connect_provider",
}
"""Tokens that the rule of `terraform_type` does not find."""
WITHOUT_MODULE = {"ec2", "index"}
"""Modules that Terraform's names leave out. Left out of others, the names of some would be those of other resources."""
AUTONAMED = {"aws_s3_bucket": "bucket", "aws_eks_node_group": "node_group_name"}
"""Where the property that Pulumi makes up from the resource's name is not `name`."""
SCALARS = {"string", "number", "bool"}
IDENTITY = {"id", "arn", "name"}
"""Always references, also when the program gave the value: who uses them waits for the resource."""
RENAMED_RESULTS = {"aws_region": {"region": "name"}}
"""Results of data sources by the names that a newer provider has given them."""
NEWER = {("aws_eks_cluster", "deletionProtection"): "6.10"}
"""Properties that this provider does not know yet, with the release that brought them."""


class Untranslatable(Exception):
    """The program asks for something that has no place in a Terraform document."""


class Shape(NamedTuple):
    """What a value looks like, in the provider's schema."""

    kind: str
    """string, number, bool, map, list, set or object."""
    element: "Shape | None" = None
    fields: Mapping[str, "Field"] = {}
    complete: bool = False
    """An object that is the value of an attribute: Terraform wants all of its fields, if only as null."""


class Field(NamedTuple):
    name: str
    shape: Shape
    settable: bool = True
    computed: bool = False
    single: bool = False
    """A list of at most one, in place of which Pulumi has that one."""


class Schema:
    """Of one version of the provider, as `terraform providers schema -json` prints it."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        schemas = document["provider_schemas"][PROVIDER]
        self._resources = schemas["resource_schemas"]
        self._data = schemas["data_source_schemas"]
        self.provider = _block(schemas["provider"]["block"])

    def resource(self, token: str) -> tuple[str, Shape]:
        return self._find(token, self._resources)

    def data_source(self, token: str) -> tuple[str, Shape]:
        return self._find(token, self._data)

    @staticmethod
    def _find(token: str, known: Mapping[str, Any]) -> tuple[str, Shape]:
        name = terraform_type(token, known)
        return name, _block(known[name]["block"])


def terraform_type(token: str, known: Mapping[str, Any]) -> str:
    """The type of the resource or data source that Pulumi calls `token`."""
    if token in TYPES:
        return TYPES[token]
    package, module, name = token.split(":")
    module = module.partition("/")[0]
    name = re.sub(r"^get_|_v2$", "", _snake(name))
    candidates = [f"{package}_{module}_{name}", *([f"{package}_{name}"] if module in WITHOUT_MODULE else [])]
    for candidate in candidates:
        if candidate in known:
            return candidate
    raise Untranslatable(f"{token}: the provider has no {' or '.join(candidates)}; its name belongs into TYPES")


def _block(block: Mapping[str, Any]) -> Shape:
    fields = {}
    for name, attribute in block.get("attributes", {}).items():
        settable = bool(attribute.get("optional") or attribute.get("required"))
        fields[name] = Field(name, _attribute(attribute["type"]), settable, attribute.get("computed", False))
    for name, nested in block.get("block_types", {}).items():
        inner = _block(nested["block"])
        many = nested["nesting_mode"] != "single"
        shape = Shape(nested["nesting_mode"], inner) if many else inner
        fields[name] = Field(name, shape, single=nested.get("max_items") == 1)
    return Shape("object", fields=fields)


def _attribute(kind: Any) -> Shape:
    if isinstance(kind, str):
        return Shape(kind)
    name, inner = kind
    if name == "object":
        return Shape("object", fields={key: Field(key, _attribute(of)) for key, of in inner.items()}, complete=True)
    return Shape(name, _attribute(inner))


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _plural(name: str) -> str:
    if re.search(r"[^sui]s$", name):
        return name
    if re.search(r"[^aeiou]y$", name):
        return name[:-1] + "ies"
    return name + ("es" if re.search(r"(s|x|z|ch|sh)$", name) else "s")


def _by_pulumis_names(fields: Mapping[str, Field]) -> dict[str, Field]:
    plurals = {_camel(_plural(name)): of for name, of in fields.items() if of.shape.kind in {"list", "set"}}
    return plurals | {_camel(name): of for name, of in fields.items()}


def _mark(reference: str) -> str:
    """Printable ASCII that json.dumps leaves alone."""
    return f"@<{reference}>@"


def _marks(value: Any) -> Iterator[str]:
    yield from re.findall("@<(.+?)>@", json.dumps(value))


def _with_references(value: Any) -> Any:
    """Marks as references, and what looks like a reference in the program's own strings as text."""
    if isinstance(value, str):
        text, *pairs = re.split("@<(.+?)>@", value)
        result = _literal(text)
        for reference, text in zip(pairs[::2], pairs[1::2], strict=True):
            result += "${" + reference + "}" + _literal(text)
        return result
    if isinstance(value, list):
        return [_with_references(item) for item in value]
    if isinstance(value, dict):
        return {_with_references(key): _with_references(item) for key, item in value.items()}
    return value


def _literal(text: str) -> str:
    if "@<" in text or ">@" in text:
        raise Untranslatable(f"{text!r}: a part of the output of a resource, which is known after `up` only")
    text = text.replace("${", "$${").replace("%{", "%%{")
    return re.sub(r"[$%]$", lambda last: f'${{"{last[0]}"}}', text)  # or it would escape the reference behind it


def _outputs(at: str, shape: Shape, inputs: Any) -> Any:
    """What a program reads: its own inputs, and marks for what only the provider knows."""
    if shape.kind == "object":
        result = {}
        for name, of in shape.fields.items():
            inner = _known_later(f"{at}.{name}", of)
            if inner is None:
                continue
            if of.shape.kind not in {"list", "set"}:
                result[_camel(name)] = inner
            elif of.single:
                result[_camel(name)] = inner[0]
            else:
                # The schema does not tell of all lists that Pulumi has the one element in place of them: both.
                result |= {_camel(name): inner[0], _camel(_plural(name)): inner}
        return _merged(result, inputs or {})
    return inputs


def _known_later(at: str, of: Field) -> Any:
    kind, element = of.shape.kind, of.shape.element
    if kind in SCALARS:
        return _mark(at) if of.computed else None
    if kind == "object":
        return _outputs(at, of.shape, None) or None
    if kind == "map" or element is None:
        return None
    first = f"{at}[0]" if kind == "list" else f"tolist({at})[0]"
    if element.kind in SCALARS:
        return [_mark(first)] if of.computed else None
    if kind == "set":
        return None  # of objects: nothing there can be pointed at
    computed = {name: inner._replace(computed=inner.computed or of.computed) for name, inner in element.fields.items()}
    inside = _outputs(first, element._replace(fields=computed), None)
    return [inside] if inside else None


def _merged(computed: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(computed)
    for name, value in given.items():
        if isinstance(value, dict) and isinstance(computed.get(name), dict) and not rpc.is_rpc_secret(value):
            result[name] = _merged(computed[name], value)
        elif value is not None:
            result[name] = value
    return result


@dataclass
class Translation:
    """The AWS half of a program."""

    resources: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """By type and label."""
    data: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    provider: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    newer: set[str] = field(default_factory=set)
    """`type.property` of NEWER, which the document does not have."""

    def document(self) -> dict[str, Any]:
        document = {
            "resource": self.resources,
            "data": self.data,
            "output": {name: {"value": value, "sensitive": True} for name, value in self.outputs.items()},
        }
        # Terraform takes an empty block for a mistake.
        return _with_references({name: content for name, content in document.items() if content})

    def addresses(self) -> set[str]:
        return {f"{kind}.{label}" for kind, labelled in self.resources.items() for label in labelled}


class _Provider(mocks.Mocks):
    """Stands in for Pulumi's AWS provider: writes down what it is asked for."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.written = Translation()
        self.problems: list[str] = []

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        if args.typ == "pulumi:providers:aws":
            self._configure(args.inputs)
        elif args.custom and args.resource_id:
            self.problems.append(f"{args.typ} {args.name}: imports {args.resource_id}, which is not the program's own")
        elif args.custom:
            try:
                return self._write(args)
            except Untranslatable as problem:
                self.problems.append(str(problem))
        return f"{args.name}-id", args.inputs

    def _write(self, args: mocks.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        if not args.typ.startswith("aws:"):
            raise Untranslatable(f"{args.typ} {args.name}: not of the AWS provider")
        kind, shape = self.schema.resource(args.typ)
        label = _label(args.name)
        body = self._body(args.inputs, shape, kind)
        named = AUTONAMED.get(kind, "name")
        if named in shape.fields and shape.fields[named].settable and not {named, f"{named}_prefix"} & set(body):
            body[named] = f"{args.name}-{hashlib.sha256(f'{kind}{args.name}'.encode()).hexdigest()[:7]}"
        labelled = self.written.resources.setdefault(kind, {})
        if label in labelled:
            raise Untranslatable(f"{kind}.{label}: two resources of this name")
        labelled[label] = body
        outputs = _outputs(f"{kind}.{label}", shape, args.inputs)
        identity = {name: _mark(f"{kind}.{label}.{name}") for name in {*IDENTITY, named} & {*shape.fields, "id"}}
        return identity["id"], outputs | {_camel(name): mark for name, mark in identity.items()}

    def call(self, args: mocks.MockCallArgs) -> Any:
        try:
            kind, shape = self.schema.data_source(args.token)
        except Untranslatable as problem:
            self.problems.append(str(problem))
            raise
        body = self._body(args.args, shape, kind)
        label = f"{kind.removeprefix('aws_')}_{hashlib.sha256(json.dumps(body).encode()).hexdigest()[:7]}"
        self.written.data.setdefault(kind, {})[label] = body
        at = f"data.{kind}.{label}"
        results: dict[str, Any] = {"id": _mark(f"{at}.id")}
        for name, of in shape.fields.items():
            if of.shape == Shape("string"):
                results[_camel(name)] = _mark(f"{at}.{name}")
            elif of.shape.kind != "map" and of.shape.element == Shape("string"):
                # As many as a program takes, of zones for example.
                several = f"{at}.{name}" if of.shape.kind == "list" else f"tolist({at}.{name})"
                results[_camel(name)] = [_mark(f"{several}[{index}]") for index in range(3)]
        results |= {new: results[_camel(old)] for new, old in RENAMED_RESULTS.get(kind, {}).items()}
        return results | dict(args.args)

    def _configure(self, inputs: Mapping[str, Any]) -> None:
        if self.written.provider:
            self.problems.append("pulumi:providers:aws: a second provider, and this knows one")
        fields = _by_pulumis_names(self.schema.provider.fields)
        # A provider's configuration is strings only; what is no string is JSON in one.
        parsed = {
            name: json.loads(value) if name in fields and fields[name].shape != Shape("string") else value
            for name, value in inputs.items()
        }
        self.written.provider = self._body(parsed, self.schema.provider, "provider")

    def _body(self, inputs: Mapping[str, Any], shape: Shape, where: str) -> dict[str, Any]:
        known = _by_pulumis_names(shape.fields)
        body = dict.fromkeys(shape.fields) if shape.complete else {}
        for name, value in inputs.items():
            if value is None or name.startswith("__"):
                continue
            if (where, name) in NEWER:
                self.written.newer.add(f"{where}.{name}")
            elif name not in known or not known[name].settable:
                self.problems.append(f"{where}.{name}: the provider has no such argument")
            else:
                body[known[name].name] = self._value(value, known[name].shape, f"{where}.{name}")
        return body

    def _value(self, value: Any, shape: Shape, where: str) -> Any:
        if rpc.is_rpc_secret(value):
            value = rpc.unwrap_rpc_secret(value)
        if shape.kind == "object" and isinstance(value, dict):
            return self._body(value, shape, where)
        if shape.kind == "map" and shape.element and isinstance(value, dict):
            return {key: self._value(item, shape.element, where) for key, item in value.items()}
        if shape.kind in {"list", "set"} and shape.element:
            items = value if isinstance(value, list) else [value]
            return [self._value(item, shape.element, where) for item in items]
        if shape.kind not in SCALARS or not isinstance(value, str | int | float | bool):
            self.problems.append(f"{where} = {value!r}: not a {shape.kind}")
        return int(value) if isinstance(value, float) and value.is_integer() else value


class _Engine(mocks.MockMonitor):
    """Stands in for Pulumi's engine: adds what depends on what, and which changes to ignore."""

    def __init__(self, provider: _Provider) -> None:
        super().__init__(provider)
        self.provider = provider
        self.asked: dict[str, Any] = {}
        """Requests by URN."""

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802
        answer = super().RegisterResource(request)
        self.asked[answer.urn] = request
        return answer

    def finish(self) -> None:
        for urn, request in self.asked.items():
            address = self._address(urn)
            if not address:
                continue
            kind, label = address.split(".")
            body = self.provider.written.resources[kind][label]
            implied = {".".join(mark.removeprefix("tolist(").split(".")[:2]) for mark in _marks(body)}
            if more := {found for of in self._before(urn) if (found := self._address(of))} - implied:
                body["depends_on"] = sorted(more)
            if request.ignoreChanges:
                _, shape = self.provider.schema.resource(request.type)
                body["lifecycle"] = [{"ignore_changes": [_path(path, shape) for path in request.ignoreChanges]}]

    def _before(self, urn: str) -> set[str]:
        """What a resource waits for: also what the components wait for that it is part of."""
        request = self.asked.get(urn)  # none for the stack itself
        return {*request.dependencies, *self._before(request.parent)} if request else set()

    def _address(self, urn: str) -> str | None:
        _, _, types, name = urn.split("::")
        token = types.rpartition("$")[2]
        return f"{self.provider.schema.resource(token)[0]}.{_label(name)}" if token.startswith("aws:") else None


def _path(path: str, shape: Shape) -> str:
    """`scalingConfig.desiredSize` as Terraform writes it."""
    name, _, rest = path.partition(".")
    of = _by_pulumis_names(shape.fields).get(name)
    if not of:
        raise Untranslatable(f"ignoreChanges {path}: the provider has no such argument")
    if not rest:
        return of.name
    return f"{of.name}[0].{_path(rest, of.shape.element)}" if of.shape.element else f"{of.name}.{_path(rest, of.shape)}"


def _label(name: str) -> str:
    return re.sub(r"^(?=[^a-zA-Z_])", "_", re.sub(r"[^A-Za-z0-9_-]", "_", name))


def translate(program: Callable[[], Mapping[str, Any] | None], schema: Schema, stack: str = "dev") -> Translation:
    """Run `program`, which returns its outputs, under Pulumi's mocks."""
    provider = _Provider(schema)
    engine = _Engine(provider)
    pulumi.runtime.set_mocks(provider, project=PROJECT, stack=stack, preview=False, monitor=engine)

    @pulumi.runtime.test
    def run() -> pulumi.Output[Any]:
        return pulumi.Output.all(**(program() or {})).apply(provider.written.outputs.update)

    try:
        run()
    except Exception as error:
        if not provider.problems:
            raise
        raise Untranslatable("\n".join(provider.problems)) from error
    if provider.problems:
        raise Untranslatable("\n".join(provider.problems))
    engine.finish()
    return provider.written

"""The JSON schemas by which editors complete settings and stack files."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from infra.config import PROJECT, ROOT

SETTINGS = ROOT / "app" / "settings.schema.json"
STACK = ROOT / "infra" / "stack.schema.json"
FILES = [
    *((path, SETTINGS) for path in sorted((ROOT / "app" / "profiles").glob("*.yaml"))),
    *((path, STACK) for path in sorted(ROOT.glob("Pulumi.*.yaml"))),
]


def validator(schema: Path) -> jsonschema.Draft202012Validator:
    content = json.loads(schema.read_text())
    jsonschema.Draft202012Validator.check_schema(content)
    return jsonschema.Draft202012Validator(content)


@pytest.mark.parametrize(("path", "schema"), FILES, ids=lambda path: path.name)
def test_every_committed_file_is_valid(path: Path, schema: Path) -> None:
    validator(schema).validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(("path", "schema"), FILES, ids=lambda path: path.name)
def test_every_committed_file_tells_editors_its_schema(path: Path, schema: Path) -> None:
    first = path.read_text().splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named, first
    assert (path.parent / named[1]).resolve() == schema


@pytest.mark.parametrize(
    ("schema", "bad"),
    [
        (SETTINGS, {"model": []}),
        (SETTINGS, {"models": [{"nam": "chat"}]}),
        (SETTINGS, {"models": [{"name": "a--b"}]}),
        (SETTINGS, {"models": [{"variants": [{"engine": {"dtype": "int4"}}]}]}),
        (SETTINGS, {"models": [{"variants": [{"scaling": {"autoscaling_config": {"max_replica": 2}}}]}]}),
        (SETTINGS, {"models": [{"variants": [{"placement": {"num_gpus": 1.5}}]}]}),
        (SETTINGS, {"models": [{"variants": [{"adapters": [{"name": "legal"}]}]}]}),
        (SETTINGS, {"models": [{"variants": [{"weight": -1}]}]}),
        (SETTINGS, {"models": [{"variants": [{"shadow": 1.5}]}]}),
        (SETTINGS, {"models": [{"pins": ["anna"]}]}),
        (SETTINGS, {"models": [{"guard": {"on_failure": "fail"}}]}),
        (SETTINGS, {"classifiers": [{"name": "mood"}]}),
        (SETTINGS, {"moderation": {"threshold": 0}}),
        (SETTINGS, {"pipeline": {"preprocess": None}}),
        (SETTINGS, {"auth": {"redis_url": "http://host"}}),
        (STACK, {"config": {f"{PROJECT}:keys": [{"name": "team", "sha256": "abc"}]}}),
        (STACK, {"config": {f"{PROJECT}:servng": {}}}),
        (STACK, {"config": {f"{PROJECT}:serving": {"model": []}}}),
        (STACK, {"config": {f"{PROJECT}:cluster": {"kind": "existing"}}}),
        (STACK, {"config": {f"{PROJECT}:workers": [{"cpu": 2}]}}),
    ],
)
def test_a_wrong_file_is_not_valid(schema: Path, bad: dict[str, Any]) -> None:
    assert not validator(schema).is_valid(bad)


def test_other_programs_keys_are_left_alone() -> None:
    validator(STACK).validate({"config": {"aws:region": "eu-west-1"}, "encryptionsalt": "v1:x"})


def descriptions(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What an editor shows of each setting; pydantic leaves out what the setting's model says of itself."""
    for name, definition in {"Settings": schema, **schema["$defs"]}.items():
        for key, value in definition.get("properties", {}).items():
            model = schema["$defs"].get(value.get("$ref", "").removeprefix("#/$defs/"), {})
            yield f"{name}.{key}", value.get("description") or model.get("description", "")


def test_editors_can_explain_every_setting() -> None:
    found = dict(descriptions(json.loads(SETTINGS.read_text())))
    assert {"Settings.models", "Engine.extra", "Autoscaling.min_replicas"} <= found.keys()
    assert [key for key, text in found.items() if not text.endswith(".")] == []

"""The settings: a YAML file for `serve run app.main:app settings=FILE`."""

from pathlib import Path

import yaml

from app.settings import Settings, environment, load, parse, serve_config
from app.validation import SettingsError

SEEDS = [
    yaml.safe_dump(Settings().model_dump(mode="json", exclude_none=True), default_flow_style=True).encode(),
    *(file.read_bytes() for file in sorted(Path("app/profiles").glob("*.yaml"))),
    b"models: [{name: chat, variants: [{name: a, weight: 1, adapters: [{name: b, source: /c}]}, {name: d}]}]",
    b"auth: {redis_url: 'redis://cache:6379/0'}\ntracing: {endpoint: 'https://collector:4318/'}",
    b"models: []\nrerankers: [{name: a/b, source: 'embedding:embed'}]",
]
FILE = Path("settings.yaml")


def run(data: bytes) -> None:
    """Settings that are the same when they are written down and read again, and can be served; or a SettingsError."""
    FILE.write_bytes(data)
    try:
        found = load(FILE)
    except SettingsError:
        return
    assert parse(found.model_dump(mode="json")) == found
    for application in serve_config(found)["applications"]:
        parse(application["args"])
    assert all(isinstance(value, str) for value in environment(found).values())

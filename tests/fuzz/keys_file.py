"""The file of API keys, which another process writes while the server reads it."""

import json
import re
from pathlib import Path

import yaml

from app import keys
from app.settings import PART
from app.validation import SettingsError

KEY = f"sk-{'swordfish' * 5}"
SEEDS = [
    b"keys: []",
    yaml.safe_dump(
        {"keys": [{"name": "a", "sha256": keys.digest(KEY), "models": ["chat"], "concurrency": 1}]}
    ).encode(),
    json.dumps({"keys": [{"name": "b", "sha256": KEY, "requests_per_minute": 2, "tokens_per_minute": 3}]}).encode(),
    b"keys: [{name: 2001-01-01, sha256: !!binary aGk=, models: &a [*a]}]",
]
FILE = Path("keys.yaml")


def run(data: bytes) -> None:
    """Keys, each with a name and a hash; or a SettingsError, without a key that stands where its hash belongs."""
    FILE.write_bytes(data)
    try:
        found = keys.load(FILE)
    except SettingsError as error:
        assert KEY not in str(error)
        return
    assert len({key.name for key in found}) == len({key.sha256 for key in found}) == len(found)
    for key in found:
        assert re.fullmatch(PART, key.name)
        assert re.fullmatch(r"[0-9a-f]{64}", key.sha256)
    FILE.write_text(yaml.safe_dump({"keys": [key.model_dump() for key in found]}))
    assert keys.load(FILE) == found

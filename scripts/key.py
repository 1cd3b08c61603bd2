"""`make key NAME=team-a [MODELS=chat,embed] [RPM=60] [TPM=10000] [CONCURRENCY=4]`: a new API key, shown once."""

import argparse
from typing import Any

import yaml

from app.keys import Key, digest, make
from app.validation import SettingsError, validate
from scripts.console import Problem, main, say

LIMITS = {"RPM": "requests_per_minute", "TPM": "tokens_per_minute", "CONCURRENCY": "concurrency"}
"""What the command calls the limits of a key."""
USE = "make key NAME=team-a [MODELS=chat,embed] [RPM=60] [TPM=10000] [CONCURRENCY=4]"


def key() -> None:
    """Print a key, and what to store of it. The key is written nowhere."""
    given = _given()
    if not given["NAME"]:
        raise Problem("whose key it is was not said", USE)
    secret = make()
    item: dict[str, Any] = {"name": given["NAME"], "sha256": digest(secret)}
    if given["MODELS"]:
        item["models"] = given["MODELS"].replace(",", " ").split()
    item |= {field: _number(name, given[name]) for name, field in LIMITS.items() if given[name]}
    try:
        validate(Key, item, "the new key")
    except SettingsError as error:
        raise Problem(str(error), USE) from None
    stored = yaml.safe_dump([item], sort_keys=False)
    say(f"the key, shown this once:\n\n  {secret}\n\nwhat to add to `keys:` in the file that auth.keys_file names:\n")
    say("".join(f"  {line}\n" for line in stored.splitlines()))


def _given() -> dict[str, str]:
    """What the command line says; Make gives a variable that is not set as an empty text."""
    parser = argparse.ArgumentParser(prog="make key")
    for name in ("NAME", "MODELS", *LIMITS):
        parser.add_argument(f"--{name.lower()}", dest=name, default="")
    return vars(parser.parse_args())


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise Problem(f"{name} = {text!r} is not a whole number", f"say {name}=60, or leave it out") from None


if __name__ == "__main__":
    main(key)

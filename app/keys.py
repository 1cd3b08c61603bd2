"""API keys: the file that lists them, and how they are made and found. Needs pydantic and PyYAML only."""

import hashlib
import hmac
import logging
import re
import secrets
import time
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from app.settings import NAME, PART
from app.validation import SettingsError, Strict, read_yaml, require_distinct, short, validate

logger = logging.getLogger("ray.serve")

CHECK_SECONDS = 1.0
"""A change of the file counts after this long, at the latest."""


class Key(Strict):
    """One API key: whose it is, and what its holder may take. The key itself is nowhere."""

    name: str = Field(pattern=PART, max_length=64, description="Whose it is; quotas and experiments go by it.")
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the key, as `make key` prints it: 64 hex digits, lower case."
    )
    models: list[Annotated[str, Field(pattern=NAME)]] | None = Field(
        default=None,
        min_length=1,
        description="Names of the models it may ask for, their variants and adapters included, `generate` and "
        "`analyze` for these routes; all when left out.",
    )
    requests_per_minute: int | None = Field(
        default=None, ge=1, description="Most requests in any 60 s; no limit when left out."
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Tokens, of prompts and answers, after which the next request waits for the next minute. They are "
        "counted when they are known, so what is under way may exceed it: `concurrency` bounds that. No limit when "
        "left out.",
    )
    concurrency: int | None = Field(
        default=None, ge=1, description="Most requests under way at once; no limit when left out."
    )


class KeysFile(Strict):
    """The content of a keys file."""

    keys: list[Key] = Field(description="The keys; with an empty list nobody may ask.")

    @model_validator(mode="after")
    def _keys_differ(self) -> Self:
        require_distinct("keys", [key.name for key in self.keys])
        hashes = [key.sha256 for key in self.keys]
        for index, value in enumerate(hashes):
            first = hashes.index(value)
            if first < index:
                raise ValueError(
                    f"keys.{index}.sha256 = {short(value)}: keys.{first} has this hash; "
                    "fix: make each its own, with `make key`"
                )
        return self


def make() -> str:
    """A new key, of 256 random bits."""
    return f"sk-{secrets.token_urlsafe(32)}"


def digest(key: str) -> str:
    """What is stored of a key: its SHA-256. A key is too random to be guessed, so it needs no salt and no work."""
    return hashlib.sha256(key.encode()).hexdigest()


def load(path: str | Path) -> list[Key]:
    """The keys in a YAML file. Raises SettingsError, without a key that somebody wrote where its hash belongs."""
    fix = "write a mapping, keys: [...], of what `make key` prints"
    try:
        values = read_yaml(path)
        if not isinstance(values, dict):
            raise SettingsError(f"{path}: holds {short(values)}; fix: {fix}")
        return validate(KeysFile, values, str(path)).keys
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot be read ({error.strerror}); fix: set auth.keys_file to the path of the file with the keys"
        ) from None
    except SettingsError as error:
        raise SettingsError(_without_keys(str(error))) from None
    except ValueError as error:
        raise SettingsError(f"{path}: is not YAML ({_without_keys(str(error))}); fix: {fix}") from None


def _without_keys(text: str) -> str:
    return re.sub(r"sk-[\w-]{20,}", "sk-…", text)  # whatever is before it: a slip of the pen must not show it


class KeyRing:
    """The keys in a file, read again when it changes.

    Raises SettingsError when the file is wrong at first. When it is wrong later, or gone, the keys that it had stay,
    and the log says why.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._version = self._stat()  # before reading, so that what is written meanwhile is read again
        self._keys = load(path)
        self._check_at = time.monotonic() + CHECK_SECONDS

    def find(self, presented: str) -> Key | None:
        """The key that a client sent, if there is such a key."""
        self._reload()
        hashed = digest(presented)
        found = None
        for key in self._keys:  # all of them, each in constant time: how long it takes says nothing
            if hmac.compare_digest(hashed, key.sha256):
                found = key
        return found

    def _reload(self) -> None:
        if time.monotonic() < self._check_at:
            return
        self._check_at = time.monotonic() + CHECK_SECONDS
        version = self._stat()
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = load(self._path)
        except SettingsError as error:
            logger.error("the API keys stay as they were, since their file is wrong now: %s", error)
        else:
            logger.info("%d API keys read from %s", len(self._keys), self._path)

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()  # through links, which a mounted Secret replaces
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

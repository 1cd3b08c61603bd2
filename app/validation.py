"""What all configuration has in common: strict models, and errors that say what to type instead."""

import difflib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

RENAMED = {
    "target_num_ongoing_requests_per_replica": "target_ongoing_requests",
    "max_concurrent_queries": "max_ongoing_requests",
    "smoothing_factor": "upscaling_factor and downscaling_factor",
    "upscale_smoothing_factor": "upscaling_factor",
    "downscale_smoothing_factor": "downscaling_factor",
}
"""Names that Ray has given up. Ray itself ignores the first in silence, and takes the last three for now."""

M = TypeVar("M", bound=BaseModel)


class SettingsError(ValueError):
    """Settings that cannot work; the message names each key, its value, the reason and the fix."""


class Strict(BaseModel):
    """Base of all that a user configures: typos and wrong types are errors, and nothing changes.

    A validator of a whole model raises ValueError("<key> = <value>: <reason>; fix: <fix>"), its keys relative.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds. Raises OSError, and ValueError when it is no YAML."""
    import yaml

    try:
        return yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    # What PyYAML's constructors raise at 2001-13-45, !!bool x and !!timestamp x, and its composer at a thousand [.
    except (KeyError, AttributeError) as error:
        raise ValueError(f"a value is not of its tag: {error}") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def validate(model: type[M], values: Mapping[str, Any], source: str) -> M:
    """`values` as an instance of `model`; `source`, say a file's name, begins the SettingsError."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [f"\n  {_explain(model, found)}" for found in error.errors()]
        raise SettingsError(f"{source}:{''.join(problems)}") from None


def _explain(model: type[BaseModel], found: ErrorDetails) -> str:
    """One of pydantic's errors as a line: key = value: reason; fix."""
    keys, siblings, field = _resolve(model, found["loc"])
    key = ".".join(keys)
    if found["type"] == "extra_forbidden":
        if new := RENAMED.get(keys[-1]):
            return f"{key} = {short(found['input'])}: Ray has renamed it; fix: use {new}"
        close = difflib.get_close_matches(keys[-1], siblings, n=1)
        fix = f"did you mean {close[0]}?" if close else f"use one of {', '.join(siblings)}"
        return f"{key} = {short(found['input'])}: there is no such key; fix: {fix}"
    meaning = f" ({field.description})" if field and field.description else ""
    if found["type"] == "missing":
        return f"{key}: is missing{meaning}; fix: add it"
    own = found.get("ctx", {}).get("error")
    if own is None:
        fix = re.sub(r"^(Input|String|List) should (be )?", "make it ", found["msg"])
        fix = re.sub(r"a valid dictionary( or instance of \w+)?", "a mapping", fix)
        return f"{key} = {short(found['input'])}: does not fit{meaning}; fix: {fix}"
    # A validator of a whole model says itself which key it means; its input is all of the model.
    if isinstance(found["input"], Mapping):
        return f"{key}.{own}" if key else str(own)
    return f"{key} = {short(found['input'])}: {own}"


def _resolve(model: type[BaseModel], location: Sequence[int | str]) -> tuple[list[str], list[str], FieldInfo | None]:
    """The keys as the user wrote them, the valid keys beside the last one, and that one's field.

    Pydantic's location of an error in a tagged union has the tag in between, which nobody wrote.
    """
    keys: list[str] = []
    siblings: list[str] = []
    field: FieldInfo | None = None
    models = [model]
    for part in location:
        tagged = [m for m in models if part in _tags(m)]
        if isinstance(part, int):
            keys.append(str(part))
        elif tagged:
            models = tagged
        elif not models and part in _JSON_TAGS:
            continue
        else:
            keys.append(part)
            siblings = [name for m in models for name in m.model_fields]
            field = next((m.model_fields[part] for m in models if part in m.model_fields), None)
            models = list(_models(field.annotation)) if field else []
    return keys, siblings, field


_JSON_TAGS = ("dict", "list", "float")
"""Pydantic's tags of what a JsonValue may be, by which it tells them apart."""


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in a field's type, inside lists and unions too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    """Values of the field `kind`, by which our unions tell their members apart."""
    kind = model.model_fields.get("kind")
    return typing.get_args(kind.annotation) if kind else ()


def short(value: Any) -> str:
    """The value as Python writes it, in at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def nearest(value: str, known: Sequence[str], otherwise: str = "") -> str:
    """What to write instead of `value`, as the end of a sentence; `otherwise` stands for a list too long to read."""
    return " or ".join(difflib.get_close_matches(value, known, n=3)) or otherwise or f"one of {', '.join(known)}"


def require_distinct(key: str, names: Sequence[str]) -> None:
    """ValueError when two of the things in the list `key` have the same name."""
    for index, name in enumerate(names):
        first = names.index(name)
        if first < index:
            raise ValueError(f"{key}.{index}.name = {name!r}: {key}.{first} has this name; fix: give each its own")

"""THE settings model: one object for `serve run`, for the RayService's args and for a stack file.

Needs pydantic and nothing of ray, torch or vllm, so that a deployment can be checked anywhere.
"""

import difflib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from app.builtin import PACKAGES

APPLICATION = "blueprint"
"""Name of the Serve application, as in Ray's metrics and in a RayService's status."""

M = TypeVar("M", bound=BaseModel)


class SettingsError(ValueError):
    """Settings that cannot work; the message names each key, its value, the reason and the fix."""


class Strict(BaseModel):
    """Base of all that a user configures: typos and wrong types are errors, and nothing changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Engine(Strict):
    """vLLM's engine arguments."""

    max_model_len: int = Field(default=2048, ge=1, description="Longest prompt and answer together, in tokens.")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="bfloat16", description="Type of the weights and activations."
    )
    # Compiled bfloat16 on CPUs gave a deterministic wrong answer to one of our five golden prompts,
    # and took three times as long to start.
    enforce_eager: bool = Field(
        default=True,
        description="Run without torch.compile; keep it on CPUs, which compile wrong answers.",
    )
    kv_cache_gib: int = Field(
        default=1,
        ge=1,
        description="Key-value cache on CPUs, in whole GiB: vLLM crashes on a fraction.",
    )


class Scaling(Strict):
    """How many replicas serve a model, and what each takes."""

    num_replicas: int = Field(default=1, ge=1, description="Number of replicas.")
    max_ongoing_requests: int = Field(
        default=64,
        ge=1,
        description="Requests a replica works on at once; more wait in Ray's queue.",
    )
    num_cpus: float = Field(
        default=1,
        gt=0,
        description="Cores Ray reserves for a replica; vLLM uses all cores that it sees.",
    )


class Model(Strict):
    """One language model behind the OpenAI routes."""

    # Ray makes the deployment's name by writing / as -- and . as _, and takes what follows a : for
    # a LoRA adapter. Without --, _ and : in a name, no two models share a deployment.
    name: str = Field(
        default="chat",
        pattern=r"^[A-Za-z0-9]+([-./][A-Za-z0-9]+)*$",
        max_length=96,
        description="What clients send as `model`: letters and digits, single - . / between them.",
    )
    source: str = Field(
        default="builtin:smollm2-135m-instruct",
        description="The weights: builtin:<name>, an absolute path, s3://<bucket>/<prefix> or a "
        "hub's <organisation>/<model>.",
    )
    engine: Engine = Field(default=Engine(), description="Arguments of vLLM's engine.")
    scaling: Scaling = Field(default=Scaling(), description="Replicas, and what each takes.")

    @field_validator("source")
    @classmethod
    def _source_is_known(cls, source: str) -> str:
        if source.startswith("builtin:"):
            if source.removeprefix("builtin:") not in PACKAGES:
                known = " or ".join(f"builtin:{name}" for name in PACKAGES)
                raise ValueError(f"there is no such built-in model; fix: use {known}")
        elif not re.fullmatch(r"/.+|s3://[^/]+/.+|[\w.-]+/[\w.-]+", source):
            raise ValueError(
                "says not where the weights are; fix: use builtin:<name>, an absolute path, "
                "s3://<bucket>/<prefix> or <organisation>/<model>"
            )
        return source

    @property
    def builtin(self) -> str | None:
        """Name of the built-in model, when it is one."""
        return self.source.removeprefix("builtin:") if self.source.startswith("builtin:") else None

    @property
    def from_hub(self) -> bool:
        """Whether the engine must reach a model hub for the weights."""
        return self.builtin is None and not self.source.startswith(("/", "s3://"))


class Settings(Strict):
    """Everything the application does. The defaults serve one small model on a laptop's CPU."""

    models: list[Model] = Field(default=[Model()], min_length=1, description="The language models.")

    @model_validator(mode="after")
    def _names_differ(self) -> "Settings":
        names = [model.name for model in self.models]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ValueError(
                    f"models.{index}.name = {name!r}: models.{names.index(name)} has this name; "
                    "fix: give each model its own"
                )
        return self


def parse(values: Mapping[str, Any]) -> Settings:
    """Settings from plain data. Raises SettingsError."""
    return validate(Settings, values, "settings")


def load(path: str | Path) -> Settings:
    """Settings from a YAML file; an empty one means the defaults. Raises SettingsError."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot be read ({error.strerror}); "
            "fix: give the path of a YAML file, relative to the current directory"
        ) from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: is not YAML ({error}); fix: correct the syntax") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: holds {_short(values)}; fix: write a mapping, say models: [{{name: chat}}]")
    return validate(Settings, values, str(path))


def validate(model: type[M], values: Mapping[str, Any], source: str) -> M:
    """`values` as an instance of `model`; `source`, say a file's name, begins the SettingsError."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [f"\n  {_explain(model, found)}" for found in error.errors()]
        raise SettingsError(f"{source}:{''.join(problems)}") from None


def serve_config(settings: Settings) -> dict[str, Any]:
    """The `serveConfigV2` of a RayService that serves `settings`, in Ray's ServeDeploySchema.

    Its args are all settings, defaults too: what runs can be read off the cluster.
    """
    return {
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": "app.main:app",
                "args": settings.model_dump(mode="json"),
            }
        ]
    }


def _explain(model: type[BaseModel], found: ErrorDetails) -> str:
    """One of pydantic's errors as a line: key = value: reason; fix."""
    keys, siblings, field = _resolve(model, found["loc"])
    key = ".".join(keys)
    if found["type"] == "extra_forbidden":
        close = difflib.get_close_matches(keys[-1], siblings, n=1)
        fix = f"did you mean {close[0]}?" if close else f"use one of {', '.join(siblings)}"
        return f"{key} = {_short(found['input'])}: there is no such key; fix: {fix}"
    meaning = f" ({field.description})" if field and field.description else ""
    if found["type"] == "missing":
        return f"{key}: is missing{meaning}; fix: add it"
    own = found.get("ctx", {}).get("error")
    if own is None:
        fix = found["msg"].replace("Input should be", "make it")
        return f"{key} = {_short(found['input'])}: does not fit{meaning}; fix: {fix}"
    # A validator of a whole model says itself which key it means; its input is all of the model.
    if isinstance(found["input"], Mapping):
        return f"{key}: {own}" if key else str(own)
    return f"{key} = {_short(found['input'])}: {own}"


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
        else:
            keys.append(part)
            siblings = [name for m in models for name in m.model_fields]
            field = next((m.model_fields[part] for m in models if part in m.model_fields), None)
            models = list(_models(field.annotation)) if field else []
    return keys, siblings, field


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


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

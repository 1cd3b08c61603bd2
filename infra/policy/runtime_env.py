"""Code that reaches a cluster past its image."""

from collections.abc import Iterator
from typing import Any

import yaml

from infra.policy.resources import Resource, strings, walk

_INSTALL = ("pip", "uv", "conda")
_FETCH = ("working_dir", "py_modules")


def foreign_code(resource: Resource) -> Iterator[str]:
    """What Ray would install or download when a replica starts.

    https://docs.ray.io/en/latest/ray-core/handling-dependencies.html#api-reference
    """
    for key in ("serveConfigV2", "runtimeEnvYAML"):
        given = resource.at("spec", key) if resource.is_kubernetes("RayService", "RayJob") else None
        if isinstance(given, str):
            content = yaml.load(given, Loader=yaml.CSafeLoader)
            for message in _found({"runtime_env": content} if key == "runtimeEnvYAML" else content):
                yield f"spec.{key}: {message}"


def _found(content: Any) -> Iterator[str]:
    for path, environment in walk(content):
        if path.rpartition(".")[2] != "runtime_env" or not isinstance(environment, dict):
            continue
        for key in _INSTALL:
            if environment.get(key):
                yield (
                    f"{path}.{key} = {environment[key]}: is installed at every start, while a GPU waits, unscanned and "
                    "past every lock; fix: add it to pyproject.toml, `make lock`, and build the image"
                )
        for key in _FETCH:
            if remote := [value for value in strings(environment.get(key)) if "://" in value]:
                yield (
                    f"{path}.{key} = {remote[0]}: whoever can write there runs code on the GPUs; "
                    "fix: put the code into app/, and build the image"
                )

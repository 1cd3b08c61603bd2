"""The validated configuration of a stack: what a Pulumi.<stack>.yaml may say under `blueprint:`.

A wrong value is a SettingsError that names key, value, reason and fix, raised before anything is created.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from app.keys import Key, digest
from app.settings import Demand, Settings, SettingsError, Strict, demands, validate

ROOT = Path(__file__).parent.parent
PROJECT = "blueprint"
LOCAL_KEY = "sk-local"
"""The API key of a native cluster whose stack file has none: everybody on this machine may know it, and nobody else
reaches that cluster."""
KEYS_FILE = "/etc/blueprint/keys/keys.yaml"
"""Where the pods find the API keys."""


def state_dir() -> Path:
    """Where the native cluster and its Pulumi state live. `make down` removes it."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(os.environ.get("BLUEPRINT_STATE") or Path(base) / "ray-serve-blueprint")


def native_kubeconfig() -> Path:
    """The kubeconfig that `scripts/cluster` writes, for 127.0.0.1."""
    return state_dir() / "cluster" / "kubeconfig"


class NativeCluster(Strict):
    """A one-node Kubernetes on this machine, started by `make up` and removed by `make down`."""

    kind: Literal["native"] = "native"

    @property
    def kubeconfig_path(self) -> Path:
        return native_kubeconfig()

    @property
    def context(self) -> str | None:
        """The native kubeconfig has one context only."""
        return None


class ExistingCluster(Strict):
    """A cluster that somebody else runs, reached through a kubeconfig context."""

    kind: Literal["existing"] = "existing"
    context: str = Field(description="Name of the kubeconfig context to deploy to.")
    kubeconfig: str | None = Field(
        default=None, description="Path of the kubeconfig; $KUBECONFIG or ~/.kube/config when left out."
    )

    @property
    def kubeconfig_path(self) -> Path:
        # Of a KUBECONFIG list, kubectl itself would merge all; Pulumi's provider takes one file.
        default = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0] or "~/.kube/config"
        return Path(self.kubeconfig or default).expanduser()


Cluster = Annotated[NativeCluster | ExistingCluster, Field(discriminator="kind")]


class Image(Strict):
    """Where the application image lies. Its tag is a digest of what goes into it (infra/image.py)."""

    repository: str = Field(default="localhost/blueprint", description="Image name without tag, with registry if any.")


class Head(Strict):
    """The Ray head: control only, it runs no replica."""

    cpus: float = Field(default=2, gt=0, description="CPU limit of the pod, in cores.")
    # Each application is built here, in a process that imports vLLM.
    memory_gib: int = Field(default=5, ge=2, description="Memory limit of the pod, in GiB.")


class WorkerGroup(Strict):
    """Pods of one kind that run replicas."""

    name: str = Field(default="cpu", pattern=r"^[a-z]([-a-z0-9]{0,40}[a-z0-9])?$", description="Group name.")
    replicas: int = Field(default=1, ge=1, description="Number of pods.")
    cpus: int = Field(default=2, ge=1, description="Cores of a pod: its limit, and what Ray may schedule.")
    gpus: int = Field(default=0, ge=0, description="GPUs of a pod.")
    memory_gib: int = Field(default=12, ge=2, description="Memory limit of a pod, in GiB.")


class StackConfig(Strict):
    """Everything a stack file may say. Defaults are the local stack's."""

    cluster: Cluster = NativeCluster()
    namespace: str = Field(
        default="serving", pattern=r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$", description="Made by the program."
    )
    image: Image = Image()
    head: Head = Head()
    workers: list[WorkerGroup] = Field(default=[WorkerGroup()], min_length=1)
    serving: Settings = Settings()
    keys: list[Key] = Field(
        default=[], description="Who may ask; `make key NAME=...` makes an item. A native cluster needs none: sk-local."
    )
    ready_timeout_seconds: int = Field(
        default=900, ge=60, description="How long `up` waits for the RayService to be Ready."
    )

    @model_validator(mode="after")
    def _somebody_may_ask(self) -> "StackConfig":
        if not self.keys and not isinstance(self.cluster, NativeCluster):
            raise ValueError(
                "keys = []: nobody could use the models, or everybody; fix: add one, `make key NAME=...` prints it"
            )
        if any(key.sha256 == digest(LOCAL_KEY) for key in self.keys):
            raise ValueError(f"keys: one of them is {LOCAL_KEY}, which everybody knows; fix: make another, `make key`")
        if self.serving.auth.keys_file is not None:
            raise ValueError(
                f"serving.auth.keys_file = {self.serving.auth.keys_file!r}: in a stack the program makes that file; "
                "fix: leave it out, and list the keys in `keys`"
            )
        return self

    @property
    def api_keys(self) -> list[Key]:
        """The keys that the gateway takes."""
        return self.keys or [Key(name="local", sha256=digest(LOCAL_KEY))]

    @model_validator(mode="after")
    def _replicas_fit(self) -> "StackConfig":
        """A replica that fits no pod waits for ever, with nothing but a warning in Ray's log."""
        wanted = list(demands(self.serving))
        for demand in wanted:
            _require_a_pod_for(demand, self.workers)
        for unit, resource in (("CPUs", "cpus"), ("GPUs", "gpus")):
            offered = sum(getattr(group, resource) * group.replicas for group in self.workers)
            needed = sum(getattr(demand, resource) * demand.replicas for demand in wanted)
            if needed > offered:
                raise ValueError(
                    f"serving: all replicas together need {needed:g} {unit}, and the workers have {offered}; "
                    f"fix: raise workers.*.replicas or {resource}, or lower num_replicas or max_replicas"
                )
        return self


def _require_a_pod_for(demand: Demand, workers: list[WorkerGroup]) -> None:
    """ValueError when no pod can hold what of a replica must be in one place."""
    gpus = demand.gpus if demand.one_node else min(demand.gpus, 1)
    if not any(demand.cpus <= group.cpus and gpus <= group.gpus for group in workers):
        pods = ", ".join(f"{group.name} ({group.cpus} CPUs, {group.gpus} GPUs)" for group in workers)
        raise ValueError(
            f"serving.{demand.key}: a replica needs {demand.cpus:g} CPUs and {gpus:g} GPUs of one pod, and no worker "
            f"group has them: {pods}; fix: raise the cpus or gpus of one, or lower the replica's placement"
        )


def parse(values: Mapping[str, Any], source: str) -> StackConfig:
    """The stack config in `values` (keys without the project's prefix); `source` is named in errors."""
    return validate(StackConfig, values, source)


def from_file(stack: str, root: Path = ROOT) -> StackConfig:
    """The config of Pulumi.<stack>.yaml, read without Pulumi: so early that nothing has begun yet."""
    path = root / f"Pulumi.{stack}.yaml"
    if not path.exists():
        known = sorted(p.name.split(".")[1] for p in root.glob("Pulumi.*.yaml"))
        raise SettingsError(f"stack {stack!r} has no {path.name}; known stacks: {', '.join(known)}")
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise SettingsError(f"{path.name} is not valid YAML: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("config") or {}, dict):
        raise SettingsError(f"{path.name}: expected a mapping with a `config:` mapping inside")
    return parse(_ours(content.get("config") or {}), path.name)


def from_pulumi() -> StackConfig:
    """The config that the running Pulumi program was given. Raises RunError, which Pulumi prints without a trace."""
    import pulumi
    from pulumi.runtime import config

    # pulumi.Config only answers for keys that one asks for; unknown ones must be found, too.
    given = {**config.get_config_env(), **config.CONFIG.get()}
    values = {key: _from_json(value) for key, value in _ours(given).items()}
    try:
        return parse(values, f"Pulumi.{pulumi.get_stack()}.yaml")
    except SettingsError as error:
        raise pulumi.RunError(str(error)) from None


def _ours(config: Mapping[str, Any]) -> dict[str, Any]:
    prefix = f"{PROJECT}:"
    return {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}


def _from_json(value: str) -> Any:
    """Pulumi hands every value over as a string; objects and numbers as JSON."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value

"""The validated configuration of a stack: what a Pulumi.<stack>.yaml may say under the project's name.

A wrong value is a SettingsError that names key, value, reason and fix, raised before anything is created.
"""

import ipaddress
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from app.keys import Key, digest
from app.settings import Demand, Settings, SettingsError, Strict, demands, validate, weights
from app.validation import nearest, read_yaml
from infra import ROOT, contract, versions
from infra.aws.config import EksCluster, Pool
from infra.clusters import LOCAL_KEY, ExistingCluster, NativeCluster
from infra.observability.config import Observability
from infra.secret_key import SecretKey
from infra.upgrade import Incremental, NewCluster, NoUpgrade, Upgrade, replicas

PROJECT: str = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())["name"]
"""Its name, and so the prefix of all keys in stack files. `make rename` changes it."""
KEYS_FILE = "/etc/blueprint/keys/keys.yaml"
"""Where the pods find the API keys."""

Accelerator = Literal["cpu", "gpu"]
"""What an image's vLLM computes on; the name of its lock in requirements/."""

Cluster = Annotated[NativeCluster | ExistingCluster | EksCluster, Field(discriminator="kind")]


def _tag(image: str) -> str:
    """The tag or digest at the end of an image's name; empty without."""
    return next((image[image.rindex(mark) :] for mark in "@:" if mark in image.rpartition("/")[2]), "")


class Operator(Strict):
    """Where the KubeRay operator comes from. Its version and that of its CRDs is in infra/versions.py."""

    chart: str | None = Field(
        default=None,
        description="KubeRay's Helm chart in place of the manifests in infra/platform/manifests: the https:// address "
        "of a repository that has it, an oci:// address of the chart, or its directory.",
    )
    image: str = Field(
        default="quay.io/kuberay/operator", description="The operator's image without tag; its tag is the version."
    )

    @property
    def reference(self) -> str:
        """The operator's image with its tag."""
        return f"{self.image}:v{versions.KUBERAY}"

    @field_validator("chart")
    @classmethod
    def _chart_is_there(cls, chart: str | None) -> str | None:
        if chart is None or chart.startswith(("https://", "oci://")):
            return chart
        try:
            version = yaml.safe_load((ROOT / chart / "Chart.yaml").read_text())["version"]
        except (OSError, yaml.YAMLError, KeyError, TypeError):
            raise ValueError(
                "is neither an https:// or oci:// address nor the directory of a chart; fix: name one, "
                "or leave it out for the manifests in this repository"
            ) from None
        if version != versions.KUBERAY:
            raise ValueError(
                f"is the chart of {version}, and the CRDs in this repository are those of {versions.KUBERAY}; "
                f"fix: take the chart of {versions.KUBERAY}"
            )
        return chart

    @field_validator("image")
    @classmethod
    def _image_has_no_tag(cls, image: str) -> str:
        if _tag(image):
            raise ValueError(f"has a tag or digest; fix: leave it out, the tag is v{versions.KUBERAY}")
        return image


class Image(Strict):
    """Where the application image lies. Its tag is a digest of what goes into it (infra/image.py)."""

    repository: str = Field(default=f"localhost/{PROJECT}", description="Image name without tag, with registry if any.")
    base: str = Field(
        default="docker.io/library/debian:bookworm-slim",
        description="Image of Debian 12 to build on, from any registry; <name>@sha256:<digest> pins it.",
    )

    @field_validator("repository")
    @classmethod
    def _tag_is_ours(cls, repository: str) -> str:
        if _tag(repository):
            raise ValueError(
                "has a tag or digest, and what a tag names changes; fix: leave it out, the program adds it"
            )
        return repository

    @field_validator("base")
    @classmethod
    def _base_is_of_one_release(cls, base: str) -> str:
        if _tag(base) in ("", ":latest"):
            raise ValueError("may be another Debian any day; fix: name a release, or <name>@sha256:<digest>")
        return base


class Head(Strict):
    """The Ray head: control only, it runs no replica."""

    cpus: float = Field(default=2, gt=0, description="CPU limit of the pod, in cores.")
    # Each application is built here, in a process that imports vLLM.
    memory_gib: int = Field(default=5, ge=2, description="Memory limit of the pod, in GiB.")


class WorkerGroup(Strict):
    """Pods of one kind that run replicas."""

    name: str = Field(default="cpu", pattern=r"^[a-z]([-a-z0-9]{0,40}[a-z0-9])?$", description="Group name.")
    min_replicas: int = Field(default=1, ge=0, description="Pods that are always there.")
    max_replicas: int = Field(
        default=1, ge=1, description="Pods at most; with more than min_replicas, Ray adds and removes them by demand."
    )
    cpus: int = Field(default=2, ge=1, description="Cores of a pod: its limit, and what Ray may schedule.")
    gpus: int = Field(default=0, ge=0, description="GPUs of a pod.")
    memory_gib: int = Field(default=12, ge=2, description="Memory limit of a pod, in GiB.")
    pool: Pool | None = Field(
        default=None, description="The nodes of its pods, in a cluster of kind eks; a must there for a group with GPUs."
    )

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> "WorkerGroup":
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas = {self.min_replicas}: is more than max_replicas ({self.max_replicas}); "
                "fix: lower it, or raise that"
            )
        return self

    @property
    def gpu(self) -> str | None:
        """Which GPU its pods have; None without one, and where the nodes are somebody else's."""
        return self.pool.gpu if self.pool else None

    def holds(self, demand: Demand) -> bool:
        """Whether a pod has room for what of a replica must be in one place, and the GPU that it must be."""
        gpus = demand.gpus if demand.one_node else min(demand.gpus, 1)
        suits = self.gpu is None or demand.accelerator in (None, self.gpu)
        return demand.cpus <= self.cpus and gpus <= self.gpus and suits

    def share(self, demand: Demand) -> float:
        """The part of a pod that a replica takes: what is left over of one that is full counts, too."""
        part = max(demand.cpus / self.cpus, demand.gpus / self.gpus if demand.gpus else 0)
        if not 0 < part <= 1:
            return part
        fit = math.floor(1 / part + 1e-9)
        if 0 < demand.gpus < 1:  # of one GPU, not of several
            fit = min(fit, self.gpus * math.floor(1 / demand.gpus + 1e-9))
        return 1 / fit


REDIS = r"^(rediss?://)?[a-zA-Z0-9]([-.a-zA-Z0-9]*[a-zA-Z0-9])?:[0-9]{1,5}$"
NAMESPACE = r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$"


class Clients(Strict):
    """Who may open connections to the models beside the stack's own namespace, where network policies are enforced."""

    namespaces: list[Annotated[str, Field(pattern=NAMESPACE)]] = Field(
        default=[], description="Namespaces whose pods may, say those of a gateway."
    )
    cidrs: list[str] = Field(
        default=[],
        description="Networks that may, say a load balancer's, or the control plane's for its proxy to Services.",
    )

    @field_validator("cidrs")
    @classmethod
    def _cidrs_are_networks(cls, cidrs: list[str]) -> list[str]:
        for cidr in cidrs:
            try:
                ipaddress.ip_network(cidr)
            except ValueError as error:
                raise ValueError(f"{error}; fix: write <address>/<bits>, say 10.0.0.0/16") from None
        return cidrs


class GcsFaultTolerance(Strict):
    """A Redis in which the Ray head keeps its state, so that the next head goes on where it was."""

    redis_address: str = Field(
        json_schema_extra={"pattern": REDIS},
        description="Its address, <host>:<port>, with rediss:// before it for TLS.",
    )
    redis_password: SecretKey | None = Field(default=None, description="Where its password is; left out, it has none.")

    @model_validator(mode="after")
    def _redis_is_known(self) -> "GcsFaultTolerance":
        if "@" in self.redis_address:
            raise ValueError(
                "redis_address: holds a password in the clear; fix: leave it out, and name the Secret that has it in "
                "redis_password"
            )
        # Ray takes no path, and KubeRay's job that cleans up knows no port by itself.
        if not re.fullmatch(REDIS, self.redis_address) or self.port > 65535:
            raise ValueError(
                f"redis_address = {self.redis_address!r}: is no address of Redis; "
                "fix: write <host>:<port>, with rediss:// before it for TLS"
            )
        return self

    @property
    def port(self) -> int:
        return int(self.redis_address.rpartition(":")[2])


class StackConfig(Strict):
    """Everything a stack file may say. Defaults are the local stack's."""

    cluster: Cluster = NativeCluster()
    namespace: str = Field(default="serving", pattern=NAMESPACE, description="Made by the program.")
    clients: Clients = Clients()
    monitoring_namespace: str = Field(
        default="monitoring",
        pattern=NAMESPACE,
        description="Namespace whose pods may read Ray's metrics; made by the program when it brings Prometheus.",
    )
    observability: Observability | None = Field(
        default=None, description="How the stack is seen: Prometheus, its rules, dashboards; left out, it is not."
    )
    operator: Operator = Operator()
    image: Image = Image()
    head: Head = Head()
    workers: list[WorkerGroup] = Field(default=[WorkerGroup()], min_length=1)
    idle_timeout_seconds: int = Field(
        default=60, ge=1, description="How long a worker that runs no replica is kept, beyond its group's min_replicas."
    )
    gcs_fault_tolerance: GcsFaultTolerance | None = Field(
        default=None, description="Where the Ray head keeps its state; left out, a Ray cluster goes with its head."
    )
    redis_password: SecretKey | None = Field(
        default=None, description="Where the password of serving.auth.redis_url is; left out, that Redis has none."
    )
    upgrade: Upgrade = Field(default=NewCluster(), description="How a change of the Ray cluster comes about.")
    serving: Settings = Settings()
    keys: list[Key] = Field(
        default=[], description="Who may ask; `make key NAME=...` makes an item. A native cluster needs none: sk-local."
    )
    ready_timeout_seconds: int = Field(
        default=900,
        ge=60,
        description="How long `up` waits for the RayService to be Ready; of an incremental upgrade, for each surge.",
    )
    max_hourly_usd: float | None = Field(
        default=None,
        gt=0,
        description="What a cluster of kind eks may cost an hour at its largest, an upgrade's second Ray cluster among "
        "it; `make cost` shows what it does.",
    )

    @model_validator(mode="after")
    def _the_contract_holds(self) -> "StackConfig":
        contract.check(self)
        return self

    @property
    def accelerator(self) -> Accelerator:
        """Of the stack's one image. A native cluster's pods reach no GPU, whatever its node says that it has."""
        gpus = any(group.gpus for group in self.workers) and not isinstance(self.cluster, NativeCluster)
        return "gpu" if gpus else "cpu"

    @property
    def autoscaling(self) -> bool:
        """Whether Ray adds and removes workers."""
        return any(group.min_replicas < group.max_replicas for group in self.workers)

    @property
    def surge(self) -> dict[str, int]:
        """By worker group, the pods that an upgrade adds at most to those of the stack. A head comes with them.

        An incremental one adds as many as its replicas need: KubeRay starts the new Ray cluster at min_replicas, and
        what more there is of it Ray's autoscaler adds. The old one keeps its min_replicas to the end.
        """
        if isinstance(self.upgrade, NoUpgrade):
            return {}
        if isinstance(self.upgrade, NewCluster):
            return {group.name: group.max_replicas for group in self.workers}
        course = list(self.upgrade.course())
        return {
            group.name: max(self._pods(group, new) + self._pods(group, old) for new, old in course)
            - self._pods(group, 100)
            for group in self.workers
        }

    def _pods(self, group: WorkerGroup, capacity: int) -> int:
        """Pods of a group in a Ray cluster that serves with a part of its replicas, given in percent."""
        cpu_groups = [other for other in self.workers if not other.gpus]
        needed = 0.0
        for demand in demands(self.serving):
            # Ray's autoscaler spares GPUs for those that need them (AUTOSCALER_CONSERVE_GPU_NODES).
            elsewhere = group.gpus and not demand.gpus and any(other.holds(demand) for other in cpu_groups)
            if group.holds(demand) and not elsewhere:
                needed += replicas(demand.replicas, capacity) * group.share(demand)
        # What only floating point makes of a whole number is no pod.
        return min(group.max_replicas, max(group.min_replicas, math.ceil(round(needed, 6))))

    @property
    def patience_seconds(self) -> int:
        """How long `up` waits for the RayService: with each surge replicas start, and then requests move."""
        if isinstance(self.upgrade, Incremental):
            return self.ready_timeout_seconds * len(self.upgrade.surges) + self.upgrade.traffic_seconds
        return self.ready_timeout_seconds

    @property
    def feature_gates(self) -> list[str]:
        """What the KubeRay operator does only when told to."""
        return ["RayServiceIncrementalUpgrade"] if isinstance(self.upgrade, Incremental) else []

    @property
    def models_path(self) -> str | None:
        """Directory of the nodes from which pods read built-in models; None where they serve none."""
        return self.cluster.models_path if any(model.on_node for _, model in weights(self.serving)) else None

    @property
    def api_keys(self) -> list[Key]:
        """The keys that the gateway takes."""
        return self.keys or [Key(name="local", sha256=digest(LOCAL_KEY))]


def parse(values: Mapping[str, Any], source: str, whatever_it_costs: bool = False) -> StackConfig:
    """The stack config in `values` (keys without the project's prefix); `source` is named in errors."""
    stack = validate(StackConfig, values, source)
    try:
        if not whatever_it_costs:
            contract.cost_is_within_limits(stack)
    except ValueError as error:
        raise SettingsError(f"{source}:\n  {error}") from None
    return stack


def from_file(stack: str, root: Path = ROOT, whatever_it_costs: bool = False) -> StackConfig:
    """The config of Pulumi.<stack>.yaml, read without Pulumi: so early that nothing has begun yet."""
    path = root / f"Pulumi.{stack}.yaml"
    if not path.exists():
        known = sorted(p.name.split(".")[1] for p in root.glob("Pulumi.*.yaml"))
        raise SettingsError(f"stack {stack!r} has no {path.name}; fix: use {nearest(stack, known)}, or write that file")
    try:
        content = read_yaml(path) or {}
    except ValueError as error:
        raise SettingsError(f"{path.name} is not valid YAML: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("config") or {}, dict):
        raise SettingsError(f"{path.name}: expected a mapping with a `config:` mapping inside")
    return parse(_ours(content.get("config") or {}), path.name, whatever_it_costs)


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

"""The validated configuration of a stack: what a Pulumi.<stack>.yaml may say under `blueprint:`.

A wrong value is a SettingsError that names key, value, reason and fix, raised before anything is created.
"""

import ipaddress
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from app.builtin import models_dir
from app.keys import Key, digest
from app.settings import (
    Demand,
    LanguageModel,
    Settings,
    SettingsError,
    Strict,
    demands,
    require_distinct,
    validate,
    weights,
)
from infra import versions
from infra.aws.config import SYSTEM, EksCluster, Pool
from infra.aws.instances import suited
from infra.upgrade import Incremental, NewCluster, NoUpgrade, Upgrade, replicas

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
    def models_path(self) -> str:
        """The node sees this machine's files."""
        return str(models_dir())

    @property
    def kubeconfig_path(self) -> Path:
        return native_kubeconfig()

    @property
    def context(self) -> str | None:
        """The native kubeconfig has one context only."""
        return None


class ExistingCluster(Strict):
    """A cluster that somebody else runs, reached through a kubeconfig."""

    kind: Literal["existing"] = "existing"
    contexts: list[str] = Field(
        min_length=1,
        description="The kubeconfig contexts that this stack may be deployed to. Of several, the current one is taken.",
    )
    kubeconfig: str | None = Field(
        default=None, description="Path of the kubeconfig; $KUBECONFIG or ~/.kube/config when left out."
    )
    models_path: str | None = Field(
        default=None,
        pattern="^/",
        description="Directory of its nodes with the built-in models (`python -m app.builtin` makes them); needed when "
        "any is served.",
    )

    @property
    def kubeconfig_path(self) -> Path:
        # Of a KUBECONFIG list, kubectl itself would merge all; Pulumi's provider takes one file.
        default = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0] or "~/.kube/config"
        return ROOT / Path(self.kubeconfig or default).expanduser()

    @property
    def context(self) -> str:
        """The context to deploy to. Raises SettingsError when the kubeconfig has none that the stack allows."""
        path = self.kubeconfig_path
        wants = "fix: set cluster.kubeconfig in the stack file or KUBECONFIG to"
        try:
            content = yaml.safe_load(path.read_text())
            known = [entry["name"] for entry in content["contexts"]]
        except OSError as error:
            raise SettingsError(
                f"cannot read the kubeconfig {path}: {error.strerror}; {wants} a file that you may read"
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
            raise SettingsError(f"{path} is not a kubeconfig; {wants} one") from None
        context = self.contexts[0] if len(self.contexts) == 1 else content.get("current-context")
        if context not in self.contexts:
            raise SettingsError(
                f"cluster.contexts = {self.contexts}: the current context of {path} is {context!r}, where this stack "
                "does not belong; fix: kubectl config use-context with one of them, or add it to the list"
            )
        if context not in known:
            raise SettingsError(
                f"cluster.contexts = {self.contexts}: {context!r} is not in {path}; "
                f"fix: name one of its contexts: {', '.join(known) or 'it has none'}"
            )
        return context


Accelerator = Literal["cpu", "gpu"]
"""What an image's vLLM computes on; the name of its lock in requirements/."""

Cluster = Annotated[NativeCluster | ExistingCluster | EksCluster, Field(discriminator="kind")]


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
        if "@" in image or ":" in image.rpartition("/")[2]:
            raise ValueError(f"has a tag or digest; fix: leave it out, the tag is v{versions.KUBERAY}")
        return image


class Image(Strict):
    """Where the application image lies. Its tag is a digest of what goes into it (infra/image.py)."""

    repository: str = Field(default="localhost/blueprint", description="Image name without tag, with registry if any.")
    base: str = Field(
        default="docker.io/library/debian:bookworm-slim",
        description="Image of Debian 12 to build on, from any registry; <name>@sha256:<digest> pins it.",
    )


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

    def holds(self, demand: Demand) -> bool:
        """Whether a pod has room for what of a replica must be in one place."""
        gpus = demand.gpus if demand.one_node else min(demand.gpus, 1)
        return demand.cpus <= self.cpus and gpus <= self.gpus

    def share(self, demand: Demand) -> float:
        """The part of a pod that a replica takes: what is left over of one that is full counts, too."""
        part = max(demand.cpus / self.cpus, demand.gpus / self.gpus if demand.gpus else 0)
        return 1 / math.floor(1 / part + 1e-9) if 0 < part <= 1 else part


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


class SecretKey(Strict):
    """A value in a Secret of the stack's namespace, which somebody else makes there, say External Secrets."""

    name: str = Field(pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", description="Name of the Secret.")
    key: str = Field(pattern=r"^[-._a-zA-Z0-9]+$", description="Which of its values.")


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
        default="monitoring", pattern=NAMESPACE, description="Namespace whose pods may read Ray's metrics."
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

    @model_validator(mode="after")
    def _password_has_a_redis(self) -> "StackConfig":
        if self.redis_password and not self.serving.auth.redis_url:
            raise ValueError(
                f"redis_password.name = {self.redis_password.name!r}: there is no Redis that it is for; "
                "fix: set serving.auth.redis_url, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _builtin_models_are_on_the_nodes(self) -> "StackConfig":
        found = [(key, model.source) for key, model in weights(self.serving) if model.on_node]
        if found and self.cluster.models_path is None:
            key, source = found[0]
            if isinstance(self.cluster, EksCluster):
                raise ValueError(
                    f"serving.{key}.source = {source!r}: pods read it from their node, and nodes of EKS come and go "
                    "without it; fix: serve weights from S3 or a hub, or leave that model out ([] or null)"
                )
            raise ValueError(
                f"cluster.models_path: is missing, and pods read serving.{key}.source = {source!r} from their node; "
                "fix: copy the directory of the models that `python -m app.builtin` prints to the nodes and name it "
                "here, or serve other weights"
            )
        return self

    @model_validator(mode="after")
    def _nodes_are_known(self) -> "StackConfig":
        """On EKS the program makes the nodes of each worker group; elsewhere they are somebody else's business."""
        if not isinstance(self.cluster, EksCluster):
            for index, group in enumerate(self.workers):
                if group.pool:
                    raise ValueError(
                        f"workers.{index}.pool: is for clusters of kind eks; fix: leave it out, nodes are the cluster's"
                    )
            return self
        for index, group in enumerate(self.workers):
            gpu = group.pool and group.pool.gpu
            if group.gpus and gpu is None:
                raise ValueError(
                    f"workers.{index}.pool.gpu: is missing, and the group's pods have {group.gpus} GPUs; "
                    "fix: say which, L4 or H100 for instance"
                )
            if gpu and not group.gpus:
                raise ValueError(
                    f"workers.{index}.pool.gpu = {gpu!r}: the group's pods have no GPU; fix: leave it out, or set gpus"
                )
            if group.name == SYSTEM:
                raise ValueError(
                    f"workers.{index}.name = {group.name!r}: is that of the cluster's own nodes; fix: choose another"
                )
            together = group.pool.to_a_gpu if group.pool else 1
            if together > 1:
                self._require_shareable(index, group)
            if not suited(gpu, group.cpus * together, group.gpus, group.memory_gib * together):
                raise ValueError(
                    f"workers.{index}: no instance that we know holds {_counted(together)} of {group.cpus} CPUs, "
                    f"{group.gpus} GPUs ({gpu or 'none'}) and {group.memory_gib} GiB; fix: lower them, some of "
                    "each is the node's own, or add the type to infra/aws/instances.csv"
                )
        known = {group.pool.gpu for group in self.workers if group.pool and group.pool.gpu}
        for key, model in weights(self.serving):
            wanted = model.placement.accelerator_type
            if wanted and wanted not in known:
                raise ValueError(
                    f"serving.{key}.placement.accelerator_type = {wanted!r}: no worker group has it; "
                    f"fix: set the pool.gpu of one to it, or use {' or '.join(sorted(known)) or 'none'}"
                )
        if self.cluster.cache and self.gcs_fault_tolerance:
            raise ValueError(
                f"gcs_fault_tolerance.redis_address = {self.gcs_fault_tolerance.redis_address!r}: the state is in "
                "cluster.cache; fix: keep one of them"
            )
        if self.cluster.cache and self.serving.auth.redis_url:
            raise ValueError(
                f"serving.auth.redis_url = {self.serving.auth.redis_url!r}: the counts are in cluster.cache; "
                "fix: keep one of them"
            )
        if self.image.repository.startswith("localhost/"):
            raise ValueError(
                f"image.repository = {self.image.repository!r}: no node can pull from there; "
                f"fix: use {self.cluster.registry}, which the program makes, or a registry of yours"
            )
        return self

    def _require_shareable(self, index: int, group: WorkerGroup) -> None:
        """ValueError where a pod or a replica would wait for itself: two of its workers on one GPU."""
        if group.gpus != 1:
            raise ValueError(
                f"workers.{index}.gpus = {group.gpus}: a pod with a share of a GPU has one; fix: set 1, or leave "
                "pool.share out"
            )
        for demand in demands(self.serving):
            if demand.gpus > 1 and group.holds(demand):
                raise ValueError(
                    f"workers.{index}.pool.share: serving.{demand.key} is split over {demand.gpus:g} GPUs, and its "
                    "workers could get the same one; fix: leave share out, or placement.strategy: STRICT_PACK, which "
                    "keeps it to a group with so many"
                )

    @model_validator(mode="after")
    def _engines_run_in_the_image(self) -> "StackConfig":
        """A stack has one image, and vLLM is built for GPUs or for CPUs."""
        if self.accelerator == "cpu":
            return self
        for key, model in weights(self.serving):
            if isinstance(model, LanguageModel) and not model.placement.num_gpus:
                raise ValueError(
                    f"serving.{key}.placement.num_gpus = 0: a stack with GPUs has the vLLM for GPUs, which computes on "
                    "no CPU; fix: set num_gpus, or serve this model in a stack without GPUs"
                )
        return self

    @model_validator(mode="after")
    def _upgrade_is_possible(self) -> "StackConfig":
        """What KubeRay would refuse, or wait for without an end."""
        if not isinstance(self.upgrade, Incremental):
            return self
        problem = f"upgrade.kind = {self.upgrade.kind!r}:"
        if isinstance(self.cluster, EksCluster) and self.cluster.entry:
            raise ValueError(
                f"{problem} its requests come by a Gateway, and cluster.entry leads past that; "
                "fix: set cluster.entry to null and give the Gateway a load balancer, or use NewCluster"
            )
        if isinstance(self.cluster, NativeCluster):
            raise ValueError(
                f"{problem} needs a Gateway API, which the native cluster has not; fix: use NewCluster, or a cluster "
                "of kind existing that has one"
            )
        if not self.autoscaling:
            raise ValueError(
                f"{problem} needs Ray's autoscaler, and every worker group has a fixed size; fix: raise a group's "
                "max_replicas above its min_replicas, or use NewCluster"
            )
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

    @model_validator(mode="after")
    def _replicas_fit(self) -> "StackConfig":
        """A replica that fits no pod waits for ever, with nothing but a warning in Ray's log."""
        require_distinct("workers", [group.name for group in self.workers])
        wanted = list(demands(self.serving))
        for demand in wanted:
            _require_a_pod_for(demand, self.workers)
        for unit, resource in (("CPUs", "cpus"), ("GPUs", "gpus")):
            offered = sum(getattr(group, resource) * group.max_replicas for group in self.workers)
            needed = sum(getattr(demand, resource) * demand.replicas for demand in wanted)
            if needed > offered:
                raise ValueError(
                    f"serving: all replicas together need {needed:g} {unit}, and the workers have {offered}; "
                    f"fix: raise workers.*.max_replicas or {resource}, or lower num_replicas or max_replicas"
                )
        return self


def _counted(pods: int) -> str:
    return "a pod" if pods == 1 else f"the {pods} pods that share a GPU, each"


def _require_a_pod_for(demand: Demand, workers: list[WorkerGroup]) -> None:
    """ValueError when no pod can hold what of a replica must be in one place."""
    if not any(group.holds(demand) for group in workers):
        gpus = demand.gpus if demand.one_node else min(demand.gpus, 1)
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

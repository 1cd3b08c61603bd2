"""What a stack file may say of a cluster of kind eks: all that the program creates on AWS.

Without Pulumi, so that a stack file can be checked anywhere. Names and ARNs that AWS makes of these values are
properties here, and known before anything exists.
"""

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from app.validation import Strict

GPU = Literal["T4", "A10G", "L4", "L40S", "A100-40G", "A100-80G", "H100", "H200", "B200", "B300"]
"""By Ray's names, as in a placement's accelerator_type."""
CAPACITY = ("reserved", "spot", "on-demand")
"""What Karpenter asks for, in this order, of what a pool may have."""
LOGGED_DAYS = Literal[1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827]
DISCOVERY = "karpenter.sh/discovery"
"""Tag of the subnets and security groups that Karpenter gives its nodes; its value is the cluster's name."""
CLUSTER = "cluster"
"""Tag of everything that a stack creates; its value is the cluster's name."""
POOL = "blueprint/pool"
"""Label of every node: the worker group that it is for, or SYSTEM."""
SYSTEM = "system"
"""The managed node group."""
TAG = Annotated[str, Field(pattern=r"^[a-zA-Z0-9 .:/=+@_-]+$", max_length=256)]


class Tags(Strict):
    """Tags of everything that the stack creates. The three say who answers for it, who pays, and what it is for."""

    owner: TAG = Field(description="The team that answers for it.")
    cost_center: TAG = Field(description="Who pays.")
    environment: TAG = Field(description="What it is for, say dev or prod.")
    more: dict[str, TAG] = Field(default={}, description="Others that your organisation asks for, by key.")

    @field_validator("more")
    @classmethod
    def _keys_are_free(cls, more: dict[str, str]) -> dict[str, str]:
        for key in more:
            if not re.fullmatch(r"[a-zA-Z0-9 .:/=+@_-]{1,128}", key) or key.lower().startswith("aws:"):
                raise ValueError(f"{key!r} is no key of a tag; fix: up to 128 letters, digits and .:/=+-@_, not aws:…")
            if key in ("owner", "cost-center", "environment", "managed-by", CLUSTER):
                raise ValueError(f"{key!r} is a tag already; fix: leave it out")
        return more

    @property
    def all(self) -> dict[str, str]:
        """As AWS gets them."""
        required = {"owner": self.owner, "cost-center": self.cost_center, "environment": self.environment}
        return {**self.more, **required, "managed-by": "pulumi"}


class Network(Strict):
    """The VPC: three zones, nodes in private subnets, load balancers in public ones."""

    cidr: str = Field(default="10.40.0.0/16", description="Its addresses, /16 to /20; every pod takes one.")
    nat: Literal["one", "per-zone"] = Field(
        default="per-zone",
        description="NAT gateways, and ECR endpoints with them: one, which all zones lose with its own, or one per "
        "zone.",
    )
    flow_log_days: LOGGED_DAYS = Field(default=30, description="How long it is kept who talked to whom.")

    @field_validator("cidr")
    @classmethod
    def _cidr_fits_a_vpc(cls, cidr: str) -> str:
        network = _network(cidr)
        if not 16 <= network.prefixlen <= 20 or not network.is_private:
            raise ValueError("is no private network of /16 to /20; fix: write one that yours do not use, 10.40.0.0/16")
        return cidr

    @property
    def private(self) -> list[str]:
        """A subnet for the nodes of each zone, an eighth of the addresses."""
        return [str(subnet) for subnet in list(_network(self.cidr).subnets(3))[:3]]

    @property
    def public(self) -> list[str]:
        """A subnet for the load balancers of each zone, a sixty-fourth of the addresses."""
        after = list(_network(self.cidr).subnets(3))[3]
        return [str(subnet) for subnet in list(after.subnets(3))[:3]]


class Nodes(Strict):
    """The managed node group: system pods, controllers and Ray heads, on demand and without GPUs."""

    instance_types: list[Annotated[str, Field(pattern=r"^[a-z][-a-z0-9]*\.[a-z0-9]+$")]] = Field(
        default=["m7i.xlarge", "m6i.xlarge"], min_length=1, description="In order of preference, of x86-64."
    )
    min: int = Field(default=2, ge=1, description="Nodes at least, and at first.")
    max: int = Field(default=4, ge=1, description="Nodes at most, also while they are replaced.")
    disk_gib: int = Field(default=100, ge=50, description="Root volume; a Ray head's image alone takes 10 GiB.")

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> "Nodes":
        if self.min > self.max:
            raise ValueError(f"min = {self.min}: is more than max ({self.max}); fix: lower it, or raise that")
        return self


class Share(Strict):
    """Several pods to a GPU. Nothing divides its memory: what their engines take of it must fit together."""

    by: Literal["time-slicing", "mps"] = Field(
        default="time-slicing", description="Whether they take turns, or run at once by NVIDIA's MPS."
    )
    replicas: int = Field(ge=2, le=16, description="How many pods to a GPU.")


class Pool(Strict):
    """The nodes of a worker group."""

    gpu: GPU | None = Field(default=None, description="Which GPU its nodes have; a must where the group asks for any.")
    nodes: Literal["karpenter", "managed"] = Field(
        default="karpenter",
        description="Who starts them: Karpenter, for pods that wait, or a managed node group, which has all of them "
        "at all times, those of an upgrade too.",
    )
    capacity: list[Literal["reserved", "spot", "on-demand"]] = Field(
        default=["on-demand"], min_length=1, description="What its nodes may be: reserved, spot, on-demand, in order."
    )
    reservations: list[Annotated[str, Field(pattern=r"^cr-[0-9a-f]{8,17}$")]] = Field(
        default=[], description="Capacity reservations that `reserved` means, capacity blocks among them."
    )
    share: Share | None = Field(
        default=None, description="Several pods to a GPU, in a managed node group; left out, each has its own."
    )
    warm: int = Field(
        default=0, ge=0, description="Room for so many pods more that is always there, with their image on the node."
    )
    max_gpus: int | None = Field(
        default=None,
        ge=1,
        description="GPUs that its nodes may have at most, with those of an upgrade and warm ones: your quota, or what "
        "is reserved. What needs more is refused.",
    )
    disk_gib: int = Field(default=200, ge=50, description="Root volume: images and scratch space of the pods.")

    @field_validator("capacity")
    @classmethod
    def _capacity_is_in_order(cls, capacity: list[str]) -> list[str]:
        ordered = [kind for kind in CAPACITY if kind in capacity]
        if capacity != ordered:
            raise ValueError(f"Karpenter takes them in another order; fix: write {ordered}")
        return capacity

    @model_validator(mode="after")
    def _a_managed_group_can(self) -> "Pool":
        if self.nodes == "managed" and self.capacity not in (["spot"], ["on-demand"]):
            raise ValueError(
                f"capacity = {self.capacity}: a managed node group is either spot or on-demand; fix: choose one of "
                "them, or nodes: karpenter"
            )
        return self

    @model_validator(mode="after")
    def _shared_gpus_are_counted(self) -> "Pool":
        if self.share and self.nodes == "karpenter":
            raise ValueError(
                f"share.replicas = {self.share.replicas}: Karpenter counts the GPUs that EC2 names, and would start a "
                "node for each pod; fix: set nodes: managed, or let replicas share the GPU of one pod by a fraction in "
                "placement.num_gpus"
            )
        return self

    @property
    def to_a_gpu(self) -> int:
        """How many pods have the same GPU."""
        return self.share.replicas if self.share else 1

    @model_validator(mode="after")
    def _reservations_are_named(self) -> "Pool":
        if self.reservations and "reserved" not in self.capacity:
            raise ValueError(
                f"reservations = {self.reservations}: nothing would run there; fix: add reserved to capacity"
            )
        if "reserved" in self.capacity and not self.reservations:
            raise ValueError("reservations = []: nothing is reserved; fix: list them, or take reserved out of capacity")
        return self


class Cache(Strict):
    """A Valkey, in which the Ray head keeps its state, so that the next head goes on where it was, and the gateway's
    replicas count together what each key takes.
    """

    node_type: str = Field(
        default="cache.t4g.small", pattern=r"^cache\.[a-z0-9]+\.[a-z0-9]+$", description="Size of its nodes."
    )
    nodes: int = Field(
        default=2, ge=1, le=6, description="Nodes: a second one, in another zone, takes over from the first."
    )


class Entry(Strict):
    """The load balancer in front of the models: for private networks, or public with TLS."""

    public: bool = Field(default=False, description="Whether the internet reaches it.")
    host: str | None = Field(
        default=None,
        pattern=r"^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\.)+[a-z]{2,}$",
        description="The name by which clients call it: a CNAME of yours to the output `load_balancer`.",
    )
    certificate: str | None = Field(
        default=None,
        pattern=r"^arn:aws:acm:[-a-z0-9]+:[0-9]{12}:certificate/[-a-z0-9]+$",
        description="ARN of the ACM certificate for that name. With it, TLS on port 443; without, HTTP on port 80.",
    )

    @model_validator(mode="after")
    def _public_is_encrypted(self) -> "Entry":
        for key, value in (("certificate", self.certificate), ("host", self.host)):
            if self.public and value is None:
                raise ValueError(
                    f"{key}: is missing, and API keys do not go over the internet in the clear; "
                    "fix: set host and certificate, or leave public out"
                )
        if bool(self.certificate) != bool(self.host):
            key, value = ("host", self.host) if self.host else ("certificate", self.certificate)
            raise ValueError(
                f"{key} = {value!r}: a certificate is for a name, and the load balancer's own has none; "
                "fix: set host and certificate, or neither"
            )
        return self


class Mirrors(Strict):
    """Where charts and images come from in place of their projects' registries."""

    charts: str | None = Field(
        default=None, pattern=r"^(https|oci)://[^\s]*[^/\s]$", description="A repository that has all charts."
    )
    images: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][^\s]*[^/\s]$",
        description="A registry with all images, each under its name without the first part: <mirror>/karpenter/…",
    )


class EksCluster(Strict):
    """A cluster on AWS that the program creates, with all that is around it."""

    kind: Literal["eks"]
    name: str = Field(
        pattern=r"^[a-z]([-a-z0-9]{0,22}[a-z0-9])?$", description="Name of the cluster, and first of all names with it."
    )
    account: str = Field(pattern=r"^[0-9]{12}$", description="The AWS account; credentials of another are refused.")
    # Of AWS's own partition: China and GovCloud have other ARNs.
    region: str = Field(pattern=r"^(af|ap|ca|eu|il|me|mx|sa|us)-[a-z]+-[0-9]$", description="The AWS region.")
    zones: list[str] = Field(
        min_length=3, max_length=3, description="Three of its zones that have the GPUs, say us-east-1a."
    )
    tags: Tags
    network: Network = Network()
    public_cidrs: list[str] = Field(
        default=[],
        description="Networks that reach the Kubernetes API from outside; left out, the VPC and what is joined to it "
        "does, and nobody else.",
    )
    admins: list[Annotated[str, Field(pattern=r"^arn:aws:iam::[0-9]{12}:(role|user)/[a-zA-Z0-9+=,.@_/-]+$")]] = Field(
        min_length=1, description="ARNs of those who administer the cluster; who runs Pulumi must be among them."
    )
    log_days: LOGGED_DAYS = Field(default=30, description="How long the logs of the control plane are kept.")
    deletion_protection: bool = Field(
        default=True, description="Whether `down` is refused, for the cluster and for what holds data."
    )
    nodes: Nodes = Nodes()
    entry: Entry | None = Field(
        default=Entry(), description="The way in from outside the cluster: an internal load balancer; null for none."
    )
    mirrors: Mirrors = Mirrors()
    cache: Cache | None = Field(
        default=None,
        description="A Valkey for the Ray head's state and the gateway's counts; left out, a Ray cluster goes with its "
        "head, and each replica of the gateway counts for itself.",
    )

    @field_validator("zones", "admins")
    @classmethod
    def _all_differ(cls, names: list[str]) -> list[str]:
        if len({*names}) < len(names):
            raise ValueError("one of them is there twice; fix: name each once")
        return names

    @field_validator("public_cidrs")
    @classmethod
    def _cidrs_are_few(cls, cidrs: list[str]) -> list[str]:
        for cidr in cidrs:
            if _network(cidr).prefixlen < 8:
                raise ValueError(f"{cidr} is the whole internet, or much of it; fix: name your own networks, or none")
        return cidrs

    @model_validator(mode="after")
    def _zones_are_the_regions(self) -> "EksCluster":
        for zone in self.zones:
            if not re.fullmatch(rf"{self.region}[a-z]", zone):
                raise ValueError(
                    f"zones = {self.zones}: {zone} is not a zone of {self.region}; fix: write {self.region}a and so on"
                )
        return self

    @model_validator(mode="after")
    def _certificate_is_at_hand(self) -> "EksCluster":
        certificate = self.entry and self.entry.certificate
        if certificate and not certificate.startswith(f"arn:aws:acm:{self.region}:{self.account}:"):
            raise ValueError(
                f"entry.certificate = {certificate!r}: a load balancer takes those of its own region and account; "
                f"fix: name one of {self.account} in {self.region}, or import it there"
            )
        return self

    @property
    def all_tags(self) -> dict[str, str]:
        """Of everything that is created: those of the stack file, and the cluster's name."""
        return {**self.tags.all, CLUSTER: self.name}

    @property
    def models_path(self) -> None:
        """Its nodes come and go, and none has built-in models."""
        return None

    @property
    def bucket(self) -> str:
        """Name of the bucket with the weights."""
        return f"{self.name}-weights-{self.account}-{self.region}"

    @property
    def registry(self) -> str:
        """The image repository that the program makes: name without tag."""
        return f"{self.account}.dkr.ecr.{self.region}.amazonaws.com/{self.name}"

    @property
    def arn(self) -> str:
        """ARN of the EKS cluster; `aws eks update-kubeconfig` makes a context of this name."""
        return f"arn:aws:eks:{self.region}:{self.account}:cluster/{self.name}"

    @property
    def update_kubeconfig(self) -> str:
        """The command by which one's kubeconfig gets to know it."""
        return f"aws eks update-kubeconfig --region {self.region} --name {self.name}"

    def role(self, role: str) -> str:
        """Name of the stack's IAM role of a purpose. IAM is global: another region has others."""
        return f"{self.name}-{self.region}-{role}"


def _network(cidr: str) -> ipaddress.IPv4Network:
    try:
        return ipaddress.IPv4Network(cidr)
    except ValueError as error:
        raise ValueError(f"{error}; fix: write <address>/<bits>, say 10.40.0.0/16") from None

"""What a stack costs before it exists: its parts that are paid for by the hour, at their fewest and at their most.

A pure function of configuration, prices and date. A price that is not known is said, and is no zero: the sums are then
those of the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import date
from typing import TYPE_CHECKING, NamedTuple

from app.settings import LanguageModel, weights
from infra import versions
from infra.aws import prices as price_list
from infra.aws.config import EksCluster, Pool
from infra.aws.instances import Instance, absent
from infra.aws.pools import THROUGHPUT, instances, most_nodes
from infra.aws.prices import Price, Prices
from infra.observability.config import ObjectsOnly

if TYPE_CHECKING:
    from infra.config import StackConfig, WorkerGroup

FREE_THROUGHPUT = 125
"""MiB/s that are in the price of a gp3 volume: https://docs.aws.amazon.com/ebs/latest/userguide/general-purpose.html"""
KEYS = 2
"""KMS keys: Kubernetes' Secrets, and weights and images (infra/aws/cluster.py, storage.py)."""
ENDPOINTS = 2
"""Interface endpoints: ECR's API and its registry (infra/aws/network.py)."""
BY_USE = {
    "data through NAT": "nat-gb",
    "load balancer's capacity units": "nlcu",
    "images in ECR, each GB": "ecr-gb",
    "logs of control plane and network": None,
    "data to the internet and between zones": None,
    "requests to S3, KMS, SQS; data through endpoints; Valkey's backups": None,
}
"""What is paid for by use, which nobody knows before, and the price of one where there is a single one."""


class Range(NamedTuple):
    """USD an hour."""

    least: float
    """With min_replicas."""
    most: float
    """With max_replicas, an upgrade's second Ray cluster and warm nodes, on the cheapest instances that hold pods."""
    worst: float
    """The same on the dearest, which Karpenter starts when there is nothing else."""


class Line(NamedTuple):
    """A part of a stack."""

    component: str
    item: str
    least: float
    """How many."""
    most: float
    price: Price | None
    """Of one; of instances the cheapest."""
    dearest: Price | None
    """Of one, where it may be another than the cheapest."""
    spot: Price | None = None
    """What one costs by spot now; at most `price`, which is all that is known without asking AWS."""
    may_be_spot: bool = False

    @property
    def usd(self) -> Range:
        """Raises ValueError where the price is not known."""
        if self.price is None or self.dearest is None:
            raise ValueError(f"{self.component}: the price of {self.item} is not known")
        each, dearest = self.price.hourly, self.dearest.hourly
        return Range(self.least * each, self.most * each, self.most * dearest)

    @property
    def known(self) -> bool:
        return self.price is not None and self.dearest is not None


class Estimate(NamedTuple):
    region: str
    lines: list[Line]
    prices: Prices

    @property
    def total(self) -> Range:
        """Of the parts whose prices are known."""
        found = [line.usd for line in self.lines if line.known]
        return Range(*(sum(usd[part] for usd in found) for part in range(3)))

    @property
    def unknown(self) -> list[str]:
        """Items that are not in the sums, since their prices are not known."""
        return list(dict.fromkeys(line.item for line in self.lines if not line.known))


class GroupPrice(NamedTuple):
    """What the nodes of a worker group cost."""

    name: str
    usd: float
    """Of one node with its volumes, for an hour, on demand."""
    pods: int
    """How many of the group's pods it holds."""


class Hourly(NamedTuple):
    """What a stack costs by the hour, by the pods that are there."""

    always: float
    """USD of all but the nodes of worker groups, at its fewest."""
    groups: list[GroupPrice]


def estimate(stack: StackConfig, on: date, prices: Prices | None = None) -> Estimate:
    """What the stack costs, by its region's prices in the files when none are given.

    Raises TypeError for a cluster that is not of kind eks: what it costs is not for us to say.
    """
    if not isinstance(stack.cluster, EksCluster):
        raise TypeError(f"a cluster of kind {stack.cluster.kind} has no price list")
    known = price_list.known(stack.cluster.region) if prices is None else prices
    return Estimate(stack.cluster.region, list(_lines(stack, stack.cluster, known, on)), known)


def hourly(stack: StackConfig, on: date) -> Hourly:
    """The same prices, of what always runs and of a node of each group. Those that are not known count as 0."""
    found = estimate(stack, on)
    assert isinstance(stack.cluster, EksCluster)
    always, groups = found.total.least, []
    for group in stack.workers:
        lines = [line for line in nodes(stack, stack.cluster, group, found.prices) if line.known]
        always -= sum(line.usd.least for line in lines)
        usd = sum(line.usd.most for line in lines) / most_nodes(stack, group)
        _, pods = _cheapest(stack.cluster, group, found.prices)
        groups.append(GroupPrice(group.name, usd, pods))
    return Hourly(always, groups)


def per_million_tokens(usd_per_hour: float, tokens_per_second: float) -> float:
    """USD for a million tokens of a stack that makes so many a second, all the time."""
    return usd_per_hour / (tokens_per_second * 3600) * 1e6


def kinds(eks: EksCluster, group: WorkerGroup) -> list[Instance]:
    """What the nodes of a worker group may be in the cluster's region."""
    return [kind for kind in instances(group) if kind.type not in absent(eks.region)]


def _lines(stack: StackConfig, eks: EksCluster, prices: Prices, on: date) -> Iterator[Line]:
    def line(component: str, item: str, least: float, most: float | None = None) -> Line:
        return Line(component, item, least, least if most is None else most, prices.get(item), prices.get(item))

    late = on >= versions.EKS_STANDARD_SUPPORT_ENDS
    yield line("EKS control plane", "eks-cluster-extended" if late else "eks-cluster", 1)
    # Of a managed group's types on demand, the first that is to be had.
    first = eks.nodes.instance_types[0]
    dearest = _dearest(prices, eks.nodes.instance_types)
    yield Line("system nodes", first, eks.nodes.min, eks.nodes.max, prices.get(first), dearest)
    yield line("  volumes, GiB", "gp3-gb", eks.nodes.min * eks.nodes.disk_gib, eks.nodes.max * eks.nodes.disk_gib)
    for group in stack.workers:
        yield from nodes(stack, eks, group, prices)
    zones = len(eks.zones) if eks.network.nat == "per-zone" else 1
    yield line("NAT gateways", "nat-gateway", zones)
    balancers = len(eks.zones) if eks.entry and eks.entry.public else 0
    yield line("public addresses", "public-ipv4", zones + balancers)
    yield line("ECR's VPC endpoints", "interface-endpoint", ENDPOINTS * zones)
    if eks.entry:
        yield line("load balancer", "network-load-balancer", 1)
    if eks.cache:
        yield line("Valkey", eks.cache.node_type, eks.cache.nodes)
    seen = stack.observability
    if seen and not isinstance(seen, ObjectsOnly) and seen.storage:
        yield line("Prometheus' volume, GiB", "gp3-gb", seen.storage.gib)
    yield line("KMS keys", "kms-key", KEYS)
    if stored := _stored_gb(stack, eks):
        yield line("weights in S3, GB", "s3-gb", stored)


def nodes(stack: StackConfig, eks: EksCluster, group: WorkerGroup, prices: Prices) -> Iterator[Line]:
    """A worker group's nodes and their volumes: of a NodePool as many as pods need, of a managed group all of them."""
    pool, fit = group.pool or Pool(), kinds(eks, group)
    most = most_nodes(stack, group)
    cheapest, on_each = _cheapest(eks, group, prices)
    least = most if pool.nodes == "managed" else math.ceil((group.min_replicas + pool.warm) / on_each)
    spot = [price for kind in fit if (price := prices.get(f"spot:{kind.type}"))]
    yield Line(
        f"{group.name} nodes",
        cheapest.type,
        least,
        most,
        prices.get(cheapest.type),
        _dearest(prices, [kind.type for kind in fit]),
        min(spot, key=lambda price: price.hourly, default=None),
        "spot" in pool.capacity,
    )
    gib = ("  volumes, GiB", "gp3-gb", pool.disk_gib)
    fast = ("  their throughput, MiB/s", "gp3-mibps", THROUGHPUT - FREE_THROUGHPUT)
    for component, item, each in (gib, fast):
        yield Line(component, item, least * each, most * each, prices.get(item), prices.get(item))


def _cheapest(eks: EksCluster, group: WorkerGroup, prices: Prices) -> tuple[Instance, int]:
    """The cheapest instance that holds a group's pods, and how many of them."""
    kind = min(kinds(eks, group), key=lambda kind: prices[kind.type].hourly if kind.type in prices else math.inf)
    return kind, kind.pods(group.cpus, group.gpus, group.memory_gib, (group.pool or Pool()).to_a_gpu)


def _dearest(prices: Prices, items: list[str]) -> Price | None:
    """None unless the prices of all are known."""
    found = [prices[item] for item in items if item in prices]
    return max(found, key=lambda price: price.hourly) if len(found) == len(items) else None


def _stored_gb(stack: StackConfig, eks: EksCluster) -> float:
    """Weights in the stack's own bucket, in GB, each source once: those of a known size, at 16 bits a parameter."""
    sizes = {
        model.source: model.size.parameters_billion * (model.size.bytes_per_parameter or 2)
        for _, model in weights(stack.serving)
        if isinstance(model, LanguageModel) and model.size and model.source.startswith(f"s3://{eks.bucket}/")
    }
    return sum(sizes.values())

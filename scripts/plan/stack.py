"""What of a stack file the simulation asks for, and the same stack with another setting."""

import csv
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from app.settings import Demand, SettingsError, Variant, demands, stages, weights
from app.validation import nearest
from infra import config, cost
from infra.aws.config import EksCluster, Pool
from infra.aws.prices import HOURS_PER_MONTH, Prices
from infra.config import StackConfig, WorkerGroup
from infra.platform.karpenter import EMPTY_FOR
from scripts.console import Problem
from scripts.plan.nodes import Fleet
from scripts.plan.simulation import Deployment

STAGES = Path(__file__).with_name("stages.csv")


class Stage(NamedTuple):
    """A part of a cold start."""

    name: str
    seconds: float
    per_gib: float
    """Seconds for each GiB of weights, on top."""
    mark: str
    """measured or estimate."""
    source: str

    def takes(self, gib: float) -> float:
        return self.seconds + self.per_gib * gib


def cold_start() -> dict[str, Stage]:
    """The stages of stages.csv by name, in order: what a replica on a new node waits for."""
    with STAGES.open(newline="") as file:
        rows = [
            Stage(row["stage"], float(row["seconds"]), float(row["seconds_per_gib"]), row["mark"], row["source"])
            for row in csv.DictReader(file)
        ]
    return {stage.name: stage for stage in rows}


class Planned(NamedTuple):
    """The variant that is planned for, in its stack."""

    stack: StackConfig
    eks: EksCluster
    key: str
    """Where its settings are, under serving."""
    name: str
    """As in a request's `model`."""
    variant: Variant
    group: WorkerGroup
    """Whose pods run it."""

    @property
    def gib(self) -> float:
        """Its weights as they are stored, at 16 bits a parameter when nothing else is said."""
        size = self.variant.size
        return size.parameters_billion * 1e9 * (size.bytes_per_parameter or 2) / 2**30 if size else 0.0


def choose(stack_name: str, stack: StackConfig, name: str) -> Planned:
    """The variant of this name; without one, the first that scales, or else the first. Raises Problem."""
    if not isinstance(stack.cluster, EksCluster):
        raise Problem(
            f"Pulumi.{stack_name}.yaml: cluster.kind = {stack.cluster.kind!r}: its nodes have no price that we know",
            "name a stack of kind eks: make plan STACK=prod",
        )
    variants = {
        f"{model.name}@{variant.name}": (f"models.{i}.variants.{j}", variant)
        for i, model in enumerate(stack.serving.models)
        for j, variant in enumerate(model.variants)
    }
    if not variants:
        raise Problem(
            f"Pulumi.{stack_name}.yaml: serving.models = []: there is no language model to plan for",
            "name another stack",
        )
    scales = [name for name, (_, variant) in variants.items() if variant.scaling.autoscaling_config]
    chosen = name or (scales or list(variants))[0]
    if chosen not in variants:
        raise Problem(
            f"MODEL = {name!r}: the stack has no such variant",
            f"use {nearest(name, list(variants))}; there are {', '.join(variants)}",
        )
    key, variant = variants[chosen]
    if not variant.placement.num_gpus:
        raise Problem(
            f"Pulumi.{stack_name}.yaml: serving.{key}.placement.num_gpus = 0: GPU hours and their cost are "
            "planned, and it takes none",
            "name a variant on GPUs with MODEL=, or set num_gpus",
        )
    if stack.serving.gateway.fast:
        raise Problem(
            f"Pulumi.{stack_name}.yaml: serving.gateway.fast = True: who waits, waits in the replicas, which is not "
            "simulated",
            "plan it without fast: as many replicas work on as many requests",
        )
    demand = next(demand for demand in demands(stack.serving) if demand.key == key)
    group = next(group for group in stack.workers if group.holds(demand))
    return Planned(stack, stack.cluster, key, chosen, variant, group)


def deployment(planned: Planned, alone_s: float, full_s: float) -> Deployment:
    """Its requests take so long alone, and with max_ongoing_requests."""
    scaling, start = planned.variant.scaling, cold_start()
    return Deployment(
        autoscaling=scaling.autoscaling_config,
        replicas=scaling.num_replicas or 1,
        max_ongoing_requests=scaling.max_ongoing_requests,
        max_queued_requests=scaling.max_queued_requests,
        callers=planned.stack.serving.gateway.scaling.greatest,
        shutdown_s=scaling.graceful_shutdown_timeout_s,
        alone_s=alone_s,
        full_s=full_s,
        start_s=sum(start[name].takes(planned.gib) for name in ("weights", "engine", "first token")),
    )


def fleet(planned: Planned, prices: Prices) -> Fleet:
    """The nodes of its group, the cheapest that hold the pods, on demand. Raises Problem where a price is not known."""
    stack, eks, group = planned.stack, planned.eks, planned.group
    pool, start = group.pool or Pool(), cold_start()
    nodes, *volumes = cost.nodes(stack, eks, group, prices)
    for line in (nodes, *volumes):
        if line.price is None:
            raise Problem(
                f"cluster.region = {eks.region!r}: the price of {line.item} there is not known",
                "make prices STACK=<stack>, with AWS credentials, writes it into infra/aws/prices.csv",
            )
    kind = next(kind for kind in cost.kinds(eks, group) if kind.type == nodes.item)
    managed = pool.nodes == "managed"
    mine = next(demand for demand in demands(stack.serving) if demand.key == planned.key)
    return Fleet(
        others=sum(others(planned)),
        share=group.share(mine),
        least=group.min_replicas,
        most=group.max_replicas,
        per_node=kind.pods(group.cpus, group.gpus, group.memory_gib, pool.to_a_gpu),
        warm=0 if managed else pool.warm,
        fixed=round(nodes.most) if managed else None,
        cold_s=start["image"].takes(0) + (0 if managed else start["node"].takes(0)),
        linger_s=stack.idle_timeout_seconds + (0 if managed else int(EMPTY_FOR.removesuffix("m")) * 60),
        gpus=kind.gpus,
        usd_per_hour=sum(line.most * line.price.hourly for line in (nodes, *volumes) if line.price) / nodes.most,
    )


def others(planned: Planned) -> Iterator[float]:
    """Of a pod, what each other deployment of the group takes with the fewest replicas that it may have."""
    stack, group = planned.stack, planned.group
    scaling = {key: one.scaling for key, one in (*weights(stack.serving), *stages(stack.serving).items())}
    for demand in demands(stack.serving):
        if demand.key != planned.key and _group(stack, demand) == group:
            autoscaling = scaling[demand.key].autoscaling_config
            yield (autoscaling.min_replicas if autoscaling else demand.replicas) * group.share(demand)


def _group(stack: StackConfig, demand: Demand) -> WorkerGroup | None:
    """Where Ray puts it: what needs no GPU on none, as long as there is a place (AUTOSCALER_CONSERVE_GPU_NODES)."""
    groups = [group for group in stack.workers if group.holds(demand)]
    return min(groups, key=lambda group: bool(group.gpus) and not demand.gpus, default=None)


def the_rest(planned: Planned, prices: Prices, on: date) -> float:
    """USD an hour of all of the stack but the group's nodes, at its fewest, as far as prices are known."""
    mine = list(cost.nodes(planned.stack, planned.eks, planned.group, prices))
    return cost.estimate(planned.stack, on, prices).total.least - sum(line.usd.least for line in mine if line.known)


def a_month(usd: float, seconds: float) -> float:
    """USD a month, when all of it is as these seconds."""
    return usd / (seconds / 3600) * HOURS_PER_MONTH


def alternatives(stack_name: str, planned: Planned) -> tuple[dict[str, Planned], dict[str, str]]:
    """The stack as it is and with one other setting each, by what is set; and why others may not be."""
    found, refused = {"as it is": planned}, dict[str, str]()
    for what, keys, value in _changes(planned):
        values = planned.stack.model_dump(exclude_unset=True)
        place: Any = values
        for key in keys[:-1]:
            place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
        place[keys[-1]] = value
        try:
            changed = config.parse(values, f"Pulumi.{stack_name}.yaml")
        except SettingsError as error:
            refused[what] = str(error).partition("\n")[2].strip()
        else:
            found[what] = choose(stack_name, changed, planned.name)
    return found, refused


def _changes(planned: Planned) -> Iterator[tuple[str, list[str], Any]]:
    """What is set, the keys that lead to it in the stack file, and its value."""
    scaling, group = planned.variant.scaling, planned.stack.workers.index(planned.group)
    where = ["serving", *planned.key.split("."), "scaling"]
    now = scaling.autoscaling_config
    if now is None:
        number = scaling.num_replicas or 1
        for replicas in (number - 1, number + 1):
            if replicas:
                yield f"num_replicas: {replicas}", [*where, "num_replicas"], replicas
        return
    most = float(scaling.max_ongoing_requests)
    changes: dict[str, list[Any]] = {
        "target_ongoing_requests": [now.target_ongoing_requests / 2, min(now.target_ongoing_requests * 1.5, most)],
        "min_replicas": [now.min_replicas + 1, now.max_replicas],
        "max_replicas": [now.max_replicas + 1],
        "upscale_delay_s": [now.upscale_delay_s / 3],
        "downscale_delay_s": [now.downscale_delay_s / 2],
    }
    for key, choices in changes.items():
        for value in dict.fromkeys(choices):
            if value != getattr(now, key) and (key != "min_replicas" or value <= now.max_replicas):
                yield f"{key}: {value:g}", [*where, "autoscaling_config", key], value
    pool = planned.group.pool
    if pool and pool.nodes != "managed":
        yield f"pool.warm: {pool.warm + 1}", ["workers", str(group), "pool", "warm"], pool.warm + 1

"""The contract of a stack file: what of it cannot work, or costs more than it may, although each value alone is fine.

All that can be known before `up` is told at preview. A rule raises ValueError("<key> = <value>: <reason>; fix: <fix>");
those that stand later rely on the earlier ones.
"""

from __future__ import annotations

import math
from datetime import date
from typing import TYPE_CHECKING

from app.keys import digest
from app.settings import Demand, LanguageModel, demands, require_distinct, weights
from infra import cost, versions
from infra.aws.config import SYSTEM, EksCluster, Mirrors, Pool
from infra.aws.instances import absent, gpu_memory_gib, suited
from infra.aws.pools import instances, most_nodes
from infra.clusters import LOCAL_KEY, NativeCluster
from infra.observability import objectives
from infra.observability.config import ObjectsOnly, PrometheusStack
from infra.upgrade import Incremental

if TYPE_CHECKING:
    from infra.config import StackConfig, WorkerGroup
    from infra.cost import Estimate


def check(stack: StackConfig) -> None:
    """ValueError for the first rule that the stack breaks, but for what it may cost."""
    versions_are_tested()
    somebody_may_ask(stack)
    password_has_a_redis(stack)
    seen_is_possible(stack)
    builtin_models_are_on_the_nodes(stack)
    worker_groups_are_known(stack)
    if isinstance(stack.cluster, EksCluster):
        nodes_hold_the_pods(stack)
        region_has_the_nodes(stack, stack.cluster)
        images_can_be_pulled(stack, stack.cluster)
        state_is_in_one_place(stack, stack.cluster)
    else:
        nodes_are_somebody_elses(stack)
    engines_run_in_the_image(stack)
    upgrade_is_possible(stack)
    replicas_fit(stack)
    models_fit_gpus(stack)
    objectives_can_be_kept_track_of(stack)
    if isinstance(stack.cluster, EksCluster):
        gpus_are_within_limits(stack)


def versions_are_tested() -> None:
    """Ray, vLLM and KubeRay depend on each other's internals: what ran together is known, the rest is hope."""
    combination = (versions.RAY, versions.VLLM, versions.KUBERAY)
    if combination not in versions.TESTED:
        known = "; ".join(f"Ray {ray} with vLLM {vllm} and KubeRay {kuberay}" for ray, vllm, kuberay in versions.TESTED)
        raise ValueError(
            f"infra/versions.py: Ray {versions.RAY}, vLLM {versions.VLLM} and KubeRay {versions.KUBERAY} have not been "
            f"tested together; fix: take {known}, or run `make test e2e` and add them to TESTED"
        )


def somebody_may_ask(stack: StackConfig) -> None:
    """Keys are never off in a cluster that others reach."""
    if not stack.keys and not isinstance(stack.cluster, NativeCluster):
        raise ValueError(
            "keys = []: nobody could use the models, or everybody; fix: add one, `make key NAME=...` prints it"
        )
    if any(key.sha256 == digest(LOCAL_KEY) for key in stack.keys):
        raise ValueError(f"keys: one of them is {LOCAL_KEY}, which everybody knows; fix: make another, `make key`")
    if stack.serving.auth.keys_file is not None:
        raise ValueError(
            f"serving.auth.keys_file = {stack.serving.auth.keys_file!r}: in a stack the program makes that file; "
            "fix: leave it out, and list the keys in `keys`"
        )


def password_has_a_redis(stack: StackConfig) -> None:
    if stack.redis_password and not stack.serving.auth.redis_url:
        raise ValueError(
            f"redis_password.name = {stack.redis_password.name!r}: there is no Redis that it is for; "
            "fix: set serving.auth.redis_url, or leave it out"
        )


def seen_is_possible(stack: StackConfig) -> None:
    """Who collects the metrics can do so on the stack's cluster."""
    seen = stack.observability
    if seen is None:
        return
    if stack.monitoring_namespace == stack.namespace:
        raise ValueError(
            f"monitoring_namespace = {stack.monitoring_namespace!r}: is the models' own; fix: give it another name"
        )
    if isinstance(seen, ObjectsOnly):
        return
    if isinstance(stack.cluster, NativeCluster):
        if isinstance(seen, PrometheusStack) or seen.alertmanager_secret:
            key = "kind = 'chart'" if isinstance(seen, PrometheusStack) else "alertmanager_secret"
            raise ValueError(
                f"observability.{key}: its images come from registries, and a native cluster pulls none; "
                "fix: set kind: manifests, without alertmanager_secret"
            )
        if seen.storage:
            raise ValueError(
                "observability.storage: is a volume, and a native cluster makes none; fix: set it to null: samples "
                "are gone with the pod"
            )
    if isinstance(stack.cluster, EksCluster) and seen.mirrors != Mirrors():
        raise ValueError(
            "observability.mirrors: those of the cluster are for all charts and images; fix: set cluster.mirrors"
        )


def builtin_models_are_on_the_nodes(stack: StackConfig) -> None:
    found = [(key, model.source) for key, model in weights(stack.serving) if model.on_node]
    if not found or stack.cluster.models_path is not None:
        return
    key, source = found[0]
    if isinstance(stack.cluster, EksCluster):
        raise ValueError(
            f"serving.{key}.source = {source!r}: pods read it from their node, and nodes of EKS come and go "
            "without it; fix: serve weights from S3 or a hub, or leave that model out ([] or null)"
        )
    raise ValueError(
        f"cluster.models_path: is missing, and pods read serving.{key}.source = {source!r} from their node; "
        "fix: copy the directory of the models that `python -m app.builtin` prints to the nodes and name it "
        "here, or serve other weights"
    )


def worker_groups_are_known(stack: StackConfig) -> None:
    require_distinct("workers", [group.name for group in stack.workers])


def nodes_are_somebody_elses(stack: StackConfig) -> None:
    for index, group in enumerate(stack.workers):
        if group.pool:
            raise ValueError(
                f"workers.{index}.pool: is for clusters of kind eks; fix: leave it out, nodes are the cluster's"
            )


def nodes_hold_the_pods(stack: StackConfig) -> None:
    """On EKS the program makes the nodes of each worker group; elsewhere they are somebody else's business."""
    for index, group in enumerate(stack.workers):
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
            _require_shareable(stack, index, group)
        if not suited(gpu, group.cpus * together, group.gpus, group.memory_gib * together):
            pods = "a pod" if together == 1 else f"the {together} pods that share a GPU, each"
            raise ValueError(
                f"workers.{index}: no instance that we know holds {pods} of {group.cpus} CPUs, "
                f"{group.gpus} GPUs ({gpu or 'none'}) and {group.memory_gib} GiB; fix: lower them, some of "
                "each is the node's own, or add the type to infra/aws/instances.csv"
            )
    known = {group.pool.gpu for group in stack.workers if group.pool and group.pool.gpu}
    for key, model in weights(stack.serving):
        wanted = model.placement.accelerator_type
        if wanted and wanted not in known:
            raise ValueError(
                f"serving.{key}.placement.accelerator_type = {wanted!r}: no worker group has it; "
                f"fix: set the pool.gpu of one to it, or use {' or '.join(sorted(known)) or 'none'}"
            )


def _require_shareable(stack: StackConfig, index: int, group: WorkerGroup) -> None:
    """ValueError where a pod or a replica would wait for itself: two of its workers on one GPU."""
    if group.gpus != 1:
        raise ValueError(
            f"workers.{index}.gpus = {group.gpus}: a pod with a share of a GPU has one; fix: set 1, or leave "
            "pool.share out"
        )
    for demand in demands(stack.serving):
        if demand.gpus > 1 and group.holds(demand):
            raise ValueError(
                f"workers.{index}.pool.share: serving.{demand.key} is split over {demand.gpus:g} GPUs, and its "
                "workers could get the same one; fix: leave share out, or placement.strategy: STRICT_PACK, which "
                "keeps it to a group with so many"
            )


def region_has_the_nodes(stack: StackConfig, eks: EksCluster) -> None:
    """Of the regions in infra/aws/offerings.csv. Zones are another matter: their names mean others in each account."""
    missing = absent(eks.region)
    if {*eks.nodes.instance_types} <= missing:
        raise ValueError(
            f"cluster.nodes.instance_types = {eks.nodes.instance_types}: {eks.region} has none of them; "
            "fix: name one that it has, or choose another region"
        )
    for index, group in enumerate(stack.workers):
        types = [instance.type for instance in instances(group)]
        if {*types} <= missing:
            what = group.gpu or "no GPU"
            raise ValueError(
                f"cluster.region = {eks.region!r}: has none of the instances with {what} that hold a pod of "
                f"workers.{index}, {', '.join(types)}; fix: choose a region that has one, or another pool.gpu"
            )


def images_can_be_pulled(stack: StackConfig, eks: EksCluster) -> None:
    if stack.image.repository.startswith("localhost/"):
        raise ValueError(
            f"image.repository = {stack.image.repository!r}: no node can pull from there; "
            f"fix: use {eks.registry}, which the program makes, or a registry of yours"
        )


def state_is_in_one_place(stack: StackConfig, eks: EksCluster) -> None:
    if eks.cache and stack.gcs_fault_tolerance:
        raise ValueError(
            f"gcs_fault_tolerance.redis_address = {stack.gcs_fault_tolerance.redis_address!r}: the state is in "
            "cluster.cache; fix: keep one of them"
        )
    if eks.cache and stack.serving.auth.redis_url:
        raise ValueError(
            f"serving.auth.redis_url = {stack.serving.auth.redis_url!r}: the counts are in cluster.cache; "
            "fix: keep one of them"
        )


def engines_run_in_the_image(stack: StackConfig) -> None:
    """A stack has one image, and vLLM is built for GPUs or for CPUs."""
    if stack.accelerator == "cpu":
        return
    for key, model in weights(stack.serving):
        if isinstance(model, LanguageModel) and not model.placement.num_gpus:
            raise ValueError(
                f"serving.{key}.placement.num_gpus = 0: a stack with GPUs has the vLLM for GPUs, which computes on "
                "no CPU; fix: set num_gpus, or serve this model in a stack without GPUs"
            )


def upgrade_is_possible(stack: StackConfig) -> None:
    """What KubeRay would refuse, or wait for without an end."""
    if not isinstance(stack.upgrade, Incremental):
        return
    problem = f"upgrade.kind = {stack.upgrade.kind!r}:"
    if isinstance(stack.cluster, EksCluster) and stack.cluster.entry:
        raise ValueError(
            f"{problem} its requests come by a Gateway, and cluster.entry leads past that; "
            "fix: set cluster.entry to null and give the Gateway a load balancer, or use NewCluster"
        )
    if isinstance(stack.cluster, NativeCluster):
        raise ValueError(
            f"{problem} needs a Gateway API, which the native cluster has not; fix: use NewCluster, or a cluster "
            "of kind existing that has one"
        )
    if not stack.autoscaling:
        raise ValueError(
            f"{problem} needs Ray's autoscaler, and every worker group has a fixed size; fix: raise a group's "
            "max_replicas above its min_replicas, or use NewCluster"
        )


def replicas_fit(stack: StackConfig) -> None:
    """A replica that fits no pod waits for ever, with nothing but a warning in Ray's log."""
    wanted = list(demands(stack.serving))
    for demand in wanted:
        _require_a_pod_for(demand, stack.workers)
    for unit, resource in (("CPUs", "cpus"), ("GPUs", "gpus")):
        offered = sum(getattr(group, resource) * group.max_replicas for group in stack.workers)
        needed = sum(getattr(demand, resource) * demand.replicas for demand in wanted)
        _require(needed, offered, unit, f"workers.*.max_replicas or {resource}")
    for gpu in sorted({group.pool.gpu for group in stack.workers if group.pool and group.pool.gpu}):
        offered = sum(
            group.gpus * group.max_replicas for group in stack.workers if group.pool and group.pool.gpu == gpu
        )
        needed = sum(demand.gpus * demand.replicas for demand in wanted if demand.accelerator == gpu)
        _require(needed, offered, f"{gpu} GPUs", f"the max_replicas of workers with {gpu}")
    for demand in wanted:
        _require_room_for(demand, stack.workers)


def _require(needed: float, offered: float, unit: str, what: str) -> None:
    # What only floating point makes of a whole number is no core.
    if round(needed, 6) > offered:
        raise ValueError(
            f"serving: all replicas together need {needed:g} {unit}, and the workers have {offered}; "
            f"fix: raise {what}, or lower num_replicas or max_replicas"
        )


def _require_a_pod_for(demand: Demand, workers: list[WorkerGroup]) -> None:
    """ValueError when no pod can hold what of a replica must be in one place."""
    if not any(group.holds(demand) for group in workers):
        gpus = demand.gpus if demand.one_node else min(demand.gpus, 1)
        named = f"{demand.accelerator} " if demand.accelerator else ""
        pods = ", ".join(
            f"{group.name} ({group.cpus} CPUs, {group.gpus} {f'{group.gpu} ' if group.gpu else ''}GPUs)"
            for group in workers
        )
        raise ValueError(
            f"serving.{demand.key}: a replica needs {demand.cpus:g} CPUs and {gpus:g} {named}GPUs of one pod, and no "
            f"worker group has them: {pods}; fix: raise the cpus or gpus of one, or lower the replica's placement"
        )


def _require_room_for(demand: Demand, workers: list[WorkerGroup]) -> None:
    """ValueError when pods have room for fewer replicas than there may be, although their GPUs would be enough.

    Two replicas of 0.6 GPUs do not share one, nor two of four GPUs a pod of six.
    """
    fitting = [group for group in workers if group.holds(demand)]
    shares = [group.share(demand) for group in fitting]
    # A share of more than a pod is that of a replica which several pods hold together.
    room = sum(group.max_replicas / share for group, share in zip(fitting, shares, strict=True) if share)
    if all(shares) and demand.replicas > math.floor(room + 1e-9):
        raise ValueError(
            f"serving.{demand.key}: has up to {demand.replicas} replicas, and the pods that hold one have room for "
            f"{math.floor(room + 1e-9)}; fix: raise max_replicas of {' or '.join(group.name for group in fitting)}, or "
            "lower the replica's"
        )


def models_fit_gpus(stack: StackConfig) -> None:
    """Weights and one full context within what the engine takes of each GPU that a replica may get: with less of
    either vLLM does not start. Elsewhere than on EKS the GPU is known only where the model names it."""
    demanded = {demand.key: demand for demand in demands(stack.serving)}
    for key, model in weights(stack.serving):
        if not isinstance(model, LanguageModel) or not model.placement.num_gpus:
            continue
        if model.size is None and isinstance(stack.cluster, EksCluster):
            raise ValueError(
                f"serving.{key}.size: is missing, and whether {model.source} fits its GPUs is known by it; "
                "fix: add it, with the values of the model's config.json"
            )
        for index, group in enumerate(stack.workers):
            if not (group.gpus and group.holds(demanded[key])):
                continue
            if gpu := group.gpu or model.placement.accelerator_type:
                _require_memory(f"serving.{key}", model, f"workers.{index}", gpu)
            if group.pool and group.pool.share:
                _require_part(f"serving.{key}", model, index, group, demanded[key])


def _require_memory(key: str, model: LanguageModel, where: str, gpu: str) -> None:
    total, needed = gpu_memory_gib(gpu), model.memory
    if total is None or needed is None:
        return
    length, said = model.engine.max_model_len, model.engine.extra.get("kv_cache_memory_bytes")
    share = model.gpu_memory_utilization
    cache, room, part = needed.context, total * share, f"{share:.0%} of it"
    if isinstance(said, int):
        # Then vLLM takes that for the cache, whatever gpu_memory_utilization says.
        cache, room, part = said / 2**30, total, "it"
        if needed.context > cache:
            raise ValueError(
                f"{key}.engine.extra.kv_cache_memory_bytes = {said}: is {cache:.1f} GiB, and one request of {length} "
                f"tokens needs {needed.context:.1f}; fix: raise it, or lower max_model_len"
            )
    if needed.weights + cache > room:
        raise ValueError(
            f"{key}.engine.max_model_len = {length}: on each {gpu} of {where} weights take {needed.weights:.1f} GiB, "
            f"the cache of one such request {cache:.1f}, and {part} has {room:.1f}; fix: lower it, quantize, raise "
            "tensor_parallel_size, or take larger GPUs"
        )


def _require_part(key: str, model: LanguageModel, index: int, group: WorkerGroup, demand: Demand) -> None:
    """Nothing divides the memory of a shared GPU, so that engines must."""
    pool = group.pool or Pool()
    engines = round(1 / group.share(demand)) * pool.to_a_gpu
    if round(model.gpu_memory_utilization * engines, 6) > 1:
        raise ValueError(
            f"{key}.engine.gpu_memory_utilization = {model.gpu_memory_utilization:g}: up to {engines} such "
            f"engines have one GPU of workers.{index} (pool.share.replicas is {pool.to_a_gpu}); "
            f"fix: make it {math.floor(100 / engines) / 100:g} or less"
        )


def objectives_can_be_kept_track_of(stack: StackConfig) -> None:
    """Of models that are served, for as long as the longest window of an alert."""
    seen = stack.observability
    if seen is None:
        return
    objectives.require_known(seen.objectives, stack.serving)
    if isinstance(seen, ObjectsOnly):
        return
    kept = int(seen.retention[:-1]) * {"h": 1, "d": 24, "w": 7 * 24, "y": 365 * 24}[seen.retention[-1]]
    if kept < objectives.LONGEST_HOURS:
        raise ValueError(
            f"observability.retention = {seen.retention!r}: alerts look at the last {objectives.LONGEST_HOURS} hours; "
            f"fix: keep samples for {objectives.LONGEST_HOURS // 24}d or longer"
        )


def gpus_are_within_limits(stack: StackConfig) -> None:
    """Replicas, an upgrade's second Ray cluster and warm nodes within what an account or a reservation has."""
    for index, group in enumerate(stack.workers):
        if group.pool is None or group.pool.max_gpus is None:
            continue
        if not group.gpus:
            raise ValueError(
                f"workers.{index}.pool.max_gpus = {group.pool.max_gpus}: the group's pods have no GPU; "
                "fix: leave it out, or set gpus"
            )
        nodes, surge = most_nodes(stack, group), stack.surge.get(group.name, 0)
        needed = nodes * instances(group)[0].gpus
        if needed > group.pool.max_gpus:
            raise ValueError(
                f"workers.{index}.pool.max_gpus = {group.pool.max_gpus}: {group.max_replicas} pods, {surge} more while "
                f"an upgrade ({stack.upgrade.kind}) lasts and {group.pool.warm} warm ones need {needed} GPUs; fix: "
                "raise it, lower max_replicas or warm, or use an upgrade with a smaller surge"
            )


def cost_is_within_limits(stack: StackConfig, found: Estimate | None = None) -> None:
    """What the stack costs at its largest, on the dearest instances that it may get, is what its file allows.

    `found` is what it costs; left out, by the prices in infra/aws.
    """
    limit = stack.max_hourly_usd
    if limit is None:
        return
    if not isinstance(stack.cluster, EksCluster):
        raise ValueError(
            f"max_hourly_usd = {limit:g}: what this cluster costs is for its owner to say; fix: leave it out"
        )
    found = found or cost.estimate(stack, date.today())
    if found.unknown:
        raise ValueError(
            f"max_hourly_usd = {limit:g}: prices in {stack.cluster.region} are not known, of "
            f"{', '.join(found.unknown)}; fix: `make prices` asks AWS, or leave max_hourly_usd out"
        )
    if found.total.worst > limit:
        dearest = max(found.lines, key=lambda line: line.usd.worst)
        raise ValueError(
            f"max_hourly_usd = {limit:g}: at its largest the stack costs up to {found.total.worst:.2f} USD an hour, of "
            f"which {dearest.component} {dearest.usd.worst:.2f}; fix: raise it, lower max_replicas or warm, or use an "
            "upgrade with a smaller surge; `make cost` shows each part"
        )

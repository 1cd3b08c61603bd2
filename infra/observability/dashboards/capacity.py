"""*Capacity and cost*: what is there and what of it works, how long more takes to come, and what it is paid for."""

from datetime import UTC, datetime

from infra import cost
from infra.aws.config import EksCluster
from infra.config import StackConfig
from infra.observability.dashboards.board import Board, Panel, Row, Variable
from infra.observability.dashboards.promql import total

DEPLOYMENT = 'namespace=~"$namespace", application=~"$application"'
NODE = 'namespace=~"$namespace"'
WORKER = 'namespace=~"$namespace", pod=~".+-worker-.+"'
"""Ray's workers among the pods of a namespace, where their names are all that there is."""
TOKENS = 'sum(increase(ray_vllm_generation_tokens_total{namespace=~"$namespace"}[1h]))'


def board(stack: StackConfig) -> Board:
    replicas = "ray_serve_deployment_replica_healthy"
    return Board(
        "capacity",
        "Capacity and cost",
        "What is there and what of it works, how long more takes to come, and what it is paid for.",
        [Variable("namespace", replicas, "namespace"), Variable("application", replicas, "application")],
        [
            Row("Replicas and nodes", _replicas()),
            Row("GPUs", _gpus()),
            Row("Cold starts", _starts()),
            *([Row("Cost", _costs(stack, stack.cluster.region))] if isinstance(stack.cluster, EksCluster) else []),
        ],
    )


def _replicas() -> list[Panel]:
    return [
        Panel(
            "replicas",
            "Replicas wanted and running",
            "short",
            "Of all deployments chosen. What is wanted and does not run waits for a node, an image, or weights.",
            {
                "wanted": total("ray_serve_autoscaling_target_replicas", DEPLOYMENT),
                "running": total("ray_serve_deployment_replica_healthy", DEPLOYMENT),
            },
        ),
        Panel(
            "desired-replicas",
            "What the autoscaler would have",
            "short",
            "By the load alone, before min_replicas and max_replicas: a line above what is wanted is a max_replicas "
            "that is too low. Of deployments that scale.",
            {"{{deployment}}": total("ray_serve_autoscaling_desired_replicas", DEPLOYMENT, "deployment")},
        ),
        Panel(
            "nodes",
            "Ray's nodes",
            "short",
            "Pods of the Ray cluster that are there, and those that its autoscaler has asked for.",
            {
                "{{NodeType}}": total("autoscaler_active_nodes", NODE, "NodeType"),
                "{{NodeType}} pending": total("autoscaler_pending_nodes", NODE, "NodeType"),
            },
            "stacked",
        ),
        Panel(
            "cpus",
            "CPUs, as Ray schedules them",
            "short",
            "Taken by replicas, and free.",
            {"{{State}}": total("ray_resources", f'{NODE}, Name="CPU"', "State")},
            "stacked",
        ),
    ]


def _gpus() -> list[Panel]:
    return [
        Panel(
            "gpus",
            "GPUs allocated and free",
            "short",
            "As Ray schedules them. Free ones are paid for, and do nothing: fewer min_replicas, or a shorter "
            "idle_timeout_seconds.",
            {
                legend: f'sum(ray_resources{{{NODE}, Name="GPU", State="{state}"}}) or vector(0)'
                for legend, state in (("allocated", "USED"), ("free", "AVAILABLE"))
            },
            "stacked",
        ),
        Panel(
            "gpu-use",
            "GPUs at work",
            "percent",
            "How much of the time a GPU computes anything at all. Little, with a replica on it: too little load, or an "
            "engine that waits for the CPU.",
            {"{{ip}} {{GpuIndex}} {{GpuDeviceName}}": f"ray_node_gpus_utilization{{{NODE}}}"},
        ),
        Panel(
            "gpus-idle",
            "GPUs allocated, and idle",
            "short",
            "Below 5 % for the last quarter of an hour.",
            {"idle": f"count(avg_over_time(ray_node_gpus_utilization{{{NODE}}}[15m]) < 5)"},
        ),
        Panel(
            "gpu-memory",
            "GPU memory",
            "percentunit",
            "vLLM takes gpu_memory_utilization of it when it starts, and no more later: this is no sign of load.",
            {
                "{{ip}} {{GpuIndex}}": f"ray_node_gram_used{{{NODE}}} / "
                f"(ray_node_gram_used{{{NODE}}} + ray_node_gram_available{{{NODE}}})"
            },
        ),
    ]


def _starts() -> list[Panel]:
    return [
        Panel(
            "pod-start",
            "Start of a worker's pod",
            "s",
            "Of the workers that are there, the slowest: until there is a node for it, then until its container is "
            "ready, most of it the image. Needs kube-state-metrics.",
            {
                "node": f"max(kube_pod_status_scheduled_time{{{WORKER}}} - kube_pod_created{{{WORKER}}})",
                "image and container": f"max(kube_pod_status_container_ready_time{{{WORKER}}} - "
                f"kube_pod_status_scheduled_time{{{WORKER}}})",
            },
            "stacked",
        ),
        Panel(
            "replica-start",
            "Start of a replica",
            "ms",
            "On average, of all that have started: all of it with the wait for a place, and the part in which the "
            "model loads and compiles.",
            {
                # Not by rate: one that starts is the first that its counter sees.
                f"{{{{deployment}}}} {part}": f"{total(f'{histogram}_sum', DEPLOYMENT, 'deployment')} / "
                f"{total(f'{histogram}_count', DEPLOYMENT, 'deployment')}"
                for part, histogram in (
                    ("in all", "ray_serve_replica_startup_latency_ms"),
                    ("loading", "ray_serve_replica_initialization_latency_ms"),
                )
            },
        ),
    ]


def _costs(stack: StackConfig, region: str) -> list[Panel]:
    """By list prices: what always runs, and each worker group's nodes for as long as its pods are there."""
    prices = cost.hourly(stack, datetime.now(UTC).date())
    groups = {
        group.name: f'ceil(count(ray_node_cpu_count{{{NODE}, ray_io_group="{group.name}"}}) / {group.pods}) * '
        f"{group.usd:.4f} or vector(0)"
        for group in prices.groups
    }
    usd = " + ".join([*(f"({group})" for group in groups.values()), f"{prices.always:.4f}"])
    return [
        Panel(
            "usd-per-hour",
            "USD an hour",
            "currencyUSD",
            f"List prices on demand in {region}, of the cheapest instances that hold the pods; "
            f"{prices.always:.2f} USD of it for what always runs. Without what is paid for by use, and without "
            "discounts: make cost.",
            {"USD an hour": usd},
            "number",
        ),
        Panel(
            "usd-per-million-tokens",
            "USD for a million tokens",
            "currencyUSD",
            "What an hour costs now, by the tokens generated in the last hour. Nothing while there are none.",
            {"USD for a million tokens": f"({usd}) / ({TOKENS} > 0) * 1e6"},
            "number",
        ),
        Panel(
            "usd-by-group",
            "USD an hour by worker group",
            "currencyUSD",
            "Nodes of each worker group, with their volumes.",
            groups,
            "stacked",
        ),
    ]

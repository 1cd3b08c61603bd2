"""*Service*: what users of the routes feel, and what of the deployments behind them explains it."""

from infra.config import StackConfig
from infra.observability.alerts import PROBES
from infra.observability.dashboards.board import Board, Panel, Row, Variable
from infra.observability.dashboards.promql import QUANTILES, quantile, rate, share, total

REQUESTS, LATENCY = "ray_serve_num_http_requests_total", "ray_serve_http_request_latency_ms"
HTTP = 'namespace=~"$namespace", application=~"$application", route=~"$route"'
ASKED = f'{HTTP}, route!~"{PROBES}"'
"""Without probes: /ready says 503 by design."""
DEPLOYMENT = 'namespace=~"$namespace", application=~"$application", deployment=~"$deployment"'
NODE = 'namespace=~"$namespace"'


def board(_: StackConfig) -> Board:
    return Board(
        "service",
        "Service",
        "What users of the routes feel, and what of the deployments behind them explains it.",
        [
            Variable("namespace", "ray_serve_deployment_replica_healthy", "namespace"),
            Variable("application", "ray_serve_deployment_replica_healthy", "application"),
            Variable("route", REQUESTS, "route"),
            Variable("deployment", "ray_serve_deployment_replica_healthy", "deployment"),
        ],
        [Row("Users", _users()), Row("Replicas", _replicas()), Row("Queues and saturation", _saturation())],
    )


def _users() -> list[Panel]:
    failed = rate(REQUESTS, f'{ASKED}, status_code=~"5.."')
    return [
        Panel(
            "latency",
            "Latency",
            "ms",
            "From the first byte of a request to the last of its answer, of all routes chosen but probes. A stream "
            "lasts as long as its tokens take: for those, see time to first token on the dashboard LLM.",
            {name: quantile(q, LATENCY, ASKED) for name, q in QUANTILES.items()},
        ),
        Panel(
            "latency-by-route",
            "p99 latency by route",
            "ms",
            "Which route is slow. The quantile is exact to the histogram's buckets.",
            {"{{route}}": quantile(0.99, LATENCY, HTTP, "route")},
        ),
        Panel(
            "throughput",
            "Throughput by route",
            "reqps",
            "Requests answered in a second, whatever the answer.",
            {"{{route}}": rate(REQUESTS, HTTP, "route")},
            "stacked",
        ),
        Panel(
            "error-rate",
            "Error rate",
            "percentunit",
            "The share of requests that failed by our fault (5xx), without probes. Nothing is shown while there are no "
            "requests.",
            {"failed": share(failed, rate(REQUESTS, ASKED))},
        ),
        Panel(
            "status-codes",
            "Answers by status",
            "reqps",
            "4xx are the clients' (400 wrong, 401 and 403 keys, 404 unknown), but for 429: a queue is full, or a quota "
            "used up.",
            {"{{status_code}}": rate(REQUESTS, HTTP, "status_code")},
            "stacked",
        ),
        Panel(
            "errors-by-route",
            "Errors by route and status",
            "reqps",
            "Which routes answer with anything else than success.",
            {"{{route}} {{status_code}}": rate(REQUESTS, f'{HTTP}, status_code!~"2.."', "route, status_code")},
        ),
    ]


def _replicas() -> list[Panel]:
    return [
        Panel(
            "active-replicas",
            "Active replicas",
            "short",
            "Replicas that are up and pass their health check. An engine's check is that it generates.",
            {"{{deployment}}": total("ray_serve_deployment_replica_healthy", DEPLOYMENT, "deployment")},
        ),
        Panel(
            "missing-replicas",
            "Replicas wanted and not there",
            "short",
            "More than 0 for long: no room for the pod, a model that does not load, or a replica that fails. "
            "Below 0 while replicas drain.",
            {
                "{{deployment}}": f"{total('ray_serve_autoscaling_target_replicas', DEPLOYMENT, 'deployment')} - "
                f"{total('ray_serve_deployment_replica_healthy', DEPLOYMENT, 'deployment')}"
            },
        ),
        Panel(
            "health-checks",
            "Health checks, p99",
            "ms",
            "How long a replica takes to say that it is well; one that takes longer than its timeout, three times, is "
            "replaced.",
            {"{{deployment}}": quantile(0.99, "ray_serve_health_check_latency_ms", DEPLOYMENT, "deployment")},
        ),
        Panel(
            "deployment-latency",
            "p99 by deployment",
            "ms",
            "The time inside a deployment's replicas: where in the chain the latency above comes from.",
            {"{{deployment}}": quantile(0.99, "ray_serve_deployment_processing_latency_ms", DEPLOYMENT, "deployment")},
        ),
        Panel(
            "deployment-throughput",
            "Throughput by deployment",
            "reqps",
            "Calls in a second. One request may call several deployments.",
            {"{{deployment}}": rate("ray_serve_deployment_request_counter_total", DEPLOYMENT, "deployment")},
        ),
        Panel(
            "deployment-errors",
            "Exceptions by deployment",
            "cps",
            "What a replica raised, also where the client was to blame and got a 4xx.",
            {
                "{{deployment}} {{exception_type}}": rate(
                    "ray_serve_deployment_error_counter_total", DEPLOYMENT, "deployment, exception_type"
                )
            },
        ),
    ]


def _saturation() -> list[Panel]:
    return [
        Panel(
            "queue",
            "Queue",
            "short",
            "Requests that wait for a replica with room: callers keep them until max_queued_requests, then answer 429.",
            {"{{deployment}}": total("ray_serve_deployment_queued_queries", DEPLOYMENT, "deployment")},
        ),
        Panel(
            "queue-time",
            "Time in the queue, p99",
            "ms",
            "How long requests wait until a replica takes them.",
            {
                "{{deployment}}": quantile(
                    0.99, "ray_serve_request_router_fulfillment_time_ms", DEPLOYMENT, "deployment"
                )
            },
        ),
        Panel(
            "in-progress",
            "Requests in progress",
            "short",
            "At the replicas of each deployment.",
            {"{{deployment}}": total("ray_serve_replica_processing_queries", DEPLOYMENT, "deployment")},
        ),
        Panel(
            "saturation",
            "Saturation by deployment",
            "percent",
            "How much of the time its replicas were busy with as many requests as they take at once "
            "(max_ongoing_requests): of the fullest replica. At 100 % requests queue.",
            {"{{deployment}}": f"max by (deployment) (ray_serve_replica_utilization_percent{{{DEPLOYMENT}}})"},
        ),
        Panel(
            "cpu",
            "CPU of Ray's nodes",
            "percent",
            "Of the cores that the pod, or the laptop, has.",
            {"{{RayNodeType}} {{ip}}": f"ray_node_cpu_utilization{{{NODE}}}"},
        ),
        Panel(
            "memory",
            "Memory of Ray's nodes",
            "percentunit",
            "Of the pod's limit. At 95 % Ray kills replicas; at 100 % the kernel does.",
            {"{{RayNodeType}} {{ip}}": f"ray_node_mem_used{{{NODE}}} / ray_node_mem_total{{{NODE}}}"},
        ),
    ]

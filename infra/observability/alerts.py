"""Prometheus' rules: how fast error budgets are spent, and what else somebody should know before users do.

Each alert has a severity: critical wakes somebody, since users feel it or soon will and it does not mend itself;
warning is for the next working day; info is for whoever looks for a reason. Each has a page in docs/runbooks.

In a cluster all metrics have the namespace of their pod. The server of `make serve` has none, and the same expressions
work for it.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from infra.aws.config import EksCluster
from infra.config import StackConfig
from infra.observability.links import panel_url
from infra.observability.objectives import PAGE, RATES, TICKET, BurnRate, Objectives, model_labels

Rule = dict[str, Any]
Severity = Literal["critical", "warning", "info", "none"]

INTERVAL_S = 30
"""Between two evaluations of the error budgets."""
LEAST_EVENTS = 10
"""Failures in a burn rate's long window below which nobody is told: a single one at night is no trend."""
LEAST_TOKENS = 1000
"""The same for tokens that came late; an answer has a hundred."""

CERTIFICATE_DAYS = 21
"""ACM renews from 60 days before the end on."""

PROBES = "/-/.+|/health|/ready.*|/docs|/openapi.json"
"""Routes that people and load balancers ask for the state of things. /ready says 503 by design."""
APPLICATION_ERRORS = (13, 31, 43, 45, 68, 109)
"""XIDs after which a GPU is well: the program failed. As NVIDIA's device plugin has them:
https://github.com/NVIDIA/k8s-device-plugin/blob/main/internal/rm/health.go"""

PANELS = {
    "EndpointErrorBudgetBurn": ("service", "errors-by-route"),
    "ModelErrorBudgetBurn": ("experiment", "variant-errors"),
    "FirstTokenBudgetBurn": ("llm", "ttft"),
    "InterTokenBudgetBurn": ("llm", "inter-token-latency"),
    "ServiceNotReady": ("service", "active-replicas"),
    "DeploymentUnhealthy": ("service", "missing-replicas"),
    "QueueGrowing": ("service", "queue"),
    "ScaleUpStuck": ("capacity", "replicas"),
    "UpgradeStuck": ("capacity", "nodes"),
    "KvCachePressure": ("llm", "kv-cache"),
    "HeadMemoryHigh": ("service", "memory"),
    "GcsDown": ("capacity", "nodes"),
    "GpuIdle": ("capacity", "gpus-idle"),
    "GpuError": ("capacity", "gpu-use"),
    "SpotInterruption": ("capacity", "nodes"),
}
"""Dashboard and panel that show what an alert is about; those that are not here are about no metric of the stack's."""


def rule_groups(stack: StackConfig) -> list[dict[str, Any]]:
    """Recording and alerting rules of a stack, as the groups of a PrometheusRule; those that it has a use for only."""
    objectives = stack.observability.objectives if stack.observability else Objectives()
    groups = [
        {"name": "objectives", "interval": f"{INTERVAL_S}s", "rules": [*_objectives(stack, objectives)]},
        {"name": "serving", "rules": [*_serving(stack)]},
        {"name": "ray", "rules": [*_ray(stack)]},
        {"name": "nodes", "rules": [*_nodes(stack)]},
        {"name": "monitoring", "rules": [*_monitoring(stack)]},
    ]
    for rule in (rule for group in groups for rule in group["rules"] if "alert" in rule):
        rule["annotations"]["runbook_url"] = f"{objectives.runbooks_url}/{rule['alert']}.md"
        if objectives.grafana_url and rule["alert"] in PANELS:
            rule["annotations"]["dashboard_url"] = panel_url(*PANELS[rule["alert"]], grafana=objectives.grafana_url)
    return [group for group in groups if group["rules"]]


class _Indicator(NamedTuple):
    """A service level indicator: which part of all events is bad."""

    slo: str
    model: str | None
    events: str
    """PromQL, by second."""
    bad: str
    target: float


def _objectives(stack: StackConfig, objectives: Objectives) -> Iterator[Rule]:
    indicators = [*_indicators(stack, objectives)]
    for one in indicators:
        labels = {"slo": one.slo, **({"model": one.model} if one.model else {})}
        own = [f'{name}="{value}"' for name, value in labels.items()]
        events, bad = _of(stack, "slo:events:rate5m", *own), _of(stack, "slo:bad_events:rate5m", *own)
        budget = round(1 - one.target, 9)
        recorded = {"events:rate5m": one.events, "bad_events:rate5m": one.bad}
        for window in dict.fromkeys(window for rate in RATES for window in (rate.short, rate.long)):
            # Without events there is no rate at all, and nothing that could be NaN.
            ratio = f"{_over(bad, window)} / ({_over(events, window)} > 0)"
            recorded[f"burn_rate:{window}"] = f"{ratio} / {budget:g}"
        for name, expr in recorded.items():
            yield {"record": f"slo:{name}", "expr": expr, "labels": {**labels}}
    for slo in dict.fromkeys(one.slo for one in indicators):
        name, what, means = _BUDGETS[slo]
        for severity, rates in _URGENCY.items():
            spent = " or ".join(f"{rate.budget:.0%} in {rate.long}" for rate in rates)
            yield _alert(
                name,
                severity,
                " or ".join(_burns(stack, objectives, slo, rate) for rate in rates),
                f"{what} {{{{ $value | humanize }}}} times as often as the objective allows",
                f"{means} Of what {objectives.window_days} days may have of that, more than {spent} are gone.",
            )


_URGENCY: dict[Severity, tuple[BurnRate, ...]] = {"critical": PAGE, "warning": TICKET}
_BUDGETS = {
    "availability": (
        "EndpointErrorBudgetBurn",
        "HTTP requests fail",
        "Clients get 5xx on any of the routes.",
    ),
    "model_availability": (
        "ModelErrorBudgetBurn",
        "Requests for {{ $labels.model }} fail",
        "Answers end in an error, or are refused because the model's queue is full.",
    ),
    "time_to_first_token": (
        "FirstTokenBudgetBurn",
        "First tokens of {{ $labels.model }} come late",
        "Answers take long to begin.",
    ),
    "inter_token_latency": (
        "InterTokenBudgetBurn",
        "Tokens of {{ $labels.model }} come late",
        "Answers have begun, and come slowly.",
    ),
}
"""By objective: the alert, what it says, and what it means to clients."""


def _over(rate: str, window: str) -> str:
    """A sum, so that a failure counts as much in a quiet hour as in a busy one: a mean of ratios would not do that."""
    return rate if window == "5m" else f"sum_over_time({rate}[{window}])"


def _burns(stack: StackConfig, objectives: Objectives, slo: str, rate: BurnRate) -> str:
    least = LEAST_TOKENS if slo == "inter_token_latency" else LEAST_EVENTS
    times, own = round(objectives.burn_rate(rate), 3), f'slo="{slo}"'
    long, short = (_of(stack, f"slo:burn_rate:{window}", own) for window in (rate.long, rate.short))
    bad = _over(_of(stack, "slo:bad_events:rate5m", own), rate.long)
    return f"({long} > {times:g} and {short} > {times:g} and {bad} * {INTERVAL_S} >= {least})"


def _indicators(stack: StackConfig, objectives: Objectives) -> Iterator[_Indicator]:
    def requests(*matchers: str) -> str:
        return f"rate({_of(stack, 'ray_serve_num_http_requests_total', *matchers)}[5m])"

    def answers(*matchers: str) -> str:
        return f"rate({_of(stack, 'ray_blueprint_variant_requests_total', *matchers)}[5m])"

    def tokens(metric: str, label: str, within_s: float) -> tuple[str, str]:
        model = f'model_name="{label}"'
        every = f"sum by (namespace) (rate({_of(stack, f'{metric}_count', model)}[5m]))"
        bucket = _of(stack, f"{metric}_bucket", model, f'le="{within_s}"')
        return every, f"{every} - sum by (namespace) (rate({bucket}[5m]))"

    def failures(every: str, failed: str) -> tuple[str, str]:
        # A counter is there from its first event on; until then there are none.
        every = f"sum by (namespace) ({every})"
        return every, f"sum by (namespace) ({failed}) or 0 * {every}"

    asked, server_error = f'route!~"{PROBES}"', 'status_code=~"5.."'
    # The gateway takes every path. Where it is not there at all, the proxy answers 404, under no route.
    nobody_there = requests('route=""', 'status_code="404"')
    failed = f"{requests(asked, server_error)} or {nobody_there}"
    yield _Indicator("availability", None, *failures(requests(asked), failed), objectives.availability)
    for name, label in model_labels(stack.serving).items():
        promised = objectives.of(name)
        if name == "generate":
            route = f'route="/{name}"'
            found = failures(requests(route), requests(route, server_error))
        else:
            # Unlike the status, it knows of a stream that begins with a 200 and ends in an error.
            of = (f'model="{label}"', 'how!="shadow"')
            found = failures(answers(*of, 'outcome=~"ok|error"'), answers(*of, 'outcome="error"'))
        yield _Indicator("model_availability", name, *found, promised.availability)
        if first := promised.time_to_first_token:
            found = tokens("ray_vllm_time_to_first_token_seconds", label, first.within_s)
            yield _Indicator("time_to_first_token", name, *found, first.target)
        if next_ := promised.inter_token_latency:
            found = tokens("ray_vllm_inter_token_latency_seconds", label, next_.within_s)
            yield _Indicator("inter_token_latency", name, *found, next_.target)


def _serving(stack: StackConfig) -> Iterator[Rule]:
    # The operator's metrics are about objects of other namespaces than its own.
    ours = f'exported_namespace="{stack.namespace}"'
    ready, not_ready = (f'kuberay_service_condition_ready{{{ours},condition="{is_so}"}}' for is_so in ("true", "false"))
    yield _alert(
        "ServiceNotReady",
        "critical",
        # Not while it is deployed for the first time.
        f"max by (name) ({not_ready}) and on (name) max_over_time({ready}[7d])",
        "The RayService {{ $labels.name }} was ready and is not any more",
        "No replica takes requests: every client gets an error, or no connection at all.",
        wait="2m",
    )
    deployment = "namespace, ray_io_cluster, application, deployment"
    status = _of(stack, "ray_serve_deployment_status")
    # 1 is DEPLOY_FAILED, 2 UNHEALTHY. An application that cannot be built has no deployments.
    unhealthy, of = f"max by ({deployment}) ({status} > 0 < 3)", "namespace, ray_io_cluster, application"
    application = f"max by ({of}) ({_of(stack, 'ray_serve_application_status')} > 0 < 3)"
    yield _alert(
        "DeploymentUnhealthy",
        "warning",
        f"{unhealthy} or ({application} unless on ({of}) {unhealthy})",
        '{{ $labels.application }}: {{ or $labels.deployment "the application" }} is not healthy',
        "Replicas fail, or cannot be started. The others, if there are any, have their load.",
        wait="10m",
    )
    callee = "namespace, application, deployment"
    queued = f"sum by ({callee}) ({_of(stack, 'ray_serve_deployment_queued_queries')})"
    under_way = f"sum by ({callee}) ({_of(stack, 'ray_serve_replica_processing_queries')})"
    yield _alert(
        "QueueGrowing",
        "warning",
        f"{queued} > 10 and {queued} > ({under_way} or 0 * {queued})",
        "{{ $value }} requests wait for {{ $labels.deployment }}",
        "More wait than its replicas work on, so that the wait is longer than the work. A full queue refuses with 429.",
        wait="5m",
    )
    yield _alert(
        "ScaleUpStuck",
        "warning",
        f"max by ({deployment}) ({status} == 4)",  # UPSCALING
        "{{ $labels.deployment }} does not get the replicas that it wants",
        "It has wanted more for longer than a node, an image and weights take together. Those that it has are too few.",
        wait=f"{stack.ready_timeout_seconds}s",
    )
    upgrade = f'kuberay_service_condition_upgrade_in_progress{{{ours},condition="true"}}'
    yield _alert(
        "UpgradeStuck",
        "warning",
        f"max by (name) ({upgrade}) or max by ({deployment}) ({status} == 3)",  # UPDATING
        "The upgrade of {{ $labels.name }}{{ $labels.deployment }} does not end",
        "It has taken longer than `make up` would wait. What ran before still answers, and costs as much again.",
        wait=f"{stack.patience_seconds}s",
    )
    if model_labels(stack.serving):
        usage = _of(stack, "ray_vllm_kv_cache_usage_perc")
        yield _alert(
            "KvCachePressure",
            "warning",
            f"max by (namespace, model_name) (avg_over_time({usage}[5m])) > 0.9",
            "The KV cache of {{ $labels.model_name }} is {{ $value | humanizePercentage }} full",
            "Requests wait for room in the GPU's memory, or are thrown out and computed again. Tokens come in fits.",
            wait="10m",
        )


def _ray(stack: StackConfig) -> Iterator[Rule]:
    used, total = (_of(stack, f"ray_node_mem_{what}", 'RayNodeType="head"') for what in ("used", "total"))
    state_is_kept = stack.gcs_fault_tolerance or (isinstance(stack.cluster, EksCluster) and stack.cluster.cache)
    yield _alert(
        "HeadMemoryHigh",
        # Without a Redis, a head that is killed for its memory takes the Ray cluster with it.
        "warning" if state_is_kept else "critical",
        f"max by (namespace, ray_io_cluster) ({used} / {total}) > 0.9",
        "The Ray head has used {{ $value | humanizePercentage }} of its memory",
        "At 100 % it is killed. "
        + (
            "Then nothing is started or replaced for a minute or two."
            if state_is_kept
            else "Then all replicas go, too."
        ),
        wait="10m",
    )
    gcs = 'Source="gcs"'
    yield _alert(
        "GcsDown",
        "critical",
        f"absent({_of(stack, 'ray_actors', gcs)})",
        "Ray's GCS has not been seen for five minutes",
        "No replica is started or replaced. Those that run may go on answering, or go with it.",
        wait="5m",
        labels={"namespace": stack.namespace},
    )


def _nodes(stack: StackConfig) -> Iterator[Rule]:
    if stack.accelerator == "gpu":
        yield from _gpus(stack)
    if not isinstance(stack.cluster, EksCluster):
        return
    pools = [group.pool for group in stack.workers if group.pool]
    if any(pool.nodes == "karpenter" and "spot" in pool.capacity for pool in pools):
        messages = 'karpenter_interruption_received_messages_total{message_type="spot_interrupted"}'
        yield _alert(
            "SpotInterruption",
            "info",
            # The counter begins with the first one, and from nothing to 1 `increase` sees no difference.
            f"sum(({messages} unless {messages} offset 15m) or increase({messages}[15m])) > 0",
            "AWS takes {{ $value | humanize }} spot instances back",
            "Replicas on them have two minutes to finish. Karpenter starts other nodes, if there are any to be had.",
        )
    entry = stack.cluster.entry
    if entry and entry.certificate:
        certificate = f'probe_ssl_earliest_cert_expiry{{instance=~"(https://)?{entry.host}([:/].*)?"}}'
        yield _alert(
            "CertificateExpiring",
            "warning",
            f"min by (instance) ({certificate} - time()) < {CERTIFICATE_DAYS * 86400}",
            "The certificate of {{ $labels.instance }} ends in {{ $value | humanizeDuration }}",
            "ACM should have renewed it weeks ago. When it has ended, no client connects.",
            wait="1h",
        )


def _gpus(stack: StackConfig) -> Iterator[Rule]:
    always = sum(group.min_replicas * group.gpus for group in stack.workers)
    # A replica that nobody asks still generates a token for its health check, every ten seconds.
    usage = f"avg_over_time({_of(stack, 'ray_node_gpus_utilization')}[1h])"
    yield _alert(
        "GpuIdle",
        "warning",
        f"count by (namespace) ({usage} < 5) > {always}",
        "{{ $value }} GPUs compute nothing",
        f"Workers beyond those that are always there ({always} GPUs) have nothing to do, and do not go.",
        wait="1h",
    )
    well = "".join(f" != {xid}" for xid in APPLICATION_ERRORS)
    yield _alert(
        "GpuError",
        "warning",
        f"max by (Hostname, gpu, UUID) (DCGM_FI_DEV_XID_ERRORS > 0{well})",
        "GPU {{ $labels.gpu }} of {{ $labels.Hostname }} has reported XID {{ $value }}",
        "It, its memory or its link to others has failed. Replicas on it fail, and are started there again.",
    )


def _monitoring(stack: StackConfig) -> Iterator[Rule]:
    yield _alert(
        "Watchdog",
        "none",
        "vector(1)",
        "Alerts come through",
        "Always there. Whoever gets it must say when it does not come: no other alert does, then.",
    )
    yield _alert(
        "TargetDown",
        "warning",
        f'count by (job) (up{{job=~"{stack.monitoring_namespace}/.+"}} == 0)',  # those of our PodMonitors
        "Prometheus cannot scrape {{ $value }} pods of {{ $labels.job }}",
        "What they would say is missing, and alerts about it do not come.",
        wait="15m",
    )
    yield _alert(
        "PrometheusRuleFailures",
        "warning",
        "sum by (rule_group) (increase(prometheus_rule_evaluation_failures_total[5m])) > 0",
        "Prometheus cannot evaluate rules of {{ $labels.rule_group }}",
        "Their alerts do not come.",
        wait="15m",
    )


def _alert(
    name: str,
    severity: Severity,
    expr: str,
    summary: str,
    description: str,
    wait: str | None = None,
    labels: dict[str, str] | None = None,
) -> Rule:
    """`wait` is how long the expression must hold."""
    return {
        "alert": name,
        "expr": expr,
        **({"for": wait} if wait else {}),
        "labels": {"severity": severity, **(labels or {})},
        "annotations": {"summary": f"{summary}.", "description": description},
    }


def _of(stack: StackConfig, metric: str, *matchers: str) -> str:
    """A selector of the stack's series; those of a server outside a cluster have no namespace, and are its as well."""
    namespace = f'namespace=~"{stack.namespace}|"'
    return f"{metric}{{{','.join((namespace, *matchers))}}}"

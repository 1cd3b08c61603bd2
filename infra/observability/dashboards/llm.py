"""*LLM*: what users of the language models feel, token by token, and what their engines are busy with."""

from infra.config import StackConfig
from infra.observability.dashboards.board import RATE, Board, Panel, Row, Variable
from infra.observability.dashboards.promql import QUANTILES, mean, quantile, rate, ratio, share, total

ENGINE = 'namespace=~"$namespace", model_name=~"$model"'
TOKENS = "ray_vllm_generation_tokens_total"


def board(_: StackConfig) -> Board:
    return Board(
        "llm",
        "LLM",
        "What users of the language models feel, token by token, and what their engines are busy with. Ray generates a "
        "dashboard of its own with more of the same, by replica: Serve LLM Dashboard.",
        [
            Variable("namespace", TOKENS, "namespace"),
            Variable("model", TOKENS, "model_name"),
            Variable("variant", 'ray_serve_deployment_replica_healthy{deployment=~"LLM:.+|Generate"}', "deployment"),
        ],
        [
            Row("Users", _users()),
            Row("Load", _load()),
            Row("Cache", _cache()),
            Row("Requests", _requests()),
            Row("Variants and replicas", _variants()),
        ],
    )


def _users() -> list[Panel]:
    return [
        Panel(
            "ttft",
            "Time to first token",
            "s",
            "From a request's arrival at the engine to its first token: queue and prefill.",
            {
                f"{{{{model_name}}}} {name}": quantile(q, "ray_vllm_time_to_first_token_seconds", ENGINE, "model_name")
                for name, q in QUANTILES.items()
            },
        ),
        Panel(
            "inter-token-latency",
            "Inter-token latency",
            "s",
            "Between two tokens of an answer. More at once makes all of them slower.",
            {
                f"{{{{model_name}}}} {name}": quantile(q, "ray_vllm_inter_token_latency_seconds", ENGINE, "model_name")
                for name, q in QUANTILES.items()
            },
        ),
        Panel(
            "request-latency",
            "Request latency",
            "s",
            "From a request's arrival at the engine to its last token.",
            {
                f"{{{{model_name}}}} {name}": quantile(q, "ray_vllm_e2e_request_latency_seconds", ENGINE, "model_name")
                for name, q in QUANTILES.items()
            },
        ),
    ]


def _load() -> list[Panel]:
    return [
        Panel(
            "tokens",
            "Tokens generated",
            "tokens/s",
            "In a second, by all replicas of a model. Health checks of engines without work generate one token each.",
            {"{{model_name}}": rate(TOKENS, ENGINE, "model_name")},
        ),
        Panel(
            "prompt-tokens",
            "Prompt tokens",
            "tokens/s",
            "Read in a second, those from the prefix cache among them.",
            {"{{model_name}}": rate("ray_vllm_prompt_tokens_total", ENGINE, "model_name")},
        ),
        Panel(
            "engine-requests",
            "Running and waiting",
            "short",
            "Requests in the engine's batch, and those that wait for room in it: for max_num_seqs, or for cache.",
            {
                "{{model_name}} running": total("ray_vllm_num_requests_running", ENGINE, "model_name"),
                "{{model_name}} waiting": total("ray_vllm_num_requests_waiting", ENGINE, "model_name"),
            },
        ),
        Panel(
            "stages",
            "Where the time of a request goes",
            "s",
            "On average: waiting in the engine, reading the prompt, generating.",
            {
                f"{{{{model_name}}}} {stage}": mean(f"ray_vllm_request_{stage}_time_seconds", ENGINE, "model_name")
                for stage in ("queue", "prefill", "decode")
            },
            "stacked",
        ),
    ]


def _cache() -> list[Panel]:
    hits, queries = (rate(f"ray_vllm_prefix_cache_{what}_total", ENGINE, "model_name") for what in ("hits", "queries"))
    return [
        Panel(
            "kv-cache",
            "KV cache in use",
            "percentunit",
            "Of the fullest replica. Near 1 requests wait, or are pushed out and computed again.",
            {"{{model_name}}": f"max by (model_name) (ray_vllm_kv_cache_usage_perc{{{ENGINE}}})"},
        ),
        Panel(
            "preemptions",
            "Preemptions",
            "cps",
            "Requests pushed out of a full cache, whose tokens are computed again: each costs time. "
            "Should be 0; counted from the first on.",
            {
                "{{model_name}}": f"{rate('ray_vllm_num_preemptions_total', ENGINE, 'model_name')} or "
                f"{rate(TOKENS, ENGINE, 'model_name')} * 0"
            },
        ),
        Panel(
            "prefix-cache-hits",
            "Prefix-cache hits",
            "percentunit",
            "The share of prompt tokens that the cache had already: long system prompts, and conversations that go on.",
            {"{{model_name}}": share(hits, queries)},
        ),
    ]


def _requests() -> list[Panel]:
    requests = rate("ray_vllm_request_success_total", ENGINE, "model_name")
    return [
        Panel(
            "finished",
            "Requests by how they ended",
            "reqps",
            "stop: the model was done; length: max_tokens; abort: the client left; error: the engine failed.",
            {
                "{{model_name}} {{finished_reason}}": rate(
                    "ray_vllm_request_success_total", ENGINE, "model_name, finished_reason"
                )
            },
            "stacked",
        ),
        Panel(
            "lengths",
            "Tokens of a request",
            "short",
            "On average: of prompts, and of answers, by those that ended.",
            # Not of the histograms, whose bounds depend on max_model_len: of engines that differ in it Ray drops all
            # but one's on a node: https://github.com/ray-project/ray/issues/64852
            {
                "{{model_name}} prompt": ratio(rate("ray_vllm_prompt_tokens_total", ENGINE, "model_name"), requests),
                "{{model_name}} answer": ratio(rate(TOKENS, ENGINE, "model_name"), requests),
            },
        ),
    ]


def _variants() -> list[Panel]:
    return [
        Panel(
            "tokens-by-variant",
            "Tokens generated, by variant",
            "tokens/s",
            "In a second, by all replicas of a variant.",
            {"{{deployment}}": _by_deployment(TOKENS, "deployment")},
        ),
        Panel(
            "ttft-by-variant",
            "p95 time to first token, by variant",
            "s",
            "As above. What users of the variants felt at the gateway, with the difference: dashboard Experiment.",
            {
                "{{deployment}}": "histogram_quantile(0.95, "
                f"{_by_deployment('ray_vllm_time_to_first_token_seconds_bucket', 'le, deployment')}) >= 0"
            },
        ),
        Panel(
            "tokens-by-replica",
            "Tokens generated, by replica",
            "tokens/s",
            "A replica that makes much less than the others of its variant is ill, or gets no requests.",
            {"{{deployment}} {{ReplicaId}}": _by_deployment(TOKENS, "deployment, ReplicaId")},
        ),
    ]


def _by_deployment(counter: str, by: str) -> str:
    """vLLM's metrics name the replica; whose it is, Serve's say."""
    of = 'ray_serve_deployment_replica_healthy{namespace=~"$namespace", deployment=~"$variant"}'
    replicas = f'max by (ReplicaId, deployment) (label_join({of}, "ReplicaId", "", "replica")) * 0 + 1'
    return f"sum by ({by}) (rate({counter}{{{ENGINE}}}[{RATE}]) * on (ReplicaId) group_left (deployment) ({replicas}))"

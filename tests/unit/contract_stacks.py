"""Values of stack files on AWS, for the tests of what they are held against."""

from typing import Any

from app import settings
from app.keys import digest

ACCOUNT, REGION = "123456789012", "us-east-1"
QWEN3_8B = {
    "parameters_billion": 8.19,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
LLAMA_70B = {**QWEN3_8B, "parameters_billion": 70.55, "num_hidden_layers": 80, "num_attention_heads": 64}
L4: dict[str, Any] = {"name": "l4", "cpus": 7, "gpus": 1, "memory_gib": 28, "pool": {"gpu": "L4"}}
L4X4: dict[str, Any] = {"name": "l4x4", "cpus": 40, "gpus": 4, "memory_gib": 160, "pool": {"gpu": "L4"}}
H100: dict[str, Any] = {"name": "h100", "cpus": 180, "gpus": 8, "memory_gib": 1800, "pool": {"gpu": "H100"}}
SHARED: dict[str, Any] = {
    **{"name": "l4", "cpus": 2, "gpus": 1, "memory_gib": 6},
    "pool": {"gpu": "L4", "nodes": "managed", "share": {"replicas": 4}},
}
NOTHING: dict[str, Any] = {**settings.NOTHING, "gateway": {"placement": {"num_cpus": 0.01}}}


def variant(gpu: str | None = "L4", size: dict[str, Any] | None = QWEN3_8B, **values: Any) -> dict[str, Any]:
    """A language model from S3, in fp8 when nothing is said; placement and engine are added to."""
    engine = {"quantization": "fp8", **values.pop("engine", {})}
    placement = {"num_gpus": 1, "accelerator_type": gpu, **values.pop("placement", {})}
    source = f"s3://team-weights-{ACCOUNT}-{REGION}/org/model/0123abc"
    return {"source": source, "size": size, "engine": engine, "placement": placement, **values}


def values(
    *workers: dict[str, Any], variants: list[dict[str, Any]] | None = None, cluster: Any = None, **more: Any
) -> dict[str, Any]:
    """A stack file that is in order, with these workers, variants, other values of its cluster, and other keys."""
    return {
        "cluster": {
            "kind": "eks",
            "name": "team",
            "account": ACCOUNT,
            "region": REGION,
            "zones": [f"{REGION}{zone}" for zone in "abc"],
            "tags": {"owner": "ml", "cost_center": "4711", "environment": "test"},
            "admins": [f"arn:aws:iam::{ACCOUNT}:role/admin"],
            **(cluster or {}),
        },
        "image": {"repository": "registry.example.com/team"},
        "keys": [{"name": "team", "sha256": digest("sk-a-key-that-nobody-guesses")}],
        "workers": [*workers] or [L4],
        "serving": {**NOTHING, "models": [{"variants": variants or [variant()]}]},
        **more,
    }

"""Arguments of vLLM's engine. Part of the settings model (app/settings.py), so without vLLM itself."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationInfo, field_validator

from app.validation import Strict, nearest, short

VLLM: dict[str, Any] = json.loads(Path(__file__).with_name("vllm.json").read_text())
"""What the pinned vLLM knows: its arguments, the choices of some, its histograms' bounds; `make schema` writes it."""


class Engine(Strict):
    """vLLM's engine arguments. Those that are not here go into `extra`."""

    max_model_len: int = Field(default=2048, ge=1, description="Longest prompt and answer together, in tokens.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="bfloat16", description="Type of the weights and activations; auto takes the weights' own."
    )
    quantization: str | None = Field(
        default=None, description="vLLM's method, say fp8 or awq; left out, what the weights say."
    )
    # Compiled bfloat16 on CPUs gave a deterministic wrong answer to one of our five golden prompts,
    # and took three times as long to start.
    enforce_eager: bool = Field(
        default=True,
        description="Run without torch.compile and CUDA graphs: keep it on CPUs, which compile wrong answers; "
        "on GPUs turn it off, for speed.",
    )
    tensor_parallel_size: int = Field(default=1, ge=1, description="GPUs that each layer is split over.")
    pipeline_parallel_size: int = Field(default=1, ge=1, description="Groups of GPUs that the layers are dealt to.")
    kv_cache_gib: float | None = Field(
        default=None, gt=0, description="Key-value cache on CPUs, in GiB; 0.25 when left out."
    )
    gpu_memory_utilization: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of a GPU's memory for weights and key-value cache; 0.9 of num_gpus when left out.",
    )
    max_num_seqs: int = Field(default=128, ge=2, description="Sequences in one step of the engine.")
    max_num_batched_tokens: int | None = Field(
        default=None, ge=1, description="Tokens in one step of the engine; vLLM chooses when left out."
    )
    enable_prefix_caching: bool = Field(default=True, description="Prompts with the same start share its cache.")
    seed: int = Field(default=0, ge=0, description="Seed of requests that bring none.")
    load_format: str = Field(
        default="safetensors",
        description="How weights are read; runai_streamer streams them from S3. Never from pickles, which are code.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that comes with the weights; from a hub, only of a commit."
    )
    tool_call_parser: str | None = Field(
        default=None,
        description="vLLM's parser of the model's tool calls, say hermes or llama3_json: allows tool_choice=auto.",
    )
    reasoning_parser: str | None = Field(default=None, description="vLLM's parser of the model's reasoning.")
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = Field(
        default=16, description="Greatest rank of the variant's adapters."
    )
    start_timeout_s: int = Field(
        default=1800, ge=1, description="Seconds from the start of a replica to its first token: weights, compilation."
    )
    extra: dict[str, JsonValue] = Field(
        default={}, description="More of vLLM's arguments by their Python names, say {speculative_config: {...}}."
    )

    @field_validator("quantization", "load_format", "tool_call_parser", "reasoning_parser")
    @classmethod
    def _vllm_knows_it(cls, value: str | None, info: ValidationInfo) -> str | None:
        known = VLLM[info.field_name or ""]
        if value is not None and value not in known:
            raise ValueError(f"vLLM has no such {info.field_name}; fix: use {nearest(value, known)}")
        return value

    @field_validator("load_format")
    @classmethod
    def _runs_no_code(cls, load_format: str) -> str:
        if load_format in _PICKLES:
            raise ValueError(
                "reads pickled weights as well, and those are code; fix: leave it out, and convert the weights to "
                "safetensors where a model has none"
            )
        return load_format

    @field_validator("extra")
    @classmethod
    def _vllm_has_them(cls, extra: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name, value in extra.items():
            given = f"{name} = {short(value)}"
            if name in cls.model_fields:
                raise ValueError(f"{given}: is a key of engine itself; fix: move it out of extra")
            if name in _SECRETS:
                raise ValueError(
                    f"{name}: would be in the clear here; fix: leave it out (HF_TOKEN is an environment variable)"
                )
            if name in _OURS:
                raise ValueError(f"{given}: {_OURS[name]}")
            if name.startswith(_NOT_HERE):
                raise ValueError(f"{given}: does nothing here, or what Ray reserves would be wrong; fix: leave it out")
            if name not in VLLM["arguments"]:
                known = nearest(name, VLLM["arguments"], "one of `arguments` in app/vllm.json")
                raise ValueError(f"{given}: vLLM has no such argument; fix: use {known}")
        return extra

    @property
    def workers(self) -> int:
        """Number of GPUs of one replica's engine."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


_PICKLES = ("auto", "hf", "npcache", "pt")
"""https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/model_loader/default_loader.py"""
_OURS = {
    "model": "is the variant's `source`; fix: set that",
    "served_model_name": "is the model's `name`; fix: set that",
    "distributed_executor_backend": "is Ray's to choose; fix: leave it out",
    "enable_lora": "follows from `adapters`; fix: list the adapters",
    "lora_modules": "follows from `adapters`; fix: list the adapters",
    "revision": "is the variant's `revision`; fix: set that",
}
"""vLLM's arguments that other settings decide."""
_SECRETS = ("api_key", "hf_token")
_NOT_HERE = (
    *("host", "port", "uds", "ssl_", "root_path", "middleware", "allow_credentials", "allowed_origins"),
    *("allowed_methods", "allowed_headers", "uvicorn_", "h11_", "disable_uvicorn", "log_config_file"),
    *("data_parallel_", "prefill_context_parallel", "decode_context_parallel", "nnodes", "node_rank", "master_"),
    "disable_log_stats",
)
"""Beginnings of vLLM's arguments for a server of its own, and for more workers than we count."""

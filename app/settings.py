"""THE settings model: one object for `serve run`, for the RayService's args and for a stack file.

Needs pydantic and nothing of ray, torch or vllm, so that a deployment can be checked anywhere. The defaults are the
local profile: a small language model and a small embedding model on a laptop's CPU.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from app.builtin import PACKAGES, Kind
from app.validation import SettingsError, Strict, nearest, require_distinct, short, validate

APPLICATION = "blueprint"
"""Name of the Serve application, as in Ray's metrics and in a RayService's status."""

VLLM: dict[str, list[str]] = json.loads(Path(__file__).with_name("vllm.json").read_text())
"""What the pinned vLLM knows: its arguments, and the choices of some; `make schema` writes it."""

# What follows a : is a LoRA adapter, what follows an @ a variant, and the names of deployments have -- for a /. Without
# these in a name, no two models share a deployment.
NAME = r"^[A-Za-z0-9]+([-._/][A-Za-z0-9]+)*$"
PART = r"^[A-Za-z0-9]+([-._][A-Za-z0-9]+)*$"


class Autoscaling(Strict):
    """Ray's autoscaling_config: replicas follow the requests that are under way and waiting."""

    min_replicas: int = Field(
        default=1, ge=0, description="Least number of replicas; 0 lets the model go when nobody asks, at a cold start."
    )
    max_replicas: int = Field(default=2, ge=1, description="Greatest number of replicas.")
    initial_replicas: int | None = Field(
        default=None, ge=0, description="Number of replicas at first; min_replicas when left out."
    )
    target_ongoing_requests: float = Field(
        default=16, gt=0, description="Requests, under way and waiting, that each replica should have."
    )
    upscale_delay_s: float = Field(default=30, ge=0, description="Seconds of more load before replicas are added.")
    downscale_delay_s: float = Field(default=600, ge=0, description="Seconds of less load before replicas are removed.")
    upscaling_factor: float = Field(default=1, gt=0, description="Multiplies each step up; below 1 makes it smaller.")
    downscaling_factor: float = Field(
        default=1, gt=0, description="Multiplies each step down; below 1 makes it smaller."
    )
    metrics_interval_s: float = Field(default=10, gt=0, description="Seconds between two reports of a replica's load.")
    look_back_period_s: float = Field(default=30, gt=0, description="Seconds over which the load is averaged.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas = {self.max_replicas}: is less than min_replicas ({self.min_replicas}); "
                "fix: raise max_replicas or lower min_replicas"
            )
        initial = self.initial_replicas
        if initial is not None and not self.min_replicas <= initial <= self.max_replicas:
            raise ValueError(
                f"initial_replicas = {initial}: is not between min_replicas ({self.min_replicas}) and max_replicas "
                f"({self.max_replicas}); fix: choose one between them"
            )
        if self.look_back_period_s <= self.metrics_interval_s:
            raise ValueError(
                f"look_back_period_s = {self.look_back_period_s:g}: is not longer than metrics_interval_s "
                f"({self.metrics_interval_s:g}), so a period may hold no report; fix: make it longer"
            )
        return self


class Scaling(Strict):
    """How many replicas a deployment has, what each takes on, and how it is watched and stopped."""

    num_replicas: int | None = Field(
        default=None, ge=1, description="Number of replicas; 1 when left out and autoscaling_config is, too."
    )
    autoscaling_config: Autoscaling | None = Field(
        default=None, description="Replicas follow the load, in place of num_replicas."
    )
    max_ongoing_requests: int = Field(
        default=64, ge=1, description="Requests a replica works on at once; more wait in the caller's queue."
    )
    max_queued_requests: int = Field(
        default=256,
        ge=-1,
        description="Requests that wait at each caller; more are answered 429 at once. -1 means without limit.",
    )
    retry_after_s: int = Field(default=1, ge=0, description="Retry-After of such a 429, in seconds.")
    health_check_period_s: float = Field(default=10, gt=0, description="Seconds between two health checks.")
    health_check_timeout_s: float = Field(
        default=30,
        gt=0,
        description="Seconds a health check may take; a replica that fails three in a row is replaced.",
    )
    graceful_shutdown_wait_loop_s: float = Field(
        default=2, gt=0, description="Seconds between two looks whether a stopping replica has finished its requests."
    )
    graceful_shutdown_timeout_s: float = Field(
        default=20, ge=0, description="Seconds a stopping replica has to finish its requests before it is killed."
    )

    @field_validator("max_queued_requests")
    @classmethod
    def _ray_takes_it(cls, most: int) -> int:
        if most == 0:
            raise ValueError("Ray has no such limit; fix: make it 1 or more, or -1 for no limit")
        return most

    @model_validator(mode="after")
    def _one_way_to_scale(self) -> Self:
        autoscaling = self.autoscaling_config
        if autoscaling is None:
            return self
        if self.num_replicas is not None:
            raise ValueError(
                f"num_replicas = {self.num_replicas}: autoscaling_config is there, too, and decides that; "
                "fix: keep one of them"
            )
        if autoscaling.target_ongoing_requests > self.max_ongoing_requests:
            raise ValueError(
                f"autoscaling_config.target_ongoing_requests = {autoscaling.target_ongoing_requests:g}: is more than a "
                f"replica takes, max_ongoing_requests ({self.max_ongoing_requests}); fix: lower it, or raise that"
            )
        return self

    @property
    def greatest(self) -> int:
        """Number of replicas at most."""
        return self.autoscaling_config.max_replicas if self.autoscaling_config else self.num_replicas or 1

    def options(self) -> dict[str, Any]:
        """Options of a Ray Serve deployment (`serve.deployment(...)`)."""
        kept = self.model_dump(exclude={"num_replicas", "autoscaling_config", "retry_after_s"})
        kept["backpressure_config"] = {"status_code": 429, "retry_after_s": self.retry_after_s}
        if self.autoscaling_config is None:
            return {**kept, "num_replicas": self.num_replicas or 1}
        return {**kept, "autoscaling_config": self.autoscaling_config.model_dump(exclude_none=True)}


class Placement(Strict):
    """What Ray reserves for a replica."""

    num_cpus: float = Field(
        default=0.25, ge=0, description="Cores that Ray sets aside for a replica; it may use more when they are idle."
    )
    memory_gib: float | None = Field(
        default=None, gt=0, description="Memory that Ray sets aside for a replica, in GiB; none when left out."
    )

    def options(self) -> dict[str, Any]:
        """`ray_actor_options` of a replica."""
        chosen: dict[str, Any] = {"num_cpus": self.num_cpus}
        if self.memory_gib is not None:
            chosen["memory"] = int(self.memory_gib * 2**30)
        return chosen


class GpuPlacement(Placement):
    """What Ray reserves for a replica that may use a GPU."""

    num_gpus: float = Field(
        default=0, ge=0, le=1, description="GPUs of a replica: 0, 1, or a share such as 0.25 of one that it shares."
    )
    accelerator_type: (
        Literal["T4", "A10G", "L4", "L40S", "A100-40G", "A100-80G", "H100", "H200", "B200", "B300", "GB200", "GB300"]
        | None
    ) = Field(default=None, description="The GPU that it needs, by Ray's name; any when left out.")

    @model_validator(mode="after")
    def _gpu_for_its_type(self) -> Self:
        if self.accelerator_type and not self.num_gpus:
            raise ValueError(
                f"accelerator_type = {self.accelerator_type!r}: no GPU is asked for; fix: set num_gpus, or leave it out"
            )
        return self

    def options(self) -> dict[str, Any]:
        chosen = {**super().options(), "num_gpus": self.num_gpus}
        if self.accelerator_type:
            chosen["accelerator_type"] = self.accelerator_type
        return chosen


class EnginePlacement(GpuPlacement):
    """What Ray reserves for a language model: `num_gpus` is that of each of its engine's workers."""

    num_cpus: float = Field(
        default=1, ge=0, description="Cores that Ray sets aside for a replica; vLLM uses all cores that it sees."
    )
    strategy: Literal["STRICT_PACK", "PACK"] = Field(
        default="STRICT_PACK",
        description="Where an engine's workers go: all on one node, or on several where pipeline stages need it.",
    )


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
    kv_cache_gib: int | None = Field(
        default=None,
        ge=1,
        description="Key-value cache on CPUs, in whole GiB (vLLM crashes on a fraction); 1 when left out.",
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
    load_format: str = Field(default="auto", description="How weights are read; runai_streamer streams them from S3.")
    trust_remote_code: bool = Field(default=False, description="Run Python code that comes with the weights.")
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


class Adapter(Strict):
    """A LoRA adapter, asked for as <model>:<name>."""

    name: str = Field(pattern=PART, max_length=64, description="What follows the : in a request's `model`.")
    source: str = Field(description="An absolute path, or a hub's <organisation>/<adapter>.")

    @field_validator("source")
    @classmethod
    def _source_is_known(cls, source: str) -> str:
        if not re.fullmatch(r"/.+|[\w.-]+/[\w.-]+", source):
            raise ValueError(
                "says not where the adapter is; fix: use an absolute path or <organisation>/<adapter> "
                "(vLLM reads no adapters from S3: copy them to the node)"
            )
        return source


class Weights(Strict):
    """Where a model comes from."""

    source: str = Field(
        description="The weights: builtin:<name>, an absolute path, s3://<bucket>/<prefix> or a hub's "
        "<organisation>/<model>."
    )
    revision: str | None = Field(default=None, description="The hub's commit, tag or branch; a must with a hub.")

    @property
    def builtin(self) -> str | None:
        """Name of the built-in model, when it is one."""
        return self.source.removeprefix("builtin:") if self.source.startswith("builtin:") else None

    @property
    def from_hub(self) -> bool:
        """Whether the weights must be fetched from a model hub."""
        return self.builtin is None and not self.source.startswith(("/", "s3://"))

    @model_validator(mode="after")
    def _revision_is_pinned(self) -> Self:
        if self.from_hub and not self.revision:
            raise ValueError(
                f"revision: is missing, and what {self.source} holds may change any day; fix: add the commit to serve"
            )
        if self.revision is not None and not self.from_hub:
            raise ValueError(
                f"revision = {self.revision!r}: {self.source} is not from a hub and has none; fix: leave it out"
            )
        return self


def _check_source(source: str, kind: Kind) -> str:
    if source.startswith("builtin:"):
        names = [name for name, package in PACKAGES.items() if package.kind == kind]
        if source.removeprefix("builtin:") not in names:
            known = " or ".join(f"builtin:{name}" for name in names)
            raise ValueError(f"there is no such built-in {kind} model; fix: use {known}")
    elif not re.fullmatch(r"/.+|s3://[^/]+/.+|[\w.-]+/[\w.-]+", source):
        raise ValueError(
            "says not where the weights are; fix: use builtin:<name>, an absolute path, "
            "s3://<bucket>/<prefix> or <organisation>/<model>"
        )
    return source


class Variant(Weights):
    """One way to serve a model: weights, engine, replicas, placement."""

    name: str = Field(
        default="stable", pattern=PART, max_length=32, description="What follows the @ in a request that pins it."
    )
    source: str = Field(default="builtin:smollm2-135m-instruct", description=Weights.model_fields["source"].description)
    engine: Engine = Field(default=Engine(), description="Arguments of vLLM's engine.")
    adapters: list[Adapter] = Field(default=[], description="LoRA adapters for this variant's weights.")
    scaling: Scaling = Field(default=Scaling(), description="Replicas, and what each takes on.")
    placement: EnginePlacement = Field(default=EnginePlacement(), description="What Ray reserves for a replica.")

    @field_validator("source")
    @classmethod
    def _source_is_known(cls, source: str) -> str:
        return _check_source(source, "language")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        require_distinct("adapters", [adapter.name for adapter in self.adapters])
        engine, gpus = self.engine, self.placement.num_gpus
        if engine.workers > 1 and gpus != 1:
            raise ValueError(
                f"placement.num_gpus = {gpus:g}: an engine split over {engine.workers} workers needs one whole GPU for "
                "each; fix: set it to 1, or tensor_parallel_size and pipeline_parallel_size to 1"
            )
        if engine.kv_cache_gib is not None and gpus:
            raise ValueError(
                f"engine.kv_cache_gib = {engine.kv_cache_gib}: is for CPUs; fix: use gpu_memory_utilization on GPUs"
            )
        if engine.gpu_memory_utilization is not None and engine.gpu_memory_utilization > gpus:
            raise ValueError(
                f"engine.gpu_memory_utilization = {engine.gpu_memory_utilization:g}: is more than the replica's share "
                f"of a GPU (placement.num_gpus is {gpus:g}); fix: lower it, or raise num_gpus"
            )
        # A full engine queues what comes next, the health check's one token too, and would be killed for being busy.
        if self.scaling.max_ongoing_requests >= engine.max_num_seqs:
            raise ValueError(
                f"engine.max_num_seqs = {engine.max_num_seqs}: is not greater than scaling.max_ongoing_requests "
                f"({self.scaling.max_ongoing_requests}), so a busy engine has no room for its health check; "
                "fix: raise it, or lower that"
            )
        return self

    @property
    def gpu_memory_utilization(self) -> float:
        """Share of each GPU's memory that the engine takes."""
        return self.engine.gpu_memory_utilization or round(0.9 * self.placement.num_gpus, 4)


class Model(Strict):
    """One language model behind the OpenAI routes."""

    name: str = Field(
        default="chat",
        pattern=NAME,
        max_length=96,
        description="What clients send as `model`: letters and digits, single - . _ / between them.",
    )
    variants: list[Variant] = Field(
        default=[Variant()],
        min_length=1,
        description="Ways to serve it; the first answers <name>, each answers <name>@<variant>.",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        require_distinct("variants", [variant.name for variant in self.variants])
        return self

    def deployment(self, variant: Variant) -> str:
        """Name of the variant's Serve deployment."""
        return f"LLM:{_slug(self.name)}@{variant.name}"


class Batching(Strict):
    """`@serve.batch`: requests that come close together go through the model as one. Changes live."""

    max_batch_size: int = Field(default=32, ge=1, description="Texts in one batch.")
    batch_wait_timeout_s: float = Field(
        default=0.005, ge=0, description="Seconds that the first text of a batch waits for others."
    )


class EmbeddingModel(Weights):
    """One embedding model behind /v1/embeddings: any encoder that transformers' AutoModel loads."""

    name: str = Field(
        default="embed",
        pattern=NAME,
        max_length=96,
        description="What clients send as `model`, as for a language model.",
    )
    source: str = Field(default="builtin:all-minilm-l6-v2", description=Weights.model_fields["source"].description)
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="float32", description="Type of the weights and activations."
    )
    pooling: Literal["mean", "cls", "last"] = Field(
        default="mean", description="How the tokens' vectors become the text's: their mean, the first or the last."
    )
    max_tokens: int = Field(
        default=256,
        ge=1,
        description="Longest text, in tokens. A longer one is refused, unless the request has truncate_prompt_tokens.",
    )
    batching: Batching = Field(default=Batching(), description="How texts are gathered into batches.")
    scaling: Scaling = Field(default=Scaling(max_ongoing_requests=256), description="Replicas, and what each takes on.")
    placement: GpuPlacement = Field(default=GpuPlacement(), description="What Ray reserves for a replica.")

    @field_validator("source")
    @classmethod
    def _source_is_known(cls, source: str) -> str:
        if source.startswith("s3://"):
            raise ValueError(
                "transformers reads no weights from S3; fix: use builtin:<name>, an absolute path or "
                "<organisation>/<model>"
            )
        return _check_source(source, "embedding")

    @property
    def deployment(self) -> str:
        """Name of the model's Serve deployment."""
        return f"Embeddings:{_slug(self.name)}"


class Gateway(Strict):
    """The way in: all routes, and the checks of every request."""

    max_body_mib: float = Field(
        default=8, gt=0, description="Largest body of a request, in MiB; a larger one is a 413."
    )
    # The models limit themselves; when they are full, /health must still get through.
    scaling: Scaling = Field(
        default=Scaling(max_ongoing_requests=10_000, max_queued_requests=-1),
        description="Replicas, and what each takes on.",
    )
    # Hardly any core, since on two cores the engine has them all; more than none, or Ray may put it on the head.
    placement: Placement = Field(
        default=Placement(num_cpus=0.01), description="What Ray reserves for a replica; next to no core by default."
    )


class Settings(Strict):
    """Everything the application does."""

    models: list[Model] = Field(default=[Model()], description="The language models.")
    embeddings: list[EmbeddingModel] = Field(default=[EmbeddingModel()], description="The embedding models.")
    gateway: Gateway = Field(default=Gateway(), description="The way in.")

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if not self.models and not self.embeddings:
            raise ValueError(
                "models = []: nothing is served, embeddings is empty, too; fix: add a model to one of them"
            )
        require_distinct("models", [model.name for model in self.models])
        require_distinct("embeddings", [model.name for model in self.embeddings])
        for index, embedding in enumerate(self.embeddings):
            if any(model.name == embedding.name for model in self.models):
                raise ValueError(
                    f"embeddings.{index}.name = {embedding.name!r}: a language model has this name; "
                    "fix: give each model its own"
                )
        return self


class Demand(NamedTuple):
    """What a deployment takes of a cluster when it has all its replicas."""

    key: str
    """Where its settings are."""
    replicas: int
    cpus: float
    """Cores of a replica."""
    gpus: float
    """GPUs of a replica, all workers together."""
    one_node: bool
    """Whether all of a replica must be on one node."""


def demands(settings: Settings) -> Iterator[Demand]:
    """What every deployment takes."""
    for i, model in enumerate(settings.models):
        for j, variant in enumerate(model.variants):
            place = variant.placement
            yield Demand(
                f"models.{i}.variants.{j}",
                variant.scaling.greatest,
                place.num_cpus,
                place.num_gpus * variant.engine.workers,
                place.strategy == "STRICT_PACK",
            )
    for i, embedding in enumerate(settings.embeddings):
        place = embedding.placement
        yield Demand(f"embeddings.{i}", embedding.scaling.greatest, place.num_cpus, place.num_gpus, True)
    gateway = settings.gateway
    yield Demand("gateway", gateway.scaling.greatest, gateway.placement.num_cpus, 0, True)


def parse(values: Mapping[str, Any]) -> Settings:
    """Settings from plain data. Raises SettingsError."""
    return validate(Settings, values, "settings")


def load(path: str | Path) -> Settings:
    """Settings from a YAML file; an empty one means the defaults. Raises SettingsError."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot be read ({error.strerror}); "
            "fix: give the path of a YAML file, relative to the current directory"
        ) from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: is not YAML ({error}); fix: correct the syntax") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: holds {short(values)}; fix: write a mapping, say models: [{{name: chat}}]")
    return validate(Settings, values, str(path))


def serve_config(settings: Settings) -> dict[str, Any]:
    """The `serveConfigV2` of a RayService that serves `settings`, in Ray's ServeDeploySchema.

    Its args are all settings, defaults too: what runs can be read off the cluster. What may change live is not in them,
    since other args mean other replicas, but in the deployments' user_config.
    """
    args = settings.model_dump(mode="json")
    live = [
        {"name": embedding.deployment, "user_config": values.pop("batching")}
        for embedding, values in zip(settings.embeddings, args["embeddings"], strict=True)
    ]
    return {
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": "app.main:app",
                "args": args,
                "deployments": live,
            }
        ]
    }


def _slug(name: str) -> str:
    """A model's name within a deployment's, which may hold no /."""
    return name.replace("/", "--")

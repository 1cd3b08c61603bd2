"""THE settings model: one object for `serve run`, for the RayService's args and for a stack file.

Needs pydantic and nothing of ray, torch or vllm, so that a deployment can be checked anywhere. The defaults are the
local profile: a small language model and a small embedding model on a laptop's CPU.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from app.builtin import PACKAGES, WEIGHTS, Kind
from app.engine import Engine
from app.options import BatchScaling, EnginePlacement, GatewayScaling, GpuPlacement, Placement, Scaling
from app.size import Memory, Size
from app.validation import SettingsError, Strict, nearest, read_yaml, require_distinct, short, validate

GENERATE = "Generate"
"""Name of the Serve deployment behind /generate."""
ANALYZE = "Analyze"
"""Name of the Serve deployment behind /analyze."""

# What follows a : is a LoRA adapter, what follows an @ a variant, and the names of deployments have -- for a /. Without
# these in a name, no two models share a deployment.
NAME = r"^[A-Za-z0-9]+([-._/][A-Za-z0-9]+)*$"
PART = r"^[A-Za-z0-9]+([-._][A-Za-z0-9]+)*$"


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
    def on_node(self) -> bool:
        """Whether pods must find the weights on their node, where `python -m app.builtin` has put them."""
        return self.builtin in WEIGHTS

    @property
    def from_hub(self) -> bool:
        """Whether the weights must be fetched from a model hub."""
        return self.builtin is None and not self.source.startswith(("/", "s3://"))

    @property
    def remote(self) -> bool:
        """Whether replicas load the weights over the network."""
        return self.from_hub or self.source.startswith("s3://")

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
            known = " or ".join(f"builtin:{name}" for name in names) or "other weights"
            raise ValueError(f"there is no such built-in {kind} model; fix: use {known}")
    elif not re.fullmatch(r"/.+|s3://[^/]+/.+|[\w.-]+/[\w.-]+", source):
        raise ValueError(
            "says not where the weights are; fix: use builtin:<name>, an absolute path, "
            "s3://<bucket>/<prefix> or <organisation>/<model>"
        )
    return source


def _check_readable(source: str, kind: Kind) -> str:
    if source.startswith("s3://"):
        raise ValueError(
            "transformers reads no weights from S3; fix: use builtin:<name>, an absolute path or <organisation>/<model>"
        )
    return _check_source(source, kind)


class LanguageModel(Weights):
    """Weights, an engine to run them, replicas and their placement."""

    source: str = Field(default="builtin:smollm2-135m-instruct", description=Weights.model_fields["source"].description)
    engine: Engine = Field(default=Engine(), description="Arguments of vLLM's engine.")
    scaling: Scaling = Field(default=Scaling(), description="Replicas, and what each takes on.")
    placement: EnginePlacement = Field(default=EnginePlacement(), description="What Ray reserves for a replica.")
    size: Size | None = Field(
        default=None,
        description="How large it is, by which the memory of GPUs is checked before anything runs; a must on GPUs of a "
        "cluster of kind eks.",
    )

    @field_validator("source")
    @classmethod
    def _source_is_known(cls, source: str) -> str:
        return _check_source(source, "language")

    @model_validator(mode="after")
    def _code_is_of_one_commit(self) -> Self:
        if self.engine.trust_remote_code and self.from_hub and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                f"revision = {self.revision!r}: is no commit, and with engine.trust_remote_code whoever moves it runs "
                "code here; fix: name the commit whose code somebody has read"
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        engine, gpus = self.engine, self.placement.num_gpus
        if engine.workers > 1 and gpus != 1:
            raise ValueError(
                f"placement.num_gpus = {gpus:g}: an engine split over {engine.workers} workers needs one whole GPU for "
                "each; fix: set it to 1, or tensor_parallel_size and pipeline_parallel_size to 1"
            )
        if engine.kv_cache_gib is not None and gpus:
            raise ValueError(
                f"engine.kv_cache_gib = {engine.kv_cache_gib:g}: is for CPUs; fix: use gpu_memory_utilization on GPUs"
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

    @model_validator(mode="after")
    def _can_be_split(self) -> Self:
        """What vLLM itself refuses, but minutes later, on a GPU that is paid for."""
        engine, size = self.engine, self.size
        if size is None:
            return self
        if size.num_attention_heads % engine.tensor_parallel_size:
            raise ValueError(
                f"engine.tensor_parallel_size = {engine.tensor_parallel_size}: {size.num_attention_heads} attention "
                "heads (size.num_attention_heads) cannot be split over so many GPUs; fix: use a divisor of that"
            )
        if size.num_hidden_layers < engine.pipeline_parallel_size:
            raise ValueError(
                f"engine.pipeline_parallel_size = {engine.pipeline_parallel_size}: is more than the model's layers "
                f"(size.num_hidden_layers is {size.num_hidden_layers}); fix: lower it"
            )
        size.memory(engine)
        return self

    @property
    def gpu_memory_utilization(self) -> float:
        """Share of each GPU's memory that the engine takes."""
        return self.engine.gpu_memory_utilization or round(0.9 * self.placement.num_gpus, 4)

    @property
    def memory(self) -> Memory | None:
        """What each of its GPUs must hold at the least; None where the size is not said."""
        return self.size and self.size.memory(self.engine)


class Variant(LanguageModel):
    """One way to serve a model, and its part in the model's experiment."""

    name: str = Field(
        default="stable", pattern=PART, max_length=32, description="What follows the @ in a request that pins it."
    )
    weight: float = Field(
        default=1, ge=0, description="Its share of the model's users, relative to the other variants'. Changes live."
    )
    shadow: float = Field(
        default=0,
        ge=0,
        le=1,
        description="Share of the requests to other variants that it gets a copy of; the answers are dropped. "
        "Changes live.",
    )
    adapters: list[Adapter] = Field(default=[], description="LoRA adapters for this variant's weights.")

    @model_validator(mode="after")
    def _adapters_differ(self) -> Self:
        require_distinct("adapters", [adapter.name for adapter in self.adapters])
        return self


class Guard(Strict):
    """A safety classifier before a language model. Changes live, but for the classifier."""

    classifier: str = Field(default="safety", description="Name of the classifier, whose `unsafe` labels count.")
    enabled: bool = Field(default=True, description="Whether prompts are classified.")
    threshold: float = Field(
        default=0.8, gt=0, le=1, description="Score of an unsafe label from which a prompt is refused."
    )
    on_failure: Literal["close", "open"] = Field(
        default="close", description="What a failing classifier means: nothing is answered (503), or everything."
    )


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
        description="Ways to serve it. Users are split over them by weight; <name>@<variant> asks for one.",
    )
    pins: dict[str, str] = Field(
        default={},
        description="User → the variant that this user gets, whatever the weights; with API keys, a user is "
        "<key's name>/<user>. Changes live.",
    )
    guard: Guard | None = Field(default=None, description="A safety classifier that sees every prompt first.")

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        names = [variant.name for variant in self.variants]
        require_distinct("variants", names)
        if not any(variant.weight for variant in self.variants):
            raise ValueError(
                "variants.0.weight = 0: every weight is 0, so nobody answers; fix: give one variant a weight"
            )
        for user, variant in self.pins.items():
            if variant not in names:
                raise ValueError(
                    f"pins.{user} = {variant!r}: there is no such variant; fix: use {nearest(variant, names)}"
                )
        return self

    def deployment(self, variant: Variant) -> str:
        """Name of the variant's Serve deployment."""
        return f"LLM:{slug(self.name)}@{variant.name}"


class Generator(LanguageModel):
    """The model behind /generate: an engine of its own, without OpenAI's frontend."""

    placement: EnginePlacement = Field(
        default=EnginePlacement(num_cpus=0.25), description="What Ray reserves for a replica."
    )

    @model_validator(mode="after")
    def _has_no_frontend(self) -> Self:
        for key in ("tool_call_parser", "reasoning_parser"):
            if value := getattr(self.engine, key):
                raise ValueError(
                    f"engine.{key} = {value!r}: is for the OpenAI routes, and /generate returns plain text; "
                    "fix: leave it out, or serve the model in models"
                )
        if self.placement.strategy == "PACK":
            raise ValueError(
                "placement.strategy = 'PACK': the workers of /generate's engine are processes of one node; "
                "fix: leave it out, or serve the model in models"
            )
        return self

    @model_validator(mode="after")
    def _reads_its_weights(self) -> Self:
        if self.source.startswith("s3://") and self.engine.load_format != "runai_streamer":
            raise ValueError(
                f"source = {self.source!r}: vLLM itself copies nothing from S3; fix: set engine.load_format to "
                "runai_streamer, or use an absolute path"
            )
        return self


class Batching(Strict):
    """`@serve.batch`: what comes while the model is at work goes through it together, as one batch. Changes live."""

    max_batch_size: int = Field(
        default=256,
        ge=1,
        description="Texts in one batch, which goes through the model in passes of texts of like length: of 8 at most "
        "on a CPU, of 64 on a GPU.",
    )
    batch_wait_timeout_s: float = Field(
        default=0,
        ge=0,
        description="Seconds that the first text of a batch waits for others although the model is idle.",
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
    scaling: BatchScaling = Field(default=BatchScaling(), description="Replicas, and what each takes on.")
    placement: GpuPlacement = Field(default=GpuPlacement(), description="What Ray reserves for a replica.")

    @field_validator("source")
    @classmethod
    def _source_is_known(cls, source: str) -> str:
        return _check_readable(source, "embedding")

    @property
    def deployment(self) -> str:
        """Name of the model's Serve deployment."""
        return f"Embeddings:{slug(self.name)}"


class Classifier(Weights):
    """A text classifier behind /v1/classify: any model that transformers' AutoModelForSequenceClassification loads."""

    name: str = Field(pattern=NAME, max_length=96, description="What clients send as `model`, as for a language model.")
    source: str = Field(description=Weights.model_fields["source"].description)
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="float32", description="Type of the weights and activations."
    )
    unsafe: list[str] = Field(
        default=[], description="Labels that a guard and /v1/moderations count as unsafe; none for other classifiers."
    )
    max_tokens: int = Field(default=512, ge=1, description="Longest text, in tokens; what is longer is cut off.")
    batching: Batching = Field(default=Batching(), description="How texts are gathered into batches.")
    scaling: BatchScaling = Field(default=BatchScaling(), description="Replicas, and what each takes on.")
    placement: GpuPlacement = Field(default=GpuPlacement(num_cpus=0.05), description="What Ray reserves for a replica.")

    @field_validator("source")
    @classmethod
    def _source_is_known(cls, source: str) -> str:
        return _check_readable(source, "classification")

    @property
    def deployment(self) -> str:
        """Name of the classifier's Serve deployment."""
        return f"Classifier:{slug(self.name)}"


class Moderation(Strict):
    """/v1/moderations: a safety classifier in OpenAI's shape."""

    classifier: str = Field(
        default="safety", description="Name of the classifier, whose `unsafe` labels are the categories."
    )
    threshold: float = Field(default=0.5, gt=0, le=1, description="Score from which a category is flagged.")


class Reranker(Weights):
    """A model behind /v1/rerank: a cross-encoder of transformers, or an embedding model's cosines."""

    name: str = Field(
        default="rerank",
        pattern=NAME,
        max_length=96,
        description="What clients send as `model`, as for a language model.",
    )
    source: str = Field(
        default="embedding:embed",
        description="embedding:<name> compares that embedding model's vectors; else the weights of a cross-encoder: an "
        "absolute path or a hub's <organisation>/<model>.",
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="float32", description="Type of the weights and activations."
    )
    max_tokens: int = Field(default=512, ge=1, description="Longest query and document together, in tokens.")
    batching: Batching = Field(default=Batching(), description="How pairs are gathered into batches.")
    scaling: BatchScaling = Field(default=BatchScaling(), description="Replicas, and what each takes on.")
    placement: GpuPlacement = Field(default=GpuPlacement(num_cpus=0.05), description="What Ray reserves for a replica.")

    @field_validator("source")
    @classmethod
    def _source_is_known(cls, source: str) -> str:
        return source if source.startswith("embedding:") else _check_readable(source, "reranking")

    @property
    def embedding(self) -> str | None:
        """Name of the embedding model, when it does the work."""
        return self.source.removeprefix("embedding:") if self.source.startswith("embedding:") else None

    @property
    def from_hub(self) -> bool:
        return self.embedding is None and super().from_hub

    @property
    def deployment(self) -> str:
        """Name of the reranker's Serve deployment."""
        return f"Rerank:{slug(self.name)}"


class Stage(Strict):
    """A deployment of a pipeline that runs no model of its own."""

    scaling: BatchScaling = Field(default=BatchScaling(), description="Replicas, and what each takes on.")
    placement: Placement = Field(default=Placement(num_cpus=0.05), description="What Ray reserves for a replica.")


class Summary(Stage):
    """The stage that summarises, by asking a language model."""

    model: str | None = Field(default=None, description="Name of the language model; the first when left out.")
    min_words: int = Field(default=40, ge=1, description="A text of fewer words is not summarised.")
    max_tokens: int = Field(default=96, ge=1, description="Longest summary, in tokens.")


class Pipeline(Stage):
    """/analyze: preprocess, then sentiment and summary at the same time."""

    preprocess: Stage = Field(default=Stage(), description="Unicode normalisation, language, number of tokens.")
    sentiment: str = Field(default="sentiment", description="Name of the classifier that tells the sentiment.")
    summary: Summary | None = Field(default=Summary(), description="The summary; null leaves it out.")
    max_characters: int = Field(default=20_000, ge=1, description="Longest text, in characters.")


class Auth(Strict):
    """Who may ask, and how much. Keys are bearer keys, of which only SHA-256 is stored (`make key`)."""

    keys_file: str | None = Field(
        default=None,
        description="Path of the YAML file with the keys, read again when it changes. Left out, nobody is asked for a "
        "key, which is for loopback only.",
    )
    redis_url: str | None = Field(
        default=None,
        json_schema_extra={"pattern": "^rediss?://.+"},
        description="Redis in which the gateway's replicas share their counts, say rediss://host:6379/0; its password "
        "is the environment variable REDIS_PASSWORD. Left out, each replica counts for itself.",
    )

    @model_validator(mode="after")
    def _redis_is_known(self) -> Self:
        if self.redis_url is not None and "@" in self.redis_url:
            raise ValueError(
                "redis_url: holds a password in the clear; fix: leave it out, it is the environment variable "
                "REDIS_PASSWORD, and in a stack file redis_password"
            )
        if self.redis_url is not None and not re.match(r"rediss?://.", self.redis_url):
            raise ValueError(
                f"redis_url = {self.redis_url!r}: is no address of Redis; "
                "fix: write redis://host:6379/0, or rediss: instead of redis: for TLS"
            )
        return self


class Gateway(Strict):
    """The way in: all routes, and the checks of every request."""

    max_body_mib: float = Field(
        default=8, gt=0, description="Largest body of a request, in MiB; a larger one is a 413."
    )
    fast: bool = Field(
        default=False,
        description="The gateway is in the replicas of the model, of which there is one, in one variant and unguarded, "
        "and nothing else: fewer steps for each token.",
    )
    scaling: GatewayScaling = Field(default=GatewayScaling(), description="Replicas, and what each takes on.")
    # Hardly any core, since on two cores the engines have them all; more than none, or Ray puts it on the head.
    placement: Placement = Field(
        default=Placement(num_cpus=0.01), description="What Ray reserves for a replica; next to no core by default."
    )


class Logging(Strict):
    """The logs of Serve's replicas and proxies. They hold neither prompts nor answers. Changes live in a cluster."""

    encoding: Literal["json", "text"] | None = Field(
        default=None, description="json or text; left out, JSON in a cluster and text where `serve run` serves all."
    )
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="Least level of a line.")

    def options(self, encoding: Literal["json", "text"]) -> dict[str, str]:
        """Ray's LoggingConfig; `encoding` where the settings leave it out."""
        return {"encoding": (self.encoding or encoding).upper(), "log_level": self.level}


class Tracing(Strict):
    """OpenTelemetry traces of every request, from the proxy through the deployments into the engine."""

    endpoint: str = Field(
        json_schema_extra={"pattern": "^https?://[^@]+$"},
        description="The collector, which takes OTLP over HTTP, say http://collector.monitoring:4318; without a path "
        "it is /v1/traces.",
    )

    @model_validator(mode="after")
    def _endpoint_is_known(self) -> Self:
        if "@" in self.endpoint:
            raise ValueError(
                "endpoint: holds a password in the clear; fix: name a collector that asks for none, and let it send on"
            )
        try:
            parts = urlsplit(self.endpoint)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            known = False
        if not known:
            raise ValueError(
                f"endpoint = {self.endpoint!r}: is no address of a collector; fix: write http://<host>:4318, the port "
                "of OTLP over HTTP"
            )
        return self

    @property
    def url(self) -> str:
        """Where the spans go."""
        return self.endpoint if urlsplit(self.endpoint).path.strip("/") else f"{self.endpoint.rstrip('/')}/v1/traces"

    @property
    def port(self) -> int:
        """The collector's port."""
        parts = urlsplit(self.endpoint)
        return parts.port or (443 if parts.scheme == "https" else 80)


class Settings(Strict):
    """Everything the application does."""

    models: list[Model] = Field(default=[Model()], description="The language models.")
    embeddings: list[EmbeddingModel] = Field(default=[EmbeddingModel()], description="The embedding models.")
    gateway: Gateway = Field(default=Gateway(), description="The way in.")
    generate: Generator | None = Field(
        default=Generator(), description="The model behind /generate; null leaves it out."
    )
    classifiers: list[Classifier] = Field(
        default=[
            Classifier(name="sentiment", source="builtin:vader-sentiment"),
            Classifier(name="safety", source="builtin:profanity", unsafe=["offensive"]),
        ],
        description="The text classifiers.",
    )
    moderation: Moderation | None = Field(
        default=Moderation(), description="What answers /v1/moderations; null leaves it out."
    )
    rerankers: list[Reranker] = Field(default=[Reranker()], description="The models behind /v1/rerank.")
    pipeline: Pipeline | None = Field(default=Pipeline(), description="What answers /analyze; null leaves it out.")
    auth: Auth = Field(default=Auth(), description="Keys and limits.")
    logging: Logging = Field(default=Logging(), description="How much is logged, and in which form.")
    tracing: Tracing | None = Field(default=None, description="Where traces go; none are made when left out.")

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        if not any((self.models, self.embeddings, self.classifiers, self.rerankers, self.generate)):
            raise ValueError("models = []: nothing is served; fix: add a model, an embedding model or a classifier")
        named = {
            f"{kind}.{index}": thing.name
            for kind in ("models", "embeddings", "classifiers", "rerankers")
            for index, thing in enumerate(getattr(self, kind))
        }
        for key, name in named.items():
            if name in ("generate", "analyze"):
                raise ValueError(f"{key}.name = {name!r}: is the name of a route; fix: choose another")
        for index, (key, name) in enumerate(named.items()):
            first = list(named.values()).index(name)
            if first < index:
                raise ValueError(f"{key}.name = {name!r}: {list(named)[first]} has this name; fix: give each its own")
        for key, name, kind in self._references():
            known = [thing.name for thing in getattr(self, kind)]
            if name not in known:
                fix = f"use {nearest(name, known)}" if known else f"add one to {kind}"
                # Left out, it would be the default, which is there.
                without = "rerankers to []" if kind == "embeddings" else f"{key.rpartition('.')[0]} to null"
                raise ValueError(f"{key} = {name!r}: there is no such thing in {kind}; fix: {fix}, or set {without}")
        for key, name in self._safety():
            if not next(classifier for classifier in self.classifiers if classifier.name == name).unsafe:
                raise ValueError(
                    f"{key} = {name!r}: that classifier has no unsafe labels, so all would be safe; "
                    "fix: list them in its `unsafe`"
                )
        return self

    @model_validator(mode="after")
    def _fast_is_alone(self) -> Self:
        reason = next(self._against_fast(), None) if self.gateway.fast else None
        if reason:
            raise ValueError(f"{reason}, or leave gateway.fast out")
        return self

    def _against_fast(self) -> Iterator[str]:
        """What `gateway.fast` cannot, each with a fix."""
        if len(self.models) != 1:
            yield f"gateway.fast = True: is for one model, and there are {len(self.models)}; fix: keep one"
            return
        (model,) = self.models
        if len(model.variants) > 1:
            yield (
                f"models.0.variants: are {len(model.variants)}, and with gateway.fast the gateway is in the replicas "
                "of one; fix: keep one"
            )
        if model.guard:
            yield (
                "models.0.guard: with gateway.fast there is no classifier beside the model; "
                "fix: set models.0.guard to null"
            )
        lists, parts = ("embeddings", "classifiers", "rerankers"), ("generate", "moderation", "pipeline")
        more = [
            f"{key} to {nothing}"
            for keys, nothing in ((lists, "[]"), (parts, "null"))
            for key in keys
            if getattr(self, key)
        ]
        if more:
            yield f"gateway.fast = True: serves one model and nothing else; fix: set {', '.join(more)}"
        autoscaling = model.variants[0].scaling.autoscaling_config
        if autoscaling and not autoscaling.min_replicas:
            yield (
                "models.0.variants.0.scaling.autoscaling_config.min_replicas = 0: with gateway.fast there is no "
                "gateway without a replica, so nobody would be asked for a key; fix: set it to 1 or more"
            )
        for key in ("scaling", "placement"):
            if getattr(self.gateway, key) != Gateway.model_fields[key].default:
                yield (
                    f"gateway.{key}: with gateway.fast the gateway's replicas are the model's; "
                    f"fix: say it in models.0.variants.0.{key}"
                )

    def _references(self) -> Iterator[tuple[str, str, str]]:
        """Key, name, and the list where a thing of that name must be."""
        for key, name in self._safety():
            yield key, name, "classifiers"
        for index, reranker in enumerate(self.rerankers):
            if reranker.embedding is not None:
                yield f"rerankers.{index}.source", reranker.embedding, "embeddings"
        if self.pipeline:
            yield "pipeline.sentiment", self.pipeline.sentiment, "classifiers"
            if self.summariser is not None:
                yield "pipeline.summary.model", self.summariser, "models"

    def _safety(self) -> Iterator[tuple[str, str]]:
        """Key and name of what must be a safety classifier."""
        for index, model in enumerate(self.models):
            if model.guard:
                yield f"models.{index}.guard.classifier", model.guard.classifier
        if self.moderation:
            yield "moderation.classifier", self.moderation.classifier

    @property
    def first_model(self) -> str:
        """Name of the language model that is asked when none is named; empty without any."""
        return self.models[0].name if self.models else ""

    @property
    def summariser(self) -> str | None:
        """Name of the language model that /analyze asks for summaries; None where it makes none."""
        summary = self.pipeline.summary if self.pipeline else None
        return (summary.model or self.first_model) if summary else None


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
    accelerator: str | None = None
    """The GPU that it must be, by Ray's name."""


def weights(settings: Settings) -> Iterator[tuple[str, LanguageModel | EmbeddingModel | Classifier | Reranker]]:
    """Every deployment that loads a model, and where its settings are."""
    for i, model in enumerate(settings.models):
        for j, variant in enumerate(model.variants):
            yield f"models.{i}.variants.{j}", variant
    if settings.generate:
        yield "generate", settings.generate
    for kind in ("embeddings", "classifiers", "rerankers"):
        for index, model in enumerate(getattr(settings, kind)):
            yield f"{kind}.{index}", model


def stages(settings: Settings) -> dict[str, Stage | Gateway]:
    """Every deployment that loads none, by where its settings are."""
    found: dict[str, Stage | Gateway] = {} if settings.gateway.fast else {"gateway": settings.gateway}
    if settings.pipeline:
        found |= {"pipeline": settings.pipeline, "pipeline.preprocess": settings.pipeline.preprocess}
        if settings.pipeline.summary:
            found["pipeline.summary"] = settings.pipeline.summary
    return found


def longest_shutdown_s(settings: Settings) -> float:
    """How long the most patient deployment lets a stopping replica finish its requests."""
    deployments = [*(model for _, model in weights(settings)), *stages(settings).values()]
    return max(deployment.scaling.graceful_shutdown_timeout_s for deployment in deployments)


def demands(settings: Settings) -> Iterator[Demand]:
    """What every deployment takes."""
    for key, model in weights(settings):
        gpus, one_node = model.placement.num_gpus, True
        if isinstance(model, LanguageModel):
            gpus, one_node = gpus * model.engine.workers, model.placement.strategy == "STRICT_PACK"
        accelerator = model.placement.accelerator_type
        yield Demand(key, model.scaling.greatest, model.placement.num_cpus, gpus, one_node, accelerator)
    for key, stage in stages(settings).items():
        yield Demand(key, stage.scaling.greatest, stage.placement.num_cpus, 0, True)


def parse(values: Mapping[str, Any]) -> Settings:
    """Settings from plain data. Raises SettingsError."""
    return validate(Settings, values, "settings")


def load(path: str | Path) -> Settings:
    """Settings from a YAML file; an empty one means the defaults. Raises SettingsError."""
    try:
        values = read_yaml(path)
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot be read ({error.strerror}); "
            "fix: give the path of a YAML file, relative to the current directory"
        ) from None
    except ValueError as error:
        raise SettingsError(f"{path}: is not YAML ({error}); fix: correct the syntax") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: holds {short(values)}; fix: write a mapping, say models: [{{name: chat}}]")
    return validate(Settings, values, str(path))


class LiveModel(Strict):
    """What of a model changes without a restart."""

    weights: dict[str, float]
    shadow: dict[str, float]
    pins: dict[str, str]
    guard: Guard | None


class Live(Strict):
    """The gateway's user_config."""

    models: dict[str, LiveModel]


def live(settings: Settings) -> Live:
    """What the gateway is told by `reconfigure`, while requests go on."""
    return Live(
        models={
            model.name: LiveModel(
                weights={variant.name: variant.weight for variant in model.variants},
                shadow={variant.name: variant.shadow for variant in model.variants if variant.shadow},
                pins=model.pins,
                guard=model.guard,
            )
            for model in settings.models
        }
    )


class Remote(NamedTuple):
    """A deployment of another application. It need not be there yet, and may come and go."""

    application: str
    deployment: str


def remotes(settings: Settings) -> dict[str, Remote]:
    """Where every deployment is in a cluster, by its name: what changes alone is an application of its own."""
    found = {
        model.deployment(variant): f"{slug(model.name)}@{variant.name}"
        for model in settings.models
        for variant in model.variants
    }
    if settings.generate:
        found[GENERATE] = "generate"
    for model in (*settings.embeddings, *settings.classifiers, *settings.rerankers):
        found[model.deployment] = "nlp"
    if settings.pipeline:
        found[ANALYZE] = "nlp"
    return {deployment: Remote(application, deployment) for deployment, application in found.items()}


def serve_config(settings: Settings) -> dict[str, Any]:
    """The `serveConfigV2` of a RayService that serves `settings`, in Ray's ServeDeploySchema.

    Other args mean other replicas of the whole application. So each application is given what it needs and no more, and
    what may change live is in the deployments' user_config.
    """
    given = settings.model_dump(mode="json")
    logging_config = settings.logging.options("json")
    if settings.gateway.fast:
        (model,) = settings.models
        fast = {**NOTHING, "models": [_alone(model, model.variants[0])], **_pick(given, "gateway", "auth")}
        return {"applications": [_application("gateway", "fast", fast, route="/")], "logging_config": logging_config}
    parts = [
        _application(f"{slug(model.name)}@{variant.name}", "variant", {**NOTHING, "models": [_alone(model, variant)]})
        for model in settings.models
        for variant in model.variants
    ]
    if settings.generate:
        alone = settings.generate.model_dump(mode="json", exclude=_UNREAD)
        parts.append(_application("generate", "generate", {**NOTHING, "generate": alone}))
    batched = {kind: given[kind] for kind in ("embeddings", "classifiers", "rerankers")}
    if any(batched.values()):
        batching = [
            {"name": model.deployment, "user_config": values.pop("batching")}
            for kind in batched
            for model, values in zip(getattr(settings, kind), batched[kind], strict=True)
        ]
        nlp = {**NOTHING, **batched, "models": _summariser(settings), "pipeline": given["pipeline"]}
        parts.append(_application("nlp", "nlp", nlp, batching))
    gateway = {
        **{kind: [_pick(model, "name", "source", "revision", "unsafe") for model in given[kind]] for kind in batched},
        "models": _names(settings),
        "generate": given["generate"] and {},
        **_pick(given, "gateway", "moderation", "pipeline", "auth"),
    }
    user_config = live(settings).model_dump(mode="json")
    parts.append(_application("gateway", "gateway", gateway, [{"name": "Gateway", "user_config": user_config}], "/"))
    return {"applications": parts, "logging_config": logging_config}


def environment(settings: Settings) -> dict[str, str]:
    """Environment variables of every process of Ray: its proxies know of settings by nothing else."""
    found = {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "app.proxy:middlewares",
        # Ray's own is 15 for all workers, engines too; who is to come after them says so itself (app/cores.py).
        "RAY_worker_niceness": "0",
        # By gRPC, in the event loop of whoever calls, a call costs Ray's processes a third less than by Ray's own calls
        # (docs/performance.md). From another loop, Ray's default, it would not hear that its client has left.
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        # Not 4 MiB: how large a body may be is the gateway's to say. And gRPC would ask a laptop's http_proxy.
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "-1",
        "no_grpc_proxy": "0.0.0.0/0,::/0",
    }
    if settings.tracing:
        found |= {
            "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "app.tracing:exporter",
            # All of them, for the collector to choose from: Ray's processes would each choose by themselves.
            "RAY_SERVE_TRACING_SAMPLING_RATIO": "1",
            "OTEL_SERVICE_NAME": "blueprint",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": settings.tracing.url,
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        }
    return found


NOTHING: dict[str, Any] = {
    **{"models": [], "embeddings": [], "classifiers": [], "rerankers": []},
    **{"generate": None, "moderation": None, "pipeline": None},
}
"""Settings of an application that serves nothing, to add to: what is left out would be the default."""
_UNREAD = {"size"}
"""What no replica reads: a change of it must not make new ones."""


def _application(
    name: str,
    builder: str,
    args: dict[str, Any],
    deployments: list[dict[str, Any]] | None = None,
    route: str | None = None,
) -> dict[str, Any]:
    """One application of the serveConfigV2, built by the function `builder` of app/main.py."""
    return {
        "name": name,
        "route_prefix": route,
        "import_path": f"app.main:{builder}",
        "args": copy.deepcopy(args),  # what two share would be an anchor in YAML
        "deployments": deployments or [],
    }


def _alone(model: Model, variant: Variant) -> dict[str, Any]:
    """The model with this variant only, and nothing of what the gateway does with it."""
    return {"name": model.name, "variants": [variant.model_dump(mode="json", exclude=_UNREAD | {"weight", "shadow"})]}


def _names(settings: Settings) -> list[dict[str, Any]]:
    """The models as their callers must know them."""
    return [
        {
            "name": model.name,
            "variants": [_pick(variant.model_dump(mode="json"), "name", "adapters") for variant in model.variants],
            "guard": model.guard and {"classifier": model.guard.classifier},
        }
        for model in settings.models
    ]


def _summariser(settings: Settings) -> list[dict[str, Any]]:
    """The model that the pipeline asks, with the variant that it asks."""
    return [
        {"name": model.name, "variants": [{"name": model.variants[0].name}]}
        for model in settings.models
        if model.name == settings.summariser
    ]


def _pick(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def slug(name: str) -> str:
    """A model's name within a deployment's or an application's, which may hold no /."""
    return name.replace("/", "--")

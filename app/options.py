"""Options of a Ray Serve deployment: how many replicas, how they are watched and stopped, what each reserves.

Part of the settings model (app/settings.py). Ray's own names, all of them; what Ray would ignore is an error here.
"""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from app.validation import Strict


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
        description="Requests that wait at each caller; more are answered 429 at once, also when so many come in one "
        "moment. -1 means without limit.",
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


class BatchScaling(Scaling):
    """That of a deployment that works in batches, or that only calls others."""

    max_ongoing_requests: int = Field(
        default=256, ge=1, description="Requests a replica works on at once; more wait in the caller's queue."
    )


class GatewayScaling(Scaling):
    """That of the gateway: the models limit themselves, and when they are full, /health must still get through."""

    max_ongoing_requests: int = Field(
        default=10_000, ge=1, description="Requests a replica works on at once; more wait in Ray's HTTP proxy."
    )
    max_queued_requests: int = Field(
        default=-1, ge=-1, description="Requests that wait in Ray's HTTP proxy; more are a 503. -1 means without limit."
    )


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

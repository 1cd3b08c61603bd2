"""Ray Serve's own autoscaling code, on a simulation's clock.

What Ray's controller keeps for a deployment (DeploymentAutoscalingState) aggregates the reports of callers' handles,
asks the policy, waits out the delays and keeps the bounds: nothing of that is written again here. How a handle samples
and sends is, after ray/serve/_private/router.py, where it hangs on an event loop and an actor.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

from ray.serve import autoscaling_policy
from ray.serve._private import autoscaling_state
from ray.serve._private.autoscaling_state import DeploymentAutoscalingState
from ray.serve._private.common import (
    RUNNING_REQUESTS_KEY,
    DeploymentHandleSource,
    DeploymentID,
    HandleMetricReport,
    ReplicaID,
    TimeStampedValue,
)
from ray.serve._private.config import DeploymentConfig, ReplicaConfig
from ray.serve._private.constants import (
    RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR,
    SERVE_AUTOSCALING_DECISION_TIMESTAMP_KEY,
)
from ray.serve._private.deployment_info import DeploymentInfo
from ray.serve._private.metrics_utils import QUEUED_REQUESTS_KEY, InMemoryMetricsStore
from ray.serve.config import AutoscalingConfig

from app.options import Autoscaling

_DEPLOYMENT = DeploymentID(name="planned", app_name="plan")
_EPOCH = 1e9
"""The simulation's second 0 on the clock that Ray reads."""


class _Clock:
    """In the place of Ray's `time` module."""

    now = _EPOCH

    def time(self) -> float:
        return self.now

    monotonic = time


class Autoscaler:
    """Decides on the replicas of one deployment. Times are seconds since the simulation's start, and never go back."""

    def __init__(self, config: Autoscaling) -> None:
        self.config = config
        self.sample_s = min(
            config.look_back_period_s * RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR, config.metrics_interval_s
        )
        """Seconds between two looks of a handle at its requests."""
        self._clock = _Clock()
        self._store = InMemoryMetricsStore()
        self.state = DeploymentAutoscalingState(_DEPLOYMENT)
        # A third of the time, for metrics that nobody reads here.
        self.state.record_autoscaling_metrics = lambda *_args: None  # type: ignore[method-assign]
        info = DeploymentInfo(
            deployment_config=DeploymentConfig(
                autoscaling_config=AutoscalingConfig(**config.model_dump(exclude_none=True))
            ),
            replica_config=ReplicaConfig.create(object),
            start_time_ms=0,
            deployer_job_id="",
        )
        self.initial = self.state.register(info, config.min_replicas)
        """Replicas at the start."""

    @contextlib.contextmanager
    def clock(self) -> Iterator[None]:
        """While this lasts, Ray's autoscaling code has the simulation's time."""
        with (
            mock.patch.object(autoscaling_state, "time", self._clock),
            mock.patch.object(autoscaling_policy, "time", self._clock),
        ):
            yield

    def sample(self, now: float, queued: int, running: Mapping[str, int]) -> None:
        """A handle looks at what waits, and at what is under way at each replica."""
        at = self._at(now)
        points: dict[Any, float] = {QUEUED_REQUESTS_KEY: queued, **running}
        self._store.add_metrics_point(points, at)
        self._store.prune_keys_and_compact_data(at - self.config.look_back_period_s)

    def push(self, now: float, queued: int) -> None:
        """The handle sends the controller its report.

        As an object, and not as bytes, which Ray aggregates alike (tests/app/test_plan.py) and three times as slowly.
        """
        self.state.record_request_metrics_for_handle(self.report(now, queued))

    def report(self, now: float, queued: int) -> HandleMetricReport:
        """What the handle has seen in the look-back period, or else what waits now."""
        at = self._at(now)
        self._store.prune_keys_and_compact_data(at - self.config.look_back_period_s)
        series = {_full_id(key): list(points) for key, points in self._store.data.items() if key != QUEUED_REQUESTS_KEY}
        return HandleMetricReport(
            deployment_id=_DEPLOYMENT,
            handle_id="handle",
            actor_id="",
            handle_source=DeploymentHandleSource.UNKNOWN,
            queued_requests=list(self._store.data.get(QUEUED_REQUESTS_KEY, [TimeStampedValue(at, queued)])),
            metrics={RUNNING_REQUESTS_KEY: series},
            timestamp=at,
        )

    def decide(self, now: float, target: int, running: list[str]) -> int:
        """How many replicas there should be, of which these run, when `target` were wanted before."""
        self._at(now)
        self.state.update_running_replica_ids([ReplicaID(name, _DEPLOYMENT) for name in running])
        return self.state.get_decision_num_replicas(target)

    def delay_ends(self) -> float:
        """When a change that has been wanted since a while may be made at the earliest; infinite while none is."""
        policy_state = self.state._policy_state or {}
        since = policy_state.get(SERVE_AUTOSCALING_DECISION_TIMESTAMP_KEY)
        if since is None:
            return float("inf")
        ends = [since - _EPOCH + delay for delay in (self.config.upscale_delay_s, self.config.downscale_delay_s)]
        later = [end for end in ends if end > self._clock.now - _EPOCH]
        return min(later, default=float("inf"))

    def _at(self, now: float) -> float:
        self._clock.now = _EPOCH + now
        return self._clock.now


def _full_id(replica: Any) -> str:
    return ReplicaID(str(replica), _DEPLOYMENT).to_full_id_str()

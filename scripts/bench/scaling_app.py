"""A deployment that scales as a model does, and only waits, so that two cores are enough for any number of replicas."""

import asyncio
import time
from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from ray import serve
from ray.serve._private.common import ReplicaState
from ray.serve.exceptions import BackPressureError

from app.deployments import router
from app.options import Autoscaling, Scaling

AUTOSCALING = Autoscaling(
    max_replicas=5,
    target_ongoing_requests=4,
    upscale_delay_s=5,
    downscale_delay_s=15,
    metrics_interval_s=1,
    look_back_period_s=5,
)
SCALING = Scaling(
    autoscaling_config=AUTOSCALING,
    max_ongoing_requests=8,
    max_queued_requests=30,
    graceful_shutdown_timeout_s=60,
)
ALONE_SECONDS, FULL_SECONDS = 1.0, 2.0
"""That a mean request takes on a replica that has no other, and on one that is full."""
START_SECONDS = 8.0
"""That a replica takes to load nothing."""

_api = FastAPI()


class Request(BaseModel):
    """Body of the only question."""

    work: float
    """How much it is of a mean one."""


OPTIONS: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}, **SCALING.options(), **router.OPTIONS}


@serve.deployment(**OPTIONS)
class Waiting:
    """Takes as long as `Deployment` in scripts/plan/simulation.py says."""

    def __init__(self) -> None:
        time.sleep(START_SECONDS)
        self._ongoing = 0

    async def work(self, work: float) -> float:
        """When it began, in seconds since 1970."""
        began, crowd = time.time(), self._ongoing / (SCALING.max_ongoing_requests - 1)
        self._ongoing += 1
        try:
            await asyncio.sleep(work * (ALONE_SECONDS + (FULL_SECONDS - ALONE_SECONDS) * crowd))
        finally:
            self._ongoing -= 1
        return began


@serve.deployment(max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0})
@serve.ingress(_api)
class Ingress:
    """The way in."""

    def __init__(self, waiting: Any) -> None:
        self._waiting = waiting

    @_api.get("/ready")
    async def ready(self) -> bool:
        return await self.work(Request(work=0)) > 0

    @_api.get("/replicas")
    def replicas(self) -> tuple[int, int]:
        """How many are wanted, and how many run."""
        states = serve.status().applications["default"].deployments["Waiting"].replica_states
        running = states.get(ReplicaState.RUNNING, 0)
        return states.get(ReplicaState.STARTING, 0) + running, running

    @_api.post("/work")
    async def work(self, request: Request) -> float:
        try:
            return await self._waiting.work.remote(request.work)
        except BackPressureError as error:
            raise HTTPException(429, str(error)) from None


app = Ingress.bind(Waiting.bind())
"""For `serve run`."""

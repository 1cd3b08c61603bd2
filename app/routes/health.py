"""/health and /ready, for load balancers, Kubernetes and people who wait."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path

from app.routes import Current, chosen

router = APIRouter()


@router.get("/health")
async def health() -> dict[str, bool]:
    """Whether the gateway is alive."""
    return {"healthy": True}


@router.get("/ready")
async def ready(gateway: Current) -> dict[str, bool]:
    """Whether every model answers; until then 503."""
    await asyncio.gather(*map(gateway.require_ready, gateway.probes))
    return {"ready": True}


@router.get("/ready/{model:path}")
async def model_ready(model: Annotated[str, Path(examples=["embed"])], gateway: Current) -> dict[str, bool]:
    """Whether one model answers; until then 503."""
    await gateway.require_ready(chosen(model, gateway.probes))
    return {"ready": True}

"""The deployments that answer HTTP, by the names of their classes, which import vLLM: see engines.py."""

from collections.abc import Mapping

from ray.serve import Application

from app.deployments import engines
from app.settings import Remote, Settings, live


def gateway(settings: Settings, handles: Mapping[str, Application | Remote]) -> Application:
    """The Serve deployment in front of all others, which it calls by their names in `handles`."""
    deployment = engines.by_name(
        "app.deployments.gateway.Ingress",
        name="Gateway",
        user_config=live(settings).model_dump(),
        ray_actor_options=settings.gateway.placement.options(),
        **settings.gateway.scaling.options(),
    )
    return deployment.bind(settings, handles)


def fast(settings: Settings) -> Application:
    """The Serve deployment of everything. Raises BuiltinModelError when the model cannot be made."""
    (model,) = settings.models
    (variant,) = model.variants
    limits = settings.gateway.scaling
    options = {
        **engines.options(variant),
        "name": model.deployment(variant),
        # `fast.Here` limits what the engine gets, and leaves room for /health.
        "max_ongoing_requests": limits.max_ongoing_requests,
        "max_queued_requests": limits.max_queued_requests,
    }
    deployment = engines.by_name("app.deployments.fast.Ingress", **options)
    return deployment.bind(settings, engines.source(variant))

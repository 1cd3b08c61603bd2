"""What a RayService is given, against the schema of the Ray that reads it."""

from typing import Any

import pytest
from ray._common.utils import import_attr
from ray.serve._private.build_app import build_app
from ray.serve._private.config import DeploymentConfig
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import DeploymentSchema, RayActorOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from app.main import graph
from app.settings import (
    APPLICATION,
    Autoscaling,
    EmbeddingModel,
    GpuPlacement,
    Model,
    Scaling,
    Settings,
    Variant,
    parse,
    serve_config,
)

SETTINGS = Settings(
    models=[Model(variants=[Variant(), Variant(name="canary")]), Model(name="org/second")],
    embeddings=[EmbeddingModel(), EmbeddingModel(name="org/e5", source="/models/e5")],
)


def _application() -> dict[str, Any]:
    (application,) = serve_config(SETTINGS)["applications"]
    return application


def test_ray_accepts_it() -> None:
    (application,) = ServeDeploySchema.model_validate(serve_config(SETTINGS)).applications
    assert application.name == APPLICATION
    assert application.route_prefix == "/"
    assert [model.name for model in parse(application.args).models] == ["chat", "org/second"]
    assert [deployment.user_config for deployment in application.deployments] == [
        embedding.batching.model_dump() for embedding in SETTINGS.embeddings
    ]


def test_ray_knows_every_key() -> None:
    """Ray's schema drops what it does not know, so that a typo would pass the test above."""
    assert serve_config(SETTINGS).keys() <= ServeDeploySchema.model_fields.keys()
    application = _application()
    assert application.keys() <= ServeApplicationSchema.model_fields.keys()
    for deployment in application["deployments"]:
        assert deployment.keys() <= DeploymentSchema.model_fields.keys()


def test_its_deployments_are_there_by_these_names() -> None:
    """Ray refuses the whole application for a name that it does not find."""
    built = build_app(graph(SETTINGS.model_copy(update={"models": []})), name=APPLICATION)
    named = {deployment["name"] for deployment in _application()["deployments"]}
    assert named == {"Embeddings:embed", "Embeddings:org--e5"}
    assert named <= {deployment.name for deployment in built.deployments}


def test_its_import_path_is_a_builder() -> None:
    assert callable(import_attr(_application()["import_path"]))


FIXED = Scaling(num_replicas=3, max_ongoing_requests=48, max_queued_requests=96, retry_after_s=9)
AUTOSCALED = Scaling(autoscaling_config=Autoscaling(max_replicas=7, initial_replicas=3))


@pytest.mark.parametrize("scaling", [FIXED, AUTOSCALED], ids=["fixed", "autoscaled"])
def test_ray_knows_every_option_of_a_deployment(scaling: Scaling) -> None:
    options = scaling.options()
    taken = DeploymentConfig(**options).model_dump()
    assert options.keys() <= taken.keys()
    autoscaling = options.pop("autoscaling_config", {})
    assert options.items() <= taken.items()
    assert autoscaling.items() <= (taken["autoscaling_config"] or {}).items()


def test_ray_knows_every_option_of_autoscaling() -> None:
    """It drops a key that it does not know without a word, and one that it has given up with a warning at most."""
    known = {
        name
        for name, field in AutoscalingConfig.model_fields.items()
        if "[DEPRECATED]" not in (field.description or "")
    }
    # Ray wants this one by an environment variable some day, and has nothing else for it yet.
    assert Autoscaling().model_dump(exclude={"metrics_interval_s"}).keys() <= known
    assert "metrics_interval_s" in AutoscalingConfig.model_fields


def test_ray_knows_every_option_of_a_replica() -> None:
    placement = GpuPlacement(num_cpus=1.5, num_gpus=0.25, memory_gib=2, accelerator_type="L4")
    options = placement.options()
    assert options.items() <= RayActorOptionsSchema.model_validate(options).model_dump().items()

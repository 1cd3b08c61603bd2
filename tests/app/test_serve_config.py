"""What a RayService is given, against the schema of the Ray that reads it."""

from typing import Any

from ray._common.utils import import_attr
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from app.settings import APPLICATION, Model, Settings, parse, serve_config


def _config() -> dict[str, Any]:
    return serve_config(Settings(models=[Model(), Model(name="second")]))


def test_ray_accepts_it() -> None:
    config = _config()
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.name == APPLICATION
    assert application.route_prefix == "/"
    assert [model.name for model in parse(application.args).models] == ["chat", "second"]


def test_ray_knows_every_key() -> None:
    """Ray's schema drops what it does not know, so that a typo would pass the test above."""
    config = _config()
    assert config.keys() <= ServeDeploySchema.model_fields.keys()
    for application in config["applications"]:
        assert application.keys() <= ServeApplicationSchema.model_fields.keys()


def test_its_import_path_is_a_builder() -> None:
    (application,) = _config()["applications"]
    assert callable(import_attr(application["import_path"]))

"""What a RayService is given, against the schema of the Ray that reads it."""

import subprocess
import sys

import pytest
from ray._common.utils import import_attr
from ray.serve._private.build_app import BuiltApplication, build_app
from ray.serve._private.config import DeploymentConfig
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import DeploymentSchema, RayActorOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from app import main
from app.options import Autoscaling, GpuPlacement, Scaling
from app.settings import (
    NOTHING,
    Classifier,
    EmbeddingModel,
    Gateway,
    Guard,
    Model,
    Reranker,
    Settings,
    Variant,
    parse,
    remotes,
    serve_config,
)

SAFETY = Classifier(name="safety", source="builtin:profanity", unsafe=["offensive"])
SETTINGS = Settings(
    models=[
        Model(
            variants=[Variant(), Variant(name="canary", weight=0, shadow=0.5)], pins={"anna": "canary"}, guard=Guard()
        ),
        Model(name="org/second"),
    ],
    embeddings=[EmbeddingModel(), EmbeddingModel(name="org/e5", source="/models/e5")],
    classifiers=[Classifier(name="sentiment", source="builtin:vader-sentiment"), SAFETY],
    rerankers=[Reranker(), Reranker(name="org/bge", source="/models/bge")],
)
APPLICATIONS = {application["name"]: application for application in serve_config(SETTINGS)["applications"]}


def built(name: str) -> BuiltApplication:
    """What Ray makes of an application's import path and args."""
    application = APPLICATIONS[name]
    return build_app(import_attr(application["import_path"])(application["args"]), name=name)


def names(application: BuiltApplication) -> set[str]:
    found = [deployment.name for deployment in application.deployments]
    assert len(set(found)) == len(found)
    return set(found)


def test_applications_are_built_without_models_libraries() -> None:
    """On the head of a cluster, each in a process of its own, and replicas begin when theirs is built."""
    script = """
import sys
from ray._common.utils import import_attr
from app.settings import NOTHING, Settings, parse, serve_config
fast = parse({**NOTHING, "models": [{}], "gateway": {"fast": True}})
for settings in (Settings(), fast):
    for application in serve_config(settings)["applications"]:
        import_attr(application["import_path"])(application["args"])
print({"torch", "transformers", "vllm"} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "set()"


def test_ray_accepts_it() -> None:
    applications = ServeDeploySchema.model_validate(serve_config(SETTINGS)).applications
    assert [application.name for application in applications] == [
        *("chat@stable", "chat@canary", "org--second@stable", "generate", "nlp", "gateway")
    ]
    assert [application.route_prefix for application in applications] == [None, None, None, None, None, "/"]
    for application in applications:
        assert application.args == APPLICATIONS[application.name]["args"]
        assert parse(application.args)
        given = [(deployment.name, deployment.user_config) for deployment in application.deployments]
        assert given == [(one["name"], one["user_config"]) for one in APPLICATIONS[application.name]["deployments"]]


def test_ray_knows_every_key() -> None:
    """Ray's schema drops what it does not know, so that a typo would pass the test above."""
    assert serve_config(SETTINGS).keys() <= ServeDeploySchema.model_fields.keys()
    for application in APPLICATIONS.values():
        assert application.keys() <= ServeApplicationSchema.model_fields.keys()
        for deployment in application["deployments"]:
            assert deployment.keys() <= DeploymentSchema.model_fields.keys()


@pytest.mark.parametrize("name", APPLICATIONS)
def test_its_import_path_is_a_builder_of_the_application(name: str) -> None:
    builder = import_attr(APPLICATIONS[name]["import_path"])
    assert builder in (main.variant, main.generate, main.nlp, main.gateway)
    application = built(name)
    found = names(application)
    # Ray refuses the whole application for a name in `deployments` that it does not find.
    assert {deployment["name"] for deployment in APPLICATIONS[name]["deployments"]} <= found
    # Where the other applications look for them.
    wanted = {remote.deployment for remote in remotes(SETTINGS).values() if remote.application == name}
    assert wanted <= found
    assert wanted or found == {"Gateway"}


def test_the_nlp_application_has_each_of_its_models_once() -> None:
    stages = {"Analyze", "Preprocess", "Summary"}
    models = {model.deployment for model in (*SETTINGS.embeddings, *SETTINGS.classifiers, *SETTINGS.rerankers)}
    assert names(built("nlp")) == {"Nlp"} | stages | models


def test_all_of_it_is_one_application_here() -> None:
    here = build_app(main.app(SETTINGS.model_dump(mode="json")), name="default")
    assert here.ingress_deployment_name == "Gateway"
    everything = set[str]().union(*(names(built(name)) for name in APPLICATIONS))
    assert names(here) == everything - {"Nlp"}


def test_the_fast_path_is_one_deployment_here_and_in_a_cluster() -> None:
    fast = Settings(**{**NOTHING, "models": [Model()], "gateway": Gateway(fast=True)})
    (application,) = ServeDeploySchema.model_validate(serve_config(fast)).applications
    assert (application.name, application.route_prefix) == ("gateway", "/")
    for build, args in ((main.app, fast.model_dump(mode="json")), (main.fast, application.args)):
        (deployment,) = build_app(build(args), name="gateway").deployments
        assert deployment.name == "LLM:chat@stable"
        # Who waits, waits in it, so that /health need not.
        assert deployment._deployment_config.max_ongoing_requests == fast.gateway.scaling.max_ongoing_requests


def test_what_the_gateway_is_told_is_what_it_starts_with() -> None:
    (told,) = APPLICATIONS["gateway"]["deployments"]
    here = build_app(main.app(SETTINGS.model_dump(mode="json")), name="default")
    (gateway,) = (deployment for deployment in here.deployments if deployment.name == "Gateway")
    assert gateway._deployment_config.user_config == told["user_config"]


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

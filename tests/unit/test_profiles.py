"""The profiles in app/profiles: valid settings, which fit the workers that they are meant for."""

from pathlib import Path

import pytest

from app.settings import Settings, load, parse, serve_config
from infra.config import ROOT, StackConfig, WorkerGroup

PROFILES = sorted((ROOT / "app" / "profiles").glob("*.yaml"))
WORKERS = {
    "l4": WorkerGroup(name="l4", min_replicas=1, max_replicas=7, cpus=7, gpus=1, memory_gib=28),
    "h100": WorkerGroup(name="h100", min_replicas=1, max_replicas=1, cpus=180, gpus=8, memory_gib=1800),
}


def test_every_profile_has_its_workers() -> None:
    assert {path.stem for path in PROFILES} == WORKERS.keys()


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_fits_its_workers_at_its_largest(path: Path) -> None:
    stack = StackConfig(serving=load(path), workers=[WORKERS[path.stem]])
    assert stack.serving != Settings()


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_does_without_the_cpu_models(path: Path) -> None:
    settings = load(path)
    placed = [variant.placement for model in settings.models for variant in model.variants]
    placed += [model.placement for model in (*settings.embeddings, *settings.classifiers, *settings.rerankers)]
    placed += [settings.generate.placement] if settings.generate else []
    assert all(place.num_gpus and place.accelerator_type for place in placed)
    assert not any(variant.engine.enforce_eager for model in settings.models for variant in model.variants)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_names_the_workers_that_it_is_tested_with(path: Path) -> None:
    group = WORKERS[path.stem]
    flow = ", ".join(f"{key}: {value}" for key, value in group.model_dump(exclude={"pool"}).items())
    assert f"{{{flow}}}" in path.read_text()


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_says_of_everything_whether_it_is_served(path: Path) -> None:
    """What is left out is on, with the models of the local profile."""
    said = load(path).model_fields_set
    assert said >= Settings.model_fields.keys() - {"gateway", "auth", "logging", "tracing"}


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_the_applications_of_a_profile_are_built_from_their_own_args(path: Path) -> None:
    for application in serve_config(load(path))["applications"]:
        assert parse(application["args"])

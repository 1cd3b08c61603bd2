"""Who makes the built-in models, and when. The models themselves: test_builtin.py."""

from pathlib import Path

import pytest

from app import settings
from app.settings import Settings
from scripts import models
from scripts.console import Problem

REAL = settings.parse(
    {
        "models": [{"variants": [{"source": "/weights"}]}],
        **{"embeddings": [], "rerankers": [], "generate": None, "pipeline": None},
    }
)


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Stands in for the application's Python: notes its arguments and fails."""
    monkeypatch.setenv("BLUEPRINT_CACHE", str(tmp_path / "cache"))
    stub = tmp_path / "python"
    stub.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\necho "BuiltinModelError: no disk" >&2\nexit 1\n')
    stub.chmod(0o755)
    monkeypatch.setattr(models, "PYTHON", stub)
    return stub


def test_missing_models_are_made_in_the_applications_environment(python: Path) -> None:
    with pytest.raises(Problem, match="cannot be made: BuiltinModelError: no disk"):
        models.ensure(Settings())
    assert (python.parent / "called").read_text() == "-m app.builtin\n"


@pytest.mark.usefixtures("python")
def test_nothing_is_made_for_real_models() -> None:
    models.ensure(REAL)


@pytest.mark.usefixtures("python")
def test_nothing_is_made_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "intact", lambda _: True)
    models.ensure(Settings())


def test_without_that_environment_the_problem_says_how_to_get_it(python: Path) -> None:
    python.unlink()
    with pytest.raises(Problem, match="is not there") as raised:
        models.ensure(Settings())
    assert raised.value.fix == "make setup"

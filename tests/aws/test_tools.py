"""Terraform and its provider, where a machine has them or has not."""

from pathlib import Path

import pytest

from scripts.console import Problem
from tests.aws import terraform
from tests.aws.translate import PROVIDER


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user's home where nothing is."""
    monkeypatch.delenv(terraform.MIRROR, raising=False)
    monkeypatch.delenv("TF_PLUGIN_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "shares"))
    monkeypatch.setattr(terraform, "OPTIONAL", tmp_path / "opt")
    return tmp_path


def test_without_terraform_the_fix_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Problem, match="terraform is not on PATH\n  fix: install it"):
        terraform.Terraform(tmp_path)


def test_without_the_provider_the_places_and_the_fix_are_told(bare: Path) -> None:
    with pytest.raises(Problem, match=r"is in none of .*\.terraform\.d/plugins.*\n  fix: .*TF_PLUGIN_MIRROR=DIR"):
        terraform.mirror()


@pytest.mark.parametrize("place", [".terraform.d/plugins", "share/terraform/plugins", "opt/tools"])
@pytest.mark.parametrize("form", ["unpacked", "packed"])
def test_the_provider_is_found_in_the_usual_places(bare: Path, place: str, form: str) -> None:
    provider = bare / place / PROVIDER
    provider.mkdir(parents=True)
    if form == "unpacked":
        (provider / terraform.VERSION / terraform.PLATFORM).mkdir(parents=True)
    else:
        (provider / f"terraform-provider-aws_{terraform.VERSION}_{terraform.PLATFORM}.zip").touch()
    assert terraform.mirror() == bare / place


def test_the_place_that_is_named_is_the_only_one(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / ".terraform.d/plugins" / PROVIDER / terraform.VERSION / terraform.PLATFORM).mkdir(parents=True)
    monkeypatch.setenv(terraform.MIRROR, str(bare / "elsewhere"))
    with pytest.raises(Problem, match=f"is in none of {bare}/elsewhere\n"):
        terraform.mirror()

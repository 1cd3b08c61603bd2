"""Another name for the project, in a clone of what is checked out here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra.config import PROJECT, ROOT
from scripts import rename
from scripts.console import Problem

NEW = f"{PROJECT[:9]}-other"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what is not committed yet."""
    directory = tmp_path_factory.mktemp("rename") / "clone"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in listed.splitlines():
        if (ROOT / name).exists():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, directory / name)
    git(directory, "init", "--quiet")
    commit(directory)
    return directory


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=directory, capture_output=True, text=True, check=True
    ).stdout


def commit(directory: Path) -> None:
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--message", "x")


def run(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "BLUEPRINT_STATE": str(clone.parent / "state")}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=clone, env=environment, capture_output=True, text=True
    )


def test_nothing_is_called_by_the_old_name_and_the_tests_pass(clone: Path) -> None:
    done = run(clone, "scripts.rename", NEW)
    assert done.returncode == 0, done.stderr
    assert f"the project is called {NEW}" in done.stdout
    changed = git(clone, "diff", "--name-only").split()
    assert "Pulumi.yaml" in changed
    assert not [name for name in changed if name.endswith(".py")], "they read the name in Pulumi.yaml"
    for name in changed:
        assert not re.search(rf"(?<![\w.-]){PROJECT}:[a-z]", (clone / name).read_text()), name
    assert "description: Large language models" in (clone / "Pulumi.yaml").read_text()
    passed = run(clone, "pytest", "-q", "tests/unit/test_stack_config.py", "tests/unit/test_schemas.py")
    assert passed.returncode == 0, passed.stdout
    again = run(clone, "scripts.rename", NEW)
    assert (again.returncode, again.stdout) == (0, f"the project is called {NEW} already\n")


def test_changes_that_are_not_committed_are_not_mixed_with_its_own(clone: Path) -> None:
    """As it is after the test before."""
    (clone / "Pulumi.mine.yaml").touch()
    refused = run(clone, "scripts.rename", "another")
    assert refused.returncode == 1
    assert "changes that are not committed: Pulumi" in refused.stderr
    assert "fix: commit or stash them" in refused.stderr
    (clone / "Pulumi.mine.yaml").unlink()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "NAME is missing"),
        ("Chat", "NAME = 'Chat': AWS takes no cluster, bucket or repository of that name"),
        ("4chat", "NAME = '4chat': AWS takes no"),
        ("chat_platform", "NAME = 'chat_platform': AWS takes no"),
        ("chat-", "NAME = 'chat-': AWS takes no"),
        ("a-very-long-project", "has 19 letters, and a-very-long-project-staging is no longer a cluster's name"),
        ("aws", "NAME = 'aws': keys of stack files that begin with aws: are those of Pulumi's aws"),
    ],
)
def test_bad_names_are_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(Problem, match=re.escape(reason)) as raised:
        rename.rename(name)
    assert "make rename NAME=chat-platform" in raised.value.fix


def test_a_native_cluster_would_be_left_behind(monkeypatch: pytest.MonkeyPatch, clone: Path) -> None:
    monkeypatch.setattr(rename, "ROOT", ROOT)
    monkeypatch.setattr(rename.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "", ""))
    monkeypatch.setattr(rename.cluster, "running", lambda: True)
    with pytest.raises(Problem, match=f"its state is that of {PROJECT}"):
        rename.rename(NEW)


def test_what_only_looks_like_the_name_stays() -> None:
    text = "A blueprint: it is. ray-serve-blueprint, BLUEPRINT_STATE, blueprint/pool, team/blueprint, blueprint_variant"
    assert rename.renamed_text(text, "blueprint", NEW) == text
    text = "OLD:keys `OLD:serving` ^(?!OLD:) OLD-<stack> s3://OLD-prod-weights localhost/OLD:1"
    assert rename.renamed_text(text, "OLD", "new") == text.replace("OLD", "new")


def test_code_reads_the_name_in_pulumis_file() -> None:
    """`make rename` leaves Python alone: write f"{PROJECT}:serving" there."""
    keys = "cluster|serving|workers|keys|image|upgrade|operator|head|clients|namespace"
    written = [
        f"{path.relative_to(ROOT)}: {found}"
        for directory in ("app", "infra", "scripts", "tests")
        for path in (ROOT / directory).rglob("*.py")
        if path != Path(__file__)
        for found in re.findall(rf"[\"']{PROJECT}:(?:{keys})\b(?!:)", path.read_text())
    ]
    assert written == []

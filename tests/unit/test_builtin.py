"""A built-in model is whole or absent, whatever happens while it is made.

A tiny stand-in replaces the conversion here; tests/app converts the real model.
"""

import multiprocessing
import multiprocessing.context
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from app import builtin
from app.builtin import BuiltinModelError, Package, cache_dir, ensure, intact

MODEL = "tiny"
FILES = {"config.json": b"{}", "model.safetensors": bytes(1000), "1_Pooling/config.json": b"{}"}
REAL_CONVERT = builtin.convert
fork = multiprocessing.get_context("fork")  # children inherit the stand-in


def _convert(_: str, directory: Path) -> None:
    for name, content in FILES.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)


@pytest.fixture(autouse=True)
def tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLUEPRINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(builtin, "PACKAGES", {MODEL: Package("pytest", "pytest", "language", "1.0")})
    monkeypatch.setattr(builtin, "convert", _convert)


def _run(target: Callable[[], object]) -> multiprocessing.context.ForkProcess:
    process = fork.Process(target=target)
    process.start()
    return process


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("BLUEPRINT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "ray-serve-blueprint"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "ray-serve-blueprint"


def test_makes_the_model_for_every_user() -> None:
    """Pods read it as a user of their own, and see its directory only from models/ on."""
    before = os.umask(0o077)
    try:
        path = ensure(MODEL)
    finally:
        os.umask(before)
    assert path == cache_dir() / "models" / "tiny-1.0"
    found = [path.parent, path, *path.rglob("*")]
    assert {str(file.relative_to(path)) for file in found[2:] if file.is_file()} == {*FILES, builtin.MANIFEST}
    assert [oct(file.stat().st_mode & 0o777) for file in found if file.is_dir()] == ["0o755"] * 3
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in found if file.is_file())


class State(NamedTuple):
    path: Path
    changed: int


def _state(directory: Path) -> list[State]:
    return [State(path, path.stat().st_mtime_ns) for path in sorted(directory.rglob("*"))]


def test_a_complete_model_is_only_read(monkeypatch: pytest.MonkeyPatch) -> None:
    path = ensure(MODEL)
    (path.parent / f"{path.name}.lock").unlink()
    before = _state(cache_dir())
    monkeypatch.setattr(builtin, "convert", None)
    assert ensure(MODEL) == path
    assert _state(cache_dir()) == before


def _flip_a_byte_below(path: Path) -> None:
    (path / "1_Pooling" / "config.json").write_bytes(b"[]")


def _flip_a_byte(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(b"\x01" + file.read_bytes()[1:])


def _lose_a_file(path: Path) -> None:
    (path / "config.json").unlink()


def _add_a_file(path: Path) -> None:
    (path / "adapter.json").write_text("{}")


def _lose_the_manifest(path: Path) -> None:
    (path / builtin.MANIFEST).unlink()


def _spoil_the_manifest(path: Path) -> None:
    (path / builtin.MANIFEST).write_text("{")


@pytest.mark.parametrize(
    "damage",
    [_flip_a_byte, _flip_a_byte_below, _lose_a_file, _add_a_file, _lose_the_manifest, _spoil_the_manifest],
)
def test_a_damaged_model_is_made_again(damage: Callable[[Path], None]) -> None:
    path = ensure(MODEL)
    damage(path)
    assert not intact(path)
    assert ensure(MODEL) == path
    assert intact(path)
    assert {name: (path / name).read_bytes() for name in FILES} == FILES


def test_a_killed_conversion_leaves_nothing_that_looks_like_a_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half_way = fork.Event()

    def hang(_: str, directory: Path) -> None:
        (directory / "config.json").write_bytes(b"{}")
        half_way.set()
        signal.pause()

    with monkeypatch.context() as patched:
        patched.setattr(builtin, "convert", hang)
        child = _run(lambda: ensure(MODEL))
        assert half_way.wait(timeout=60)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join(timeout=60)
    target = builtin.location(MODEL)
    assert not target.exists()
    assert ensure(MODEL) == target
    assert intact(target)
    assert {path.name for path in target.parent.iterdir()} == {target.name, f"{target.name}.lock"}


def test_a_failed_conversion_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str, directory: Path) -> None:
        _convert(_, directory)
        raise KeyboardInterrupt

    monkeypatch.setattr(builtin, "convert", fail)
    with pytest.raises(KeyboardInterrupt):
        ensure(MODEL)
    target = builtin.location(MODEL)
    assert [path.name for path in target.parent.iterdir()] == [f"{target.name}.lock"]


def test_processes_that_need_it_at_once_make_it_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    together = fork.Barrier(3)

    def noted(name: str, directory: Path) -> None:
        with calls.open("a") as file:
            file.write(f"{os.getpid()}\n")
        _convert(name, directory)

    def race() -> None:
        together.wait(timeout=60)
        assert intact(ensure(MODEL))

    monkeypatch.setattr(builtin, "convert", noted)
    children = [_run(race) for _ in range(3)]
    for child in children:
        child.join(timeout=60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert len(calls.read_text().splitlines()) == 1


def test_a_full_disk_is_told_before_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=100 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BuiltinModelError, match=r"needs 1 GiB .* 100 MiB are free; fix: "):
        ensure(MODEL)
    assert not builtin.location(MODEL).exists()


def test_a_place_that_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BLUEPRINT_CACHE", str(tmp_path / "file"))
    with pytest.raises(BuiltinModelError, match="fix: set BLUEPRINT_CACHE to a directory"):
        ensure(MODEL)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "PACKAGES", {MODEL: Package("no-such-package", "no_such_package", "classification")})
    with pytest.raises(BuiltinModelError, match=r"^the Python package no-such-package, which brings it, .*; fix: "):
        ensure(MODEL)


def test_weights_need_no_package_once_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a pod: the package is not installed, and nothing may be written."""
    absent = {MODEL: Package("no-such-package", "no_such_package", "language", "1.0")}
    with monkeypatch.context() as patched:
        patched.setattr(builtin, "PACKAGES", absent)
        with pytest.raises(BuiltinModelError, match=f"{MODEL} is not in {cache_dir()}/models, and .*on the nodes"):
            ensure(MODEL)
    assert not cache_dir().exists()
    path = ensure(MODEL)
    monkeypatch.setattr(builtin, "PACKAGES", absent)
    assert ensure(MODEL) == path


def installed(monkeypatch: pytest.MonkeyPatch, site: Path) -> Path:
    """A package tiny_weights, importable, with a model inside."""
    model = site / "tiny_weights" / "model"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").touch()
    (model / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(site)
    return model


def test_weights_in_the_right_format_are_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = installed(monkeypatch, tmp_path / "site")
    monkeypatch.setattr(builtin, "convert", REAL_CONVERT)
    monkeypatch.setattr(builtin, "PACKAGES", {MODEL: Package("tiny-weights", "tiny_weights", "embedding", "2.0")})
    made = ensure(MODEL)
    assert (made / "config.json").read_text() == (model / "config.json").read_text()
    assert intact(made)


def test_a_model_that_is_code_is_used_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = installed(monkeypatch, tmp_path / "site")
    monkeypatch.setattr(builtin, "PACKAGES", {MODEL: Package("tiny-weights", "tiny_weights", "classification")})
    before = _state(tmp_path)
    assert ensure(MODEL) == model.parent
    assert _state(tmp_path) == before

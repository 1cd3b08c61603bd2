"""How weights get into the bucket: a hub and a bucket that are directories."""

import hashlib
import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.size import Size
from infra.config import PROJECT, from_file
from scripts import weights
from scripts.console import Problem

MODEL, REVISION = "org/model", "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "model-00001-of-00002.safetensors": b"weights",
    "model-00002-of-00002.safetensors": b"more of them",
    "config.json": b"{}",
    "pytorch_model.bin": b"the same weights, and code",
}
Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command; returns the bucket. `sums` are the hub's, of files that are others there."""
    bucket = tmp_path / "bucket"
    monkeypatch.setenv("BLUEPRINT_CACHE", str(tmp_path / "cache"))

    def aws(*arguments: str) -> Any:
        place = bucket / MODEL / REVISION
        match arguments:
            case ("s3api", "list-objects-v2", "--bucket", _, "--prefix", prefix):
                return {"Contents": [{}]} if (bucket / prefix).exists() else None
            case ("s3", "sync", source, target, "--checksum-algorithm", "SHA256", "--only-show-errors", *only):
                assert not (place / weights.SUMS).exists(), "whoever sees it takes everything to be there"
                assert target.endswith(f"/{MODEL}/{REVISION}")
                place.mkdir(parents=True)
                assert only[:2] == ["--exclude", "*"]
                for name in only[3::2]:
                    shutil.copy(Path(source) / name, place)
            case ("s3", "cp", source, target, "--only-show-errors"):
                shutil.copy(source, place / target.rpartition("/")[2])
            case _:
                raise AssertionError(arguments)
        return None

    def download(model: str, revision: str, directory: Path, names: Collection[str]) -> None:
        assert (model, revision) == (MODEL, REVISION)
        directory.mkdir(parents=True, exist_ok=True)
        for name in names:
            (directory / name).write_bytes(FILES[name])

    def command(model: str = MODEL, revision: str = REVISION, **sums: str) -> Path:
        known = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
        hub = {**known, "config.json": None, **sums}
        monkeypatch.setattr(weights, "hub_files", lambda *_: hub)
        weights.weights("dev", from_file("dev"), model, revision)
        return bucket / MODEL / REVISION

    monkeypatch.setattr(weights, "aws", aws)
    monkeypatch.setattr(weights, "cluster_of", lambda _, stack: stack.cluster)
    monkeypatch.setattr(weights, "download", download)
    return command


def test_safetensors_and_what_belongs_to_them_are_in_the_bucket_with_their_checksums(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    place = run()
    wanted = sorted(name for name in FILES if name != "pytorch_model.bin")
    assert sorted(path.name for path in place.iterdir()) == sorted([*wanted, "SHA256SUMS"])
    sums = [line.split("  ") for line in (place / "SHA256SUMS").read_text().splitlines()]
    assert sums == [[hashlib.sha256(FILES[name]).hexdigest(), name] for name in wanted]
    source = f"s3://{PROJECT}-dev-weights-123456789012-us-east-1/{MODEL}/{REVISION}"
    assert f"source: {source}" in capsys.readouterr().out


def safetensors(**shapes: list[int]) -> bytes:
    """A file's header, which is all that is read of it."""
    header = json.dumps(
        {"__metadata__": {}, **{name: {"dtype": "BF16", "shape": shape} for name, shape in shapes.items()}}
    )
    return len(header).to_bytes(8, "little") + header.encode()


def test_the_size_is_told_as_the_stack_file_has_it(tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    (tmp_path / "1.safetensors").write_bytes(safetensors(embed=[151936, 4096], norm=[4096]))
    (tmp_path / "2.safetensors").write_bytes(safetensors(mlp=[12288, 4096, 100]))
    (values,) = yaml.safe_load("\n".join(weights.size(tmp_path))).values()
    assert Size.model_validate(values) == Size(
        **{"parameters_billion": 5.66, "num_hidden_layers": 36, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "head_dim": 128},
    )
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {**shape, "head_dim": 64}}))
    assert "head_dim: 64" in weights.size(tmp_path)[1]
    (tmp_path / "config.json").write_text(json.dumps({**shape, "quantization_config": {}}))
    assert weights.size(tmp_path) == []


def test_what_is_complete_is_left_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    monkeypatch.setattr(weights, "download", None)
    run()


def test_a_file_that_is_not_the_hubs_goes_nowhere(run: Run, tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"safetensors is not what the hub has(.|\n)*fix: run the same command again"):
        run(**{"model-00002-of-00002.safetensors": "0" * 64})
    assert not (tmp_path / "bucket").exists()
    left = {path.name for path in (tmp_path / "cache" / "weights" / MODEL / REVISION).iterdir()}
    assert "model-00001-of-00002.safetensors" in left, "the next run would load it again"
    assert "model-00002-of-00002.safetensors" not in left
    assert (run() / "SHA256SUMS").exists()


def test_a_model_without_safetensors_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in FILES if name.endswith(".safetensors")]:
        monkeypatch.delitem(FILES, name)
    with pytest.raises(Problem, match="org/model has no safetensors"):
        run()


def test_a_hub_that_refuses_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("401 Client Error: access to model org/model is restricted")

    monkeypatch.setattr(weights, "download", refuse)
    with pytest.raises(Problem, match=r"401 Client Error(.|\n)*HF_TOKEN"):
        run()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model": ""}, "MODEL = '' is no name on the hub"),
        ({"model": "https://huggingface.co/org/model"}, "is no name on the hub"),
        ({"revision": "main"}, "REVISION = 'main' is no commit"),
    ],
)
def test_what_pins_nothing_is_refused(run: Run, given: dict[str, str], says: str) -> None:
    with pytest.raises(Problem, match=says):
        run(**given)

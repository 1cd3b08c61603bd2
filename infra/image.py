"""The application image's name: a pure function of what goes into the image, so a tag never moves."""

import hashlib
from pathlib import Path

from infra.config import ROOT, Image


def content(root: Path = ROOT) -> list[Path]:
    """The files that the Dockerfile copies, and itself."""
    return [
        root / "Dockerfile",
        root / "requirements" / "cpu.txt",
        root / "requirements" / "uv.txt",
        root / "app" / "vllm.json",
        *sorted((root / "app").rglob("*.py")),
    ]


def reference(image: Image, root: Path = ROOT) -> str:
    """`repository:tag` of the image that this checkout makes."""
    digest = hashlib.sha256(image.base.encode() + b"\0")
    for path in content(root):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{image.repository}:{digest.hexdigest()[:12]}"

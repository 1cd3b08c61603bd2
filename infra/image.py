"""The application image's name: a pure function of what goes into the image, so a tag never moves."""

import hashlib
from pathlib import Path

from infra.config import ROOT, Accelerator, StackConfig


def content(accelerator: Accelerator, root: Path = ROOT) -> list[Path]:
    """The files that the Dockerfile copies for its argument ACCELERATOR, and itself."""
    return [
        root / "Dockerfile",
        root / "requirements" / f"{accelerator}.txt",
        root / "requirements" / "uv.txt",
        root / "app" / "vllm.json",
        *sorted((root / "app").rglob("*.py")),
    ]


def reference(stack: StackConfig, root: Path = ROOT) -> str:
    """`repository:tag` of the image that this checkout makes for the stack."""
    digest = hashlib.sha256(stack.image.base.encode() + b"\0")
    for path in content(stack.accelerator, root):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{stack.image.repository}:{digest.hexdigest()[:12]}"

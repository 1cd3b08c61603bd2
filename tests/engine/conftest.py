"""Where the engine finds the stand-in for Pulumi's AWS provider."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from infra.config import ROOT
from tests.engine.stand_in_aws import ENVIRONMENT


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where the stand-in notes what it is asked; it is on PATH, and the stack's state is beside it."""
    binary = tmp_path / "bin" / "pulumi-resource-aws"
    binary.parent.mkdir()
    # Not where the engine starts it: infra/platform would be Python's own `platform`.
    binary.write_text(f"#!/bin/sh\ncd '{ROOT}' && exec '{sys.executable}' -m tests.engine.stand_in_aws\n")
    binary.chmod(0o755)
    (tmp_path / "operations").touch()
    changed = {
        "PATH": f"{binary.parent}{os.pathsep}{os.environ['PATH']}",
        "BLUEPRINT_STATE": str(tmp_path / "state"),
        ENVIRONMENT: str(tmp_path),
    }
    with mock.patch.dict(os.environ, changed):
        yield tmp_path

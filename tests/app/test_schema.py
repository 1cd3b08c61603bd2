"""The files that `make schema` writes, against the models and the vLLM that are installed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts import schema


@pytest.mark.parametrize(
    ("path", "content"),
    [(schema.VLLM, schema.vllm), (schema.SETTINGS, schema.settings), (schema.STACK, schema.stack)],
    ids=["vllm", "settings", "stack"],
)
def test_written_files_are_up_to_date(path: Path, content: Callable[[], Any]) -> None:
    assert path.read_text() == schema.text(content()), f"{path} is not what it would be now; fix: make schema"

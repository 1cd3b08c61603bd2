"""What a guard reads of a request: all that the model would, in parts that a classifier reads to their ends."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.deployments.guard import _windows, texts_of
from app.errors import ApiError
from app.routes.openai import ChatRequest, TextRequest


def chat(*messages: dict[str, Any], **more: Any) -> str:
    """All that is read, in one text."""
    return "\n".join(texts_of(ChatRequest(model="chat", messages=list(messages), **more)))


def test_every_message_is_read() -> None:
    read = chat(
        {"role": "system", "content": "first"},
        {"role": "user", "content": [{"type": "text", "text": "second"}, {"type": "text", "text": "third"}]},
        {"role": "assistant", "content": "fourth"},
        {"role": "user", "content": "fifth", "name": "sixth"},
    )
    for text in ("first", "second", "third", "fourth", "fifth", "sixth"):
        assert text in read


def test_tools_and_what_they_were_told_are_read() -> None:
    function = {"name": "weather", "description": "inside the tool", "parameters": {"type": "object"}}
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "inside the call"}'}}
    read = chat(
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "inside the result"},
        tools=[{"type": "function", "function": function}],
    )
    for text in ("inside the tool", "inside the call", "inside the result"):
        assert text in read


def test_every_prompt_is_read() -> None:
    assert texts_of(TextRequest(model="chat", prompt=["one", "two"])) == ["one", "two"]
    assert texts_of(TextRequest(model="chat", prompt="one")) == ["one"]


def test_tokens_cannot_be_read() -> None:
    with pytest.raises(ApiError, match="takes text, no tokens"):
        texts_of(TextRequest(model="chat", prompt=[1, 2, 3]))


@given(st.text(max_size=200), st.integers(1, 64))
def test_windows_leave_nothing_out(text: str, size: int) -> None:
    windows = list(_windows(text, size))
    assert windows
    assert all(len(window) <= size for window in windows)
    rebuilt, step = windows[0], max(1, size * 3 // 4)
    for index, window in enumerate(windows[1:], 1):
        assert text[index * step :].startswith(window)
        rebuilt = text[: index * step] + window
    assert rebuilt == text


@given(st.integers(0, 190), st.integers(16, 64))
def test_a_short_thing_is_whole_in_one_of_them(start: int, size: int) -> None:
    """Whatever fits the overlap cannot be cut in two."""
    hidden = "!" * (size // 4)
    text = ("." * start + hidden).ljust(200, ".")
    assert any(hidden in window for window in _windows(text, size))

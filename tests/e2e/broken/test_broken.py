"""Changes that cannot work: `up` fails with the reason, what served goes on, and the next good `up` mends it."""

from collections.abc import Iterator

import httpx
import pytest

from scripts.kubectl import Kubectl
from tests.e2e.conftest import Stack, chat, growing

CHAT = {"model": "chat", "messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 2}


@pytest.fixture(scope="module", autouse=True)
def good(stack: Stack, kubernetes: Kubectl) -> None:
    stack.require(**growing())


@pytest.fixture(autouse=True)
def mended(stack: Stack, good: None, client: httpx.Client) -> Iterator[None]:
    """The next good `up` brings everything back."""
    yield
    assert stack.up(**growing()).returncode == 0
    assert answered_by(client) == "chat@stable"


def answered_by(client: httpx.Client, model: str = "chat") -> str:
    return client.post("v1/chat/completions", json={**CHAT, "model": model}).raise_for_status().headers["x-variant"]


def test_a_model_that_is_not_there(stack: Stack, client: httpx.Client) -> None:
    """A new variant, which is how a model is changed without a gap."""
    # It fits beside the others: a second worker for it could get the gateway's next replica, and would stay.
    none = {"source": "/models/none", "placement": {"num_cpus": 0.1}}
    failed = stack.up(**growing(models=[chat(canary=none)]))
    assert failed.returncode != 0
    assert "chat@canary" in failed.stdout
    assert "/models/none" in failed.stdout
    assert "Traceback" not in failed.stdout
    status = stack.make("status").stdout
    assert "not well:" in status
    assert "/models/none" in status
    assert {answered_by(client, model) for model in ("chat", "chat@stable")} == {"chat@stable"}


def test_an_image_that_is_not_there(stack: Stack, client: httpx.Client) -> None:
    failed = stack.up_without_its_image(**growing())
    assert failed.returncode != 0
    assert "ErrImagePull" in failed.stderr or "ImagePullBackOff" in failed.stderr
    assert "registry.invalid/none" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert answered_by(client) == "chat@stable"

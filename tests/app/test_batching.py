"""How what many requests ask becomes batches and passes: a deployment on a Ray of its own, whose model can be held."""

import asyncio
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
import ray
from ray import serve
from ray.exceptions import RayTaskError

from app.deployments.batching import AT_ONCE, CPU_PASS, GPU_PASS, Batches
from app.options import GpuPlacement

Pass = tuple[list[int], int]
"""The lengths of the texts in a pass, and its threads."""
PATIENCE_SECONDS = 30


class Model:
    """Gives the lengths of texts. A text of dots waits for `go`, one with a ! fails."""

    def __init__(self) -> None:
        self.passes: list[Pass] = []
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def __call__(self, texts: list[str], threads: int) -> Iterator[int]:
        self.passes.append((list(map(len, texts)), threads))
        if "." in texts[0]:
            self.begun.release()
            assert self.go.acquire(timeout=PATIENCE_SECONDS)
        if any("!" in text for text in texts):
            raise ValueError("!")
        return map(len, texts)


class Gathering:
    """A deployment that answers by the model."""

    async def on(self, pads: bool = True, **placement: float) -> None:
        """Begin anew, on other cores."""
        self.model = Model()
        self.batches = Batches(self.model, GpuPlacement.model_validate(placement), pads=pads)
        self.batches.reconfigure({"max_batch_size": 32})

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        self.batches.reconfigure(user_config)

    async def passes(self) -> list[Pass]:
        return self.model.passes

    async def lengths(self, texts: list[str]) -> list[int]:
        return await self.batches.results(texts)

    async def while_it_works(self, holding: list[list[str]], then: list[list[str]]) -> list[list[int]]:
        """Answers to `holding`, each in a pass of its own, and to `then`, which come before one of those goes on."""
        first = []
        for texts in holding:
            first.append(asyncio.create_task(self.lengths(texts)))
            assert await asyncio.to_thread(self.model.begun.acquire, timeout=PATIENCE_SECONDS)
        second = [asyncio.create_task(self.lengths(texts)) for texts in then]
        await asyncio.sleep(0)
        self.model.go.release()
        done = await asyncio.gather(*second)
        for _ in holding[1:]:
            self.model.go.release()
        return [*await asyncio.gather(*first), *done]


def _start(directory: str) -> None:
    ray.init(address="local", include_dashboard=False, num_cpus=1, log_to_driver=False, _temp_dir=directory)
    serve.start(proxy_location="Disabled")
    serve.run(serve.deployment(ray_actor_options={"num_cpus": 0})(Gathering).bind())


def _stop() -> None:
    serve.shutdown()
    ray.shutdown()


def _ask(method: str, *given: Any, **named: Any) -> Any:
    try:
        return getattr(serve.get_app_handle("default"), method).remote(*given, **named).result()
    except RayTaskError as error:
        raise error.cause from None


@pytest.fixture(scope="module")
def ask() -> Iterator[Callable[..., Any]]:
    """Calls a method of the deployment, from a process of its own: after Ray's threads, one cannot fork (test_fuzz)."""
    # Short: Ray keeps sockets in it, whose paths may have 107 characters. And not /tmp/ray, where the tests' server is.
    with (
        tempfile.TemporaryDirectory(prefix="ray-") as directory,
        ProcessPoolExecutor(1, get_context("spawn"), _start, (directory,)) as process,
    ):
        try:
            yield lambda *given, **named: process.submit(_ask, *given, **named).result(PATIENCE_SECONDS * 4)
        finally:
            process.submit(_stop).result()


def test_a_lone_text_has_all_cores(ask: Callable[..., Any]) -> None:
    ask("on", num_cpus=3)
    assert ask("lengths", ["sea"]) == [3]
    assert ask("passes") == [([3], 3)]


def test_what_comes_meanwhile_is_a_batch_in_passes_of_like_length(ask: Callable[..., Any]) -> None:
    ask("on", num_cpus=2)
    then = [["x" * (1 + number)] for number in range(2 * CPU_PASS + 4)]
    answers = ask("while_it_works", [["."], ["."]], then)
    assert answers == [[1], [1], *([1 + number] for number in range(2 * CPU_PASS + 4))]
    passes = ask("passes")
    assert passes[:2] == [([1], 2), ([1], 1)]
    # The first two still hold a core each while the rest gathers; then one goes on.
    assert passes[2:] == [
        (list(range(2 * CPU_PASS + 4, CPU_PASS + 4, -1)), 1),
        (list(range(CPU_PASS + 4, 4, -1)), 1),
        ([4, 3, 2, 1], 1),
    ]


def test_a_request_of_many_texts_uses_all_cores(ask: Callable[..., Any]) -> None:
    texts = ["x" * number for number in (3, 1, 4, 2)]
    ask("on", num_cpus=2)
    assert ask("lengths", texts) == [3, 1, 4, 2]
    assert sorted(ask("passes")) == [([2, 1], 1), ([4, 3], 1)]


def test_many_cores_share_a_few_passes(ask: Callable[..., Any]) -> None:
    texts = ["x"] * (CPU_PASS * AT_ONCE)
    ask("on", num_cpus=4 * AT_ONCE)
    ask("reconfigure", {"max_batch_size": len(texts)})
    assert ask("lengths", texts) == [1] * len(texts)
    assert ask("passes") == [([1] * CPU_PASS, 4)] * AT_ONCE


def test_a_gpu_takes_one_pass_at_a_time_of_many_texts(ask: Callable[..., Any]) -> None:
    ask("on", num_cpus=2, num_gpus=1)
    ask("reconfigure", {"max_batch_size": GPU_PASS + 8})
    most = GPU_PASS + 16
    texts = ["x" * number for number in range(1, most + 1)]
    assert ask("lengths", texts) == list(range(1, most + 1))
    expected = [range(most, most - GPU_PASS, -1), range(most - GPU_PASS, 8, -1), range(8, 0, -1)]
    assert ask("passes") == [(list(lengths), 2) for lengths in expected]


def test_what_pads_nothing_takes_a_batch_at_once(ask: Callable[..., Any]) -> None:
    ask("on", pads=False, num_cpus=2)
    assert ask("lengths", ["sea"] * 32) == [3] * 32
    assert ask("passes") == [([3] * 32, 2)]


def test_a_failure_is_its_batch_s_alone(ask: Callable[..., Any]) -> None:
    ask("on", num_cpus=2)
    with pytest.raises(ValueError, match="!"):
        ask("lengths", ["sea", "!"])
    assert ask("lengths", ["sea"]) == [3]
    assert ask("passes")[-1] == ([3], 2)

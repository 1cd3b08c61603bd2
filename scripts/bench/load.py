"""The load: what asks a server, so many at once, and what it has seen of the answers."""

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import aiohttp
import httpx
import numpy as np

from app.builtin import cache_dir, ensure
from scripts.bench.servers import MODEL, NAME, Served
from scripts.console import Problem

T = TypeVar("T")
Call = Callable[[aiohttp.ClientSession], Awaitable[T]]
"""One request, or some that make one answer."""

SUBJECTS = (
    *("the sea", "a harbour", "winter", "bread", "a railway", "the moon", "a violin", "rain", "an old map", "a bridge"),
    *("the desert", "a lighthouse", "tea", "a forest", "the market", "a clock"),
)
PATIENCE_SECONDS = 300


class Point(NamedTuple):
    """So many requests, so many at once. Of what follows, each kind has what makes its requests large."""

    concurrency: int
    requests: int
    tokens: int = 0
    """Of each answer."""
    texts: int = 0
    """In each request."""
    words: int = 0
    """Of each text."""

    def __str__(self) -> str:
        sizes = {"token": self.tokens, "text": self.texts, "word": self.words}
        named = [f"{size} {name}{'s' if size > 1 else ''}" for name, size in sizes.items() if size]
        return ", ".join([f"{self.concurrency} at once", *named])


class Measured(NamedTuple):
    """What a client saw of a Point; times in ms."""

    counted: int
    """Tokens, texts or requests, whatever the kind counts."""
    per_second: float
    p50: float
    """Of the wait for the first token, or for an answer that comes whole."""
    p95: float
    itl_p50: float = 0
    """Between two tokens of a stream."""
    itl_p95: float = 0


class Route(NamedTuple):
    """How a server continues a prompt."""

    path: str
    body: Callable[[str, int], dict[str, object]]
    """For a prompt, and how many tokens there may be."""
    read: Callable[[Any], tuple[str, int]]
    """What an event says, or an answer that comes whole: text, and how many tokens there have been if it says so."""


def prompt(salt: int, index: int) -> str:
    """No two alike, or the prefix cache would answer; the same for every contender."""
    return f"{salt}.{index}: tell a long story about {SUBJECTS[index % len(SUBJECTS)]}."


def prompts(point: Point, salt: int) -> list[str]:
    """One for each request."""
    return [prompt(salt, index) for index in range(point.requests)]


def body(prompt: str, tokens: int) -> dict[str, object]:
    """A request for a stream of so many tokens."""
    options = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    messages = [{"role": "user", "content": prompt}]
    return {"model": NAME, "messages": messages, "temperature": 0, "max_completion_tokens": tokens, **options}


def read(said: Any) -> tuple[str, int]:
    """OpenAI's events of chat and of completions, and its completions that come whole."""
    texts = (choice.get("delta", {}).get("content") or choice.get("text") or "" for choice in said["choices"])
    return "".join(texts), (said.get("usage") or {}).get("completion_tokens", 0)


CHAT = Route("/v1/chat/completions", body, read)


def by_vllm(served: Served, point: Point, salt: int) -> Measured:
    """Chat, measured by vLLM's own client: https://docs.vllm.ai/en/latest/benchmarking/cli/."""
    from vllm.benchmarks import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    said = cache_dir() / "bench-vllm-client.log"
    os.environ["OPENAI_API_KEY"] = served.key
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        # As ShareGPT's, of which it asks the first turns; for a file of prompts alone it wants pandas.
        data = Path(directory) / "prompts.json"
        turns = [[{"value": prompt}, {"value": ""}] for prompt in prompts(point, salt)]
        data.write_text(json.dumps([{"conversations": both} for both in turns]))
        arguments = parser.parse_args(
            [
                *("--backend", "openai-chat", "--base-url", served.url, "--endpoint", CHAT.path),
                *("--model", str(ensure(MODEL)), "--served-model-name", NAME, "--temperature", "0", "--ignore-eos"),
                *("--dataset-name", "sharegpt", "--dataset-path", str(data), "--num-prompts", str(point.requests)),
                *("--disable-shuffle", "--sharegpt-output-len", str(point.tokens)),
                *("--max-concurrency", str(point.concurrency), "--metric-percentiles", "50,95", "--disable-tqdm"),
            ]
        )
        assert arguments
        with said.open("w") as file, redirect_stdout(file), redirect_stderr(file):
            found = asyncio.run(serve.main_async(arguments))
    if found["completed"] != point.requests or found["total_output_tokens"] != point.requests * point.tokens:
        raise Problem(
            f"of {point.requests} requests {found['completed']} were answered, with {found['total_output_tokens']} "
            f"tokens: {next(filter(None, found.get('errors', [])), '')}",
            f"read {said}",
        )
    return Measured(
        found["total_output_tokens"],
        found["output_throughput"],
        *(found[key] for key in ("p50_ttft_ms", "p95_ttft_ms", "p50_itl_ms", "p95_itl_ms")),
    )


def by_httpx(served: Served, point: Point, salt: int, route: Route = CHAT) -> Measured:
    """The same by a client of ours, which counts what the server says that it has generated; also of other routes."""
    return _run(_by_httpx(served, point, salt, route))


def session(served: Served) -> aiohttp.ClientSession:
    """One with the server's key, patience, and as many connections as are asked for.

    A request takes aiohttp 0.15 ms of CPU, and httpx 1 to 3: of two cores a busy server would miss them.
    """
    return aiohttp.ClientSession(
        served.url,
        headers={"Authorization": f"Bearer {served.key}"},
        timeout=aiohttp.ClientTimeout(PATIENCE_SECONDS),
        connector=aiohttp.TCPConnector(limit=0),
    )


async def _by_httpx(served: Served, point: Point, salt: int, route: Route) -> Measured:
    waiting = iter(prompts(point, salt))
    first: list[float] = []
    between: list[float] = []
    total = 0

    async def work(http: httpx.AsyncClient) -> None:
        nonlocal total
        for prompt in waiting:
            sent = last = time.perf_counter()
            tokens = 0
            async with http.stream("POST", route.path, json=route.body(prompt, point.tokens)) as answered:
                if answered.status_code != 200:
                    raise Problem(f"{answered.status_code}: {await answered.aread()}", "read the server's log")
                async for line in answered.aiter_lines():
                    if not (said := line.removeprefix("data: ")).startswith("{"):
                        continue
                    event = json.loads(said)
                    if "error" in event:
                        raise Problem(f"a stream ended with {said}", "read the server's log")
                    text, counted = route.read(event)
                    tokens = counted or tokens
                    if text:
                        now = time.perf_counter()
                        (first if last == sent else between).append(now - last)
                        last = now
            total += tokens

    began = time.perf_counter()
    async with (
        httpx.AsyncClient(
            base_url=served.url,
            headers={"Authorization": f"Bearer {served.key}"},
            timeout=PATIENCE_SECONDS,
            trust_env=False,
            limits=httpx.Limits(max_connections=None),
        ) as http,
        asyncio.TaskGroup() as clients,
    ):
        for _ in range(point.concurrency):
            clients.create_task(work(http))
    seconds = time.perf_counter() - began
    asked = point.requests * point.tokens
    if not (total == asked if route is CHAT else 0 < total <= asked):
        raise Problem(f"{total} tokens, of {asked} asked for", "read the server's log")
    return Measured(total, total / seconds, *percentiles(first), *percentiles(between))


def answered(served: Served, calls: Sequence[Call[T]], concurrency: int, each: int = 1) -> tuple[Measured, list[T]]:
    """Make the calls, so many at once; the answers are in their order. A call counts for `each`."""
    return _run(_answered(served, calls, concurrency, each))


async def _answered(served: Served, calls: Sequence[Call[T]], concurrency: int, each: int) -> tuple[Measured, list[T]]:
    found: dict[int, T] = {}
    waits: list[float] = []
    waiting = iter(enumerate(calls))

    async def work(http: aiohttp.ClientSession) -> None:
        for index, call in waiting:
            sent = time.perf_counter()
            found[index] = await call(http)
            waits.append(time.perf_counter() - sent)

    began = time.perf_counter()
    async with session(served) as http, asyncio.TaskGroup() as clients:
        for _ in range(concurrency):
            clients.create_task(work(http))
    count = len(calls) * each
    measured = Measured(count, count / (time.perf_counter() - began), *percentiles(waits))
    return measured, [found[index] for index in range(len(calls))]


async def ask(path: str, body: dict[str, Any] | None, http: aiohttp.ClientSession) -> Any:
    """The answer to a POST of `body`, or without one to a GET, as JSON. Problem when it is no answer."""
    async with http.request("POST" if body else "GET", path, json=body) as answer:
        content = await answer.read()
    if answer.status != 200:
        raise Problem(f"{answer.status}: {content[:500]}", "read the server's log")
    return json.loads(content)


def _run(work: Coroutine[Any, Any, T]) -> T:
    """What it returns; of what its tasks raise, the first."""
    try:
        return asyncio.run(work)
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


def percentiles(seconds: Iterable[float]) -> Sequence[float]:
    """The 50th and the 95th, in ms; zeros of nothing."""
    values = list(seconds)
    return [float(value) * 1000 for value in np.percentile(values, (50, 95))] if values else [0.0, 0.0]

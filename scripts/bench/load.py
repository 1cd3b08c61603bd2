"""The load: chat in streams, by two clients that know nothing of each other, and what each has measured."""

import asyncio
import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np

from scripts.bench.contenders import NAME, Served
from scripts.console import Problem

SUBJECTS = (
    *("the sea", "a harbour", "winter", "bread", "a railway", "the moon", "a violin", "rain", "an old map", "a bridge"),
    *("the desert", "a lighthouse", "tea", "a forest", "the market", "a clock"),
)
GOLDEN = (
    "What is the capital of France?",
    "Say hi",
    "Name three colors.",
    "What is 2+2?",
    "Write one sentence about the sea and the old harbour where fishermen mend their nets in the morning.",
)
"""Their answers must be the same whoever serves the model."""
PATIENCE = httpx.Timeout(300)


class Point(NamedTuple):
    """So many requests, so many at once, each with an answer of so many tokens."""

    concurrency: int
    requests: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.concurrency} at once, {self.tokens} tokens"


class Measured(NamedTuple):
    """What a client saw of a Point; times in ms."""

    tokens_per_second: float
    ttft_p50: float
    ttft_p95: float
    itl_p50: float
    itl_p95: float


def prompts(point: Point, salt: int) -> list[str]:
    """No two alike, or the prefix cache would answer; the same for every contender."""
    subjects = [SUBJECTS[index % len(SUBJECTS)] for index in range(point.requests)]
    return [f"{salt}.{index}: tell a long story about {subject}." for index, subject in enumerate(subjects)]


def by_vllm(served: Served, model: Path, point: Point, salt: int, scratch: Path) -> Measured:
    """Measured by vLLM's own client: https://docs.vllm.ai/en/latest/benchmarking/cli/."""
    from vllm.benchmarks import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    data = scratch / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts(point, salt)))
    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    arguments = parser.parse_args(
        [
            *("--backend", "openai-chat", "--base-url", served.url, "--endpoint", "/v1/chat/completions"),
            *("--model", str(model), "--served-model-name", NAME, "--temperature", "0", "--ignore-eos"),
            *("--dataset-name", "custom", "--dataset-path", str(data), "--skip-chat-template", "--disable-shuffle"),
            *("--custom-output-len", str(point.tokens), "--num-prompts", str(point.requests)),
            *("--max-concurrency", str(point.concurrency), "--metric-percentiles", "50,95", "--disable-tqdm"),
        ]
    )
    assert arguments
    os.environ["OPENAI_API_KEY"] = served.key
    said = scratch / "vllm-client.log"
    with said.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        found = asyncio.run(serve.main_async(arguments))
    if found["completed"] != point.requests or found["total_output_tokens"] != point.requests * point.tokens:
        raise Problem(
            f"of {point.requests} requests {found['completed']} were answered, with {found['total_output_tokens']} "
            f"tokens: {next(filter(None, found.get('errors', [])), '')}",
            f"read {said}",
        )
    return Measured(
        found["output_throughput"],
        *(found[key] for key in ("p50_ttft_ms", "p95_ttft_ms", "p50_itl_ms", "p95_itl_ms")),
    )


def by_httpx(served: Served, point: Point, salt: int) -> Measured:
    """The same by a client of ours, which counts what the server says that it has generated."""
    try:
        return asyncio.run(_by_httpx(served, point, salt))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


def client(served: Served) -> httpx.AsyncClient:
    """One with the server's key, patience, and as many connections as are asked for."""
    return httpx.AsyncClient(
        base_url=served.url,
        headers={"Authorization": f"Bearer {served.key}"},
        timeout=PATIENCE,
        trust_env=False,
        limits=httpx.Limits(max_connections=None),
    )


async def _by_httpx(served: Served, point: Point, salt: int) -> Measured:
    waiting = iter(prompts(point, salt))
    first: list[float] = []
    between: list[float] = []
    total = 0

    async def work(http: httpx.AsyncClient) -> None:
        nonlocal total
        for prompt in waiting:
            sent = last = time.perf_counter()
            async with http.stream("POST", "/v1/chat/completions", json=body(prompt, point.tokens)) as answered:
                if answered.status_code != 200:
                    raise Problem(f"{answered.status_code}: {await answered.aread()}", "read the server's log")
                async for line in answered.aiter_lines():
                    if '"usage":{' in line:
                        total += json.loads(line.removeprefix("data: "))["usage"]["completion_tokens"]
                    if '"content":"' not in line or '"content":""' in line:
                        continue
                    now = time.perf_counter()
                    (first if last == sent else between).append(now - last)
                    last = now

    began = time.perf_counter()
    async with (
        client(served) as http,
        asyncio.TaskGroup() as clients,
    ):
        for _ in range(point.concurrency):
            clients.create_task(work(http))
    seconds = time.perf_counter() - began
    if total != point.requests * point.tokens:
        raise Problem(f"{total} tokens, of {point.requests * point.tokens} asked for", "read the server's log")
    return Measured(total / seconds, *_percentiles(first), *_percentiles(between))


def body(prompt: str, tokens: int) -> dict[str, object]:
    """A request for a stream of so many tokens."""
    options = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    messages = [{"role": "user", "content": prompt}]
    return {"model": NAME, "messages": messages, "temperature": 0, "max_completion_tokens": tokens, **options}


def _percentiles(seconds: Iterable[float]) -> Sequence[float]:
    values = list(seconds)
    return [float(value) * 1000 for value in np.percentile(values, (50, 95))] if values else [0.0, 0.0]


def golden(served: Served) -> list[str]:
    """The greedy answers to GOLDEN, one after the other."""
    headers = {"Authorization": f"Bearer {served.key}"}
    answers: list[str] = []
    with httpx.Client(base_url=served.url, headers=headers, timeout=PATIENCE, trust_env=False) as http:
        for prompt in GOLDEN:
            messages = [{"role": "user", "content": prompt}]
            asked = {"model": NAME, "messages": messages, "temperature": 0, "max_completion_tokens": 24}
            answered = http.post("/v1/chat/completions", json=asked).raise_for_status().json()
            answers.append(answered["choices"][0]["message"]["content"])
    return answers

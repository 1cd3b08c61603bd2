"""Tokens of a stream, gathered for calls between Ray's processes: a call costs more than a token does."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable
from typing import TypeVar

T = TypeVar("T")


async def gathered(stream: AsyncIterable[T], interval_s: float) -> AsyncGenerator[list[T]]:
    """What a stream brings, in lists: at once, but what comes within `interval_s` of a list waits for the next one.

    The end waits for nothing, and so does an error, which is raised when all before it is said. Ray's own (Batcher of
    ray.llm) looks every `interval_s` whether something has come. Of 32 streams on two cores each looks five times for a
    token, which then has waited for half an interval.
    """
    found: list[T] = []
    came = asyncio.Event()

    async def read() -> None:
        async for item in stream:
            found.append(item)
            came.set()

    reading = asyncio.create_task(read())
    reading.add_done_callback(lambda _: came.set())
    clock = asyncio.get_running_loop().time
    said = -interval_s
    try:
        while True:
            await came.wait()
            if (wait := said + interval_s - clock()) > 0:
                await asyncio.wait({reading}, timeout=wait)
            came.clear()
            over = reading.done()
            if found:
                said, gone = clock(), found.copy()
                found.clear()
                yield gone
            if over:
                reading.result()
                return
    finally:
        reading.cancel()

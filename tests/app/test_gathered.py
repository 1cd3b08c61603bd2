"""Tokens that come soon after others go together, and none waits for longer than it must."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import pairwise

import pytest

from app.deployments.gathered import gathered

LONG_S = 3600.0
"""A test that waits for it does not end."""


class Source:
    """A stream that brings what it is given, until None."""

    def __init__(self) -> None:
        self._given: asyncio.Queue[int | None] = asyncio.Queue()
        self.closed = asyncio.Event()

    def give(self, *items: int | None) -> None:
        for item in items:
            self._given.put_nowait(item)

    async def stream(self) -> AsyncGenerator[int]:
        try:
            while (item := await self._given.get()) is not None:
                if item < 0:
                    raise ValueError(item)
                yield item
        finally:
            self.closed.set()


def test_what_comes_later_comes_at_once() -> None:
    async def check() -> None:
        source = Source()
        lists = gathered(source.stream(), interval_s=0)
        for item in range(3):
            source.give(item)
            assert await anext(lists) == [item]
        source.give(None)
        assert [each async for each in lists] == []

    asyncio.run(check())


def test_the_first_waits_for_nothing_and_what_follows_comes_together_with_the_end() -> None:
    async def check() -> None:
        source = Source()
        lists = gathered(source.stream(), LONG_S)
        source.give(1)
        assert await anext(lists) == [1]
        following = asyncio.create_task(anext(lists))
        source.give(2, 3)
        await asyncio.wait({following}, timeout=0.01)
        assert not following.done()
        source.give(4, None)
        assert await following == [2, 3, 4]
        assert [each async for each in lists] == []

    asyncio.run(check())


def test_the_interval_is_between_lists() -> None:
    async def check() -> None:
        source, interval = Source(), 0.02
        now = asyncio.get_running_loop().time
        source.give(1)
        times = []
        async for each in gathered(source.stream(), interval):
            times.append(now())
            source.give(*([each[-1] + 1] if each[-1] < 5 else [None]))
        assert len(times) == 5
        assert min(later - sooner for sooner, later in pairwise(times)) >= interval

    asyncio.run(check())


def test_an_error_comes_after_what_was_before_it() -> None:
    async def check() -> None:
        source = Source()
        lists = gathered(source.stream(), LONG_S)
        source.give(1)
        assert await anext(lists) == [1]
        source.give(2, -1)
        assert await anext(lists) == [2]
        with pytest.raises(ValueError, match="-1"):
            await anext(lists)

    asyncio.run(check())


def test_who_leaves_ends_the_stream() -> None:
    async def check() -> None:
        source = Source()
        async with aclosing(gathered(source.stream(), LONG_S)) as lists:
            source.give(1)
            assert await anext(lists) == [1]
        await source.closed.wait()

    asyncio.run(check())

"""How requests find a place at an engine that has few."""

import asyncio
import contextlib
from typing import Any

from ray.serve._private.common import ReplicaID
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter


class PromptRouter(PowerOfTwoChoicesRequestRouter):
    """Ray's own, but a request that waits for a place goes on when one of this router's requests has ended.

    Ray's waits longer and longer when all replicas are full, up to half a second, and places stand empty meanwhile. It
    still does for what it cannot see: places that another gateway's requests have left.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ended = asyncio.Event()

    async def _backoff(self, attempt: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._compute_backoff_s(attempt)):
                await self._ended.wait()
        self._ended.clear()

    def decrement_queue_len_cache(self, replica_id: ReplicaID) -> None:
        """Called by Ray when a request has ended, however."""
        super().decrement_queue_len_cache(replica_id)
        self._ended.set()


OPTIONS = {"request_router_config": {"request_router_class": f"{__name__}.{PromptRouter.__name__}"}}
"""Options of a Serve deployment whose requests are to be routed so."""

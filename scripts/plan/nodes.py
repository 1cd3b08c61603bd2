"""The worker pods and nodes under a deployment's replicas: when they are there, and what they cost.

Only this deployment's replicas come and go; what else is in its worker group stays as it is. A pod that has nothing to
do any more stays for the stack's idle_timeout_seconds, and its node for as long as Karpenter waits (EMPTY_FOR); a
replica that comes in the meantime finds both. The next node takes `cold_s`, unless one is warm: then that is used, and
another starts in its place.
"""

import heapq
import math
from collections import deque
from typing import NamedTuple


class Fleet(NamedTuple):
    """A worker group, as the replicas of one deployment see it."""

    others: float = 0
    """Pods that the other deployments of the group fill, at their fewest replicas."""
    share: float = 1
    """Of a pod, what a replica takes; more than 1 where it takes several."""
    least: int = 0
    """Pods that are always there."""
    most: int = 1_000_000
    per_node: int = 1
    """Pods on a node."""
    warm: int = 0
    """Nodes that wait with the image."""
    fixed: int | None = None
    """Nodes, where they are always the same: those of a managed group."""
    cold_s: float = 0
    """Until a pod runs that found no node, in seconds."""
    linger_s: float = 0
    """How long a pod and its node stay without work, in seconds."""
    gpus: int = 1
    """On a node."""
    usd_per_hour: float = 0
    """Of a node with its volume."""

    def pods(self, replicas: int) -> int:
        """How many hold so many replicas."""
        # What only floating point makes of a whole number is no pod.
        return min(self.most, max(self.least, math.ceil(round(self.others + replicas * self.share, 6))))


class Nodes:
    """What of a fleet is there. Times are seconds, and never go back."""

    def __init__(self, fleet: Fleet, replicas: int) -> None:
        self.fleet = fleet
        self._pods = fleet.pods(replicas)
        self._idle: deque[float] = deque()  # when each pod without work goes
        self._warm = [0.0] * fleet.warm  # when each is there
        self._last = 0.0  # when the youngest pod runs
        self._counted = 0.0
        self._node_seconds = 0.0

    @property
    def count(self) -> int:
        """Nodes that are paid for."""
        if self.fleet.fixed is not None:
            return self.fleet.fixed
        return math.ceil(self._pods / self.fleet.per_node) + self.fleet.warm

    def place(self, now: float, replicas: int) -> float:
        """When the last of so many replicas has a pod."""
        self._pass(now)
        new = self.fleet.pods(replicas) - (self._pods - len(self._idle))
        if new <= 0:
            return max(now, self._last)
        at = now
        for _ in range(new):
            if self._idle:
                self._idle.pop()
            else:
                at = self._last = max(self._last, self._start(now))
        return at

    def release(self, now: float, replicas: int) -> None:
        """So many replicas are left."""
        self._pass(now)
        while self._pods - len(self._idle) > self.fleet.pods(replicas):
            self._idle.append(now + self.fleet.linger_s)

    def hours(self, now: float) -> float:
        """Node hours until now."""
        self._pass(now)
        return self._node_seconds / 3600

    def _start(self, now: float) -> float:
        """One pod more: when it runs."""
        before = self.count
        self._pods += 1
        if self.count == before and self.fleet.fixed is None:
            return now
        if self._warm:
            at = max(now, heapq.heappop(self._warm))
            heapq.heappush(self._warm, now + self.fleet.cold_s)
            return at
        return now + self.fleet.cold_s

    def _pass(self, now: float) -> None:
        while self._idle and self._idle[0] <= now:
            self._count(self._idle.popleft())
            self._pods -= 1
        self._count(now)

    def _count(self, now: float) -> None:
        self._node_seconds += self.count * (now - self._counted)
        self._counted = now

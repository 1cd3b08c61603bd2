"""A deployment of Ray Serve under load: a discrete-event simulation.

Requests come when the load says. Each goes to the replica with the fewest, as long as that has less than
max_ongoing_requests; else it waits at its caller, first come first served, or is answered 429 where
max_queued_requests wait there already. How long it takes depends on how many its replica has when it begins. Ray's
autoscaling code decides on replicas, which start on nodes (`Nodes`), and finish what they have when they are stopped.

What is random is in the load: the same load gives the same outcome.
"""

import heapq
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.options import Autoscaling
from scripts.plan.autoscaler import Autoscaler
from scripts.plan.nodes import Fleet, Nodes

LOOKS = 5
"""Decisions between two reports; Ray makes one each 0.1 s. As an average drifts in between, a wish for other replicas
may so be noticed metrics_interval_s / LOOKS late. The end of a delay is met exactly."""


class Load(NamedTuple):
    """Requests."""

    arrivals: NDArray[np.floating[Any]]
    """When each comes, in seconds, ascending."""
    work: NDArray[np.floating[Any]]
    """How much each is of a mean one."""
    seconds: float
    """How long the load lasts."""


class Deployment(NamedTuple):
    """What is asked, and how it scales."""

    autoscaling: Autoscaling | None
    """None for a fixed number of replicas."""
    replicas: int = 1
    """Where it is fixed."""
    max_ongoing_requests: int = 64
    max_queued_requests: int = -1
    """At each caller; -1 is without limit."""
    callers: int = 1
    """Replicas of the gateway."""
    shutdown_s: float = 20
    """How long a stopping replica may take to finish its requests, in seconds."""
    alone_s: float = 1
    """How long a mean request takes on a replica that has no other, in seconds."""
    full_s: float = 1
    """The same on one that has max_ongoing_requests; in between it is linear."""
    start_s: float = 0
    """From the pod that runs to the first answer, in seconds."""


class Moment(NamedTuple):
    """What there is from this second on."""

    second: float
    target: int
    """Replicas that are wanted."""
    running: int
    nodes: int
    waiting: int


class Outcome(NamedTuple):
    arrived: int
    waits: NDArray[np.floating[Any]]
    """Seconds from coming to beginning of each request that was not refused; of those that wait at the end, to then."""
    began: NDArray[np.floating[Any]]
    """When each of these came."""
    answers: NDArray[np.floating[Any]]
    """Seconds from coming to being answered, of each that began."""
    refused: int
    """429s."""
    cut_off: int
    """Requests that a stopping replica did not finish in time."""
    moments: list[Moment]
    node_hours: float
    gpu_hours: float
    usd: float
    """Of the nodes."""

    @property
    def lost(self) -> int:
        return self.refused + self.cut_off

    def wait(self, quantile: float) -> float:
        """A quantile of the waits, in seconds; 0 without requests."""
        return float(np.quantile(self.waits, quantile)) if self.waits.size else 0.0

    def answer(self, quantile: float) -> float:
        """The same of the answers."""
        return float(np.quantile(self.answers, quantile)) if self.answers.size else 0.0


class _Replica:
    __slots__ = ("gone", "name", "ongoing", "stopping")

    def __init__(self, number: int) -> None:
        self.name = f"r{number}"
        self.ongoing = 0
        self.stopping = False
        self.gone = False


def simulate(load: Load, deployment: Deployment, fleet: Fleet | None = None) -> Outcome:
    """What the load does to the deployment, from replicas that run, and are idle, to the load's end."""
    return _Run(load, deployment, fleet or Fleet()).run()


class _Run:
    def __init__(self, load: Load, deployment: Deployment, fleet: Fleet) -> None:
        self.load, self.deployment = load, deployment
        self.arrivals: list[float] = load.arrivals.tolist()
        self.work: list[float] = load.work.tolist()
        self.autoscaler = Autoscaler(deployment.autoscaling) if deployment.autoscaling else None
        self.target = self.autoscaler.initial if self.autoscaler else deployment.replicas
        self.made = 0
        self.running = [self._made() for _ in range(self.target)]
        self.starting: list[_Replica] = []  # the oldest first
        self.stopping = 0
        self.nodes = Nodes(fleet, self.target)
        self.ends: list[tuple[float, int, _Replica]] = []  # of requests under way
        self.later: list[tuple[float, int, Callable[[float], None]]] = []  # what else will happen
        self.order = 0
        self.queue: deque[int] = deque()
        self.at_caller = [0] * deployment.callers
        self.waits: list[float] = []
        self.began: list[float] = []
        self.answers: list[float] = []
        self.refused = self.cut_off = 0
        self.moments: list[Moment] = []
        self.next_decision = float("inf")

    def run(self) -> Outcome:
        if self.autoscaler:
            with self.autoscaler.clock():
                self._sample(0.0)
                self._push(0.0)
                self._events()
        else:
            self._moment(0.0)
            self._events()
        end = self.load.seconds
        for index in self.queue:
            self.waits.append(end - self.arrivals[index])
            self.began.append(self.arrivals[index])
        hours = self.nodes.hours(end)
        return Outcome(
            arrived=len(self.arrivals),
            waits=np.array(self.waits),
            began=np.array(self.began),
            answers=np.array(self.answers),
            refused=self.refused,
            cut_off=self.cut_off,
            moments=self.moments,
            node_hours=hours,
            gpu_hours=hours * self.nodes.fleet.gpus,
            usd=hours * self.nodes.fleet.usd_per_hour,
        )

    def _events(self) -> None:
        never = float("inf")
        end, ends, later = self.load.seconds, self.ends, self.later
        index, number = 0, len(self.arrivals)
        while True:
            arrival = self.arrivals[index] if index < number else never
            ended = ends[0][0] if ends else never
            other = later[0][0] if later else never
            now = min(arrival, ended, other, self.next_decision)
            if now > end or now == never:
                return
            if now == ended:
                self._end(now)
            elif now == arrival:
                self._arrive(now, index)
                index += 1
            elif now == other:
                heapq.heappop(later)[2](now)
            else:
                self._decide(now)

    def _arrive(self, now: float, index: int) -> None:
        # Those that wait come first; and where some do, no replica has room.
        replica = None if self.queue else self._free()
        if replica is not None:
            self._begin(now, index, replica)
            return
        caller = index % len(self.at_caller)
        most = self.deployment.max_queued_requests
        if most != -1 and self.at_caller[caller] >= most:
            self.refused += 1
            return
        self.queue.append(index)
        self.at_caller[caller] += 1
        if not self.running and self.autoscaler:
            # A handle without replicas does not wait for its next report.
            self.autoscaler.push(now, len(self.queue))
            self.next_decision = now

    def _free(self) -> _Replica | None:
        """The running replica with the fewest requests; None when all are full."""
        fewest, found = self.deployment.max_ongoing_requests, None
        for replica in self.running:
            if replica.ongoing < fewest:
                fewest, found = replica.ongoing, replica
        return found

    def _begin(self, now: float, index: int, replica: _Replica) -> None:
        one = self.deployment
        crowd = replica.ongoing / (one.max_ongoing_requests - 1) if one.max_ongoing_requests > 1 else 0
        replica.ongoing += 1
        came = self.arrivals[index]
        ended = now + self.work[index] * (one.alone_s + (one.full_s - one.alone_s) * crowd)
        self.order += 1
        heapq.heappush(self.ends, (ended, self.order, replica))
        self.waits.append(now - came)
        self.began.append(came)
        self.answers.append(ended - came)

    def _end(self, now: float) -> None:
        _, _, replica = heapq.heappop(self.ends)
        if replica.gone:
            return
        replica.ongoing -= 1
        if not replica.stopping:
            self._take_from_queue(now)
        elif not replica.ongoing:
            self._gone(now, replica)

    def _take_from_queue(self, now: float) -> None:
        while self.queue and (replica := self._free()):
            index = self.queue.popleft()
            self.at_caller[index % len(self.at_caller)] -= 1
            self._begin(now, index, replica)

    def _decide(self, now: float) -> None:
        assert self.autoscaler
        before = self.target
        self.target = self.autoscaler.decide(now, before, [replica.name for replica in self.running])
        for _replica in range(before, self.target):
            self._add(now)
        for _replica in range(self.target, before):
            self._remove(now)
        if self.target != before:
            self._moment(now)
        period = self.autoscaler.config.metrics_interval_s / LOOKS
        self.next_decision = min(now + period, self.autoscaler.delay_ends())

    def _add(self, now: float) -> None:
        replica = self._made()
        self.starting.append(replica)
        placed = self.nodes.place(now, len(self.running) + len(self.starting) + self.stopping)
        self._schedule(placed + self.deployment.start_s, lambda at: self._ready(at, replica))

    def _remove(self, now: float) -> None:
        """Those that do not run yet first, and of the others the youngest, as Ray does."""
        replica = (self.starting or self.running).pop()
        replica.stopping = True
        self.stopping += 1
        if replica.ongoing:
            self._schedule(now + self.deployment.shutdown_s, lambda at: self._kill(at, replica))
        else:
            self._gone(now, replica)

    def _ready(self, now: float, replica: _Replica) -> None:
        if replica.stopping:
            return
        self.starting.remove(replica)
        self.running.append(replica)
        self._take_from_queue(now)
        self._moment(now)

    def _kill(self, now: float, replica: _Replica) -> None:
        if not replica.gone:
            self.cut_off += replica.ongoing
            self._gone(now, replica)

    def _gone(self, now: float, replica: _Replica) -> None:
        replica.gone = True
        self.stopping -= 1
        self.nodes.release(now, len(self.running) + len(self.starting) + self.stopping)
        self._moment(now)

    def _sample(self, now: float) -> None:
        assert self.autoscaler
        self.autoscaler.sample(now, len(self.queue), {replica.name: replica.ongoing for replica in self.running})
        self._moment(now)
        self._schedule(now + self.autoscaler.sample_s, self._sample)

    def _push(self, now: float) -> None:
        assert self.autoscaler
        self.autoscaler.push(now, len(self.queue))
        self._schedule(now + self.autoscaler.config.metrics_interval_s, self._push)
        self.next_decision = now

    def _moment(self, now: float) -> None:
        self.moments.append(Moment(now, self.target, len(self.running), self.nodes.count, len(self.queue)))

    def _schedule(self, second: float, what: Callable[[float], None]) -> None:
        self.order += 1
        heapq.heappush(self.later, (second, self.order, what))

    def _made(self) -> _Replica:
        self.made += 1
        return _Replica(self.made)

"""How a worker ends: what it has begun is answered, as far as the settings give time for it.

No preStop hook is needed. `ray start --block` is the container's first process, since the bash by which KubeRay starts
it becomes it, and at SIGTERM it drains its node: Serve starts the replicas elsewhere and stops those here, each of them
graceful_shutdown_timeout_s before the drain's time is up at the latest. Of that time and of the pod's, both 30 s when
nobody says otherwise, neither knows of the settings, and they end at the same moment.
_drain_node_before_shutdown in https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/_private/node.py
_partition_groups_to_stop in serve/_private/deployment_state.py beside it
"""

import math
from typing import Any

from app.settings import longest_shutdown_s
from infra.config import StackConfig

PROXY_S = 30
"""Serve's HTTP proxy stays as long, for those who do not know yet that it goes: RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S.
A node is not drained before."""
END_S = 10
"""For Ray to end its processes afterwards."""
LEFT_ALONE_S = 60
"""How long KubeRay by itself leaves the old Ray cluster of an upgrade alone, when requests have their way to the new
one."""
OLD_CONNECTIONS_S = 20
"""In which requests still come to it, on connections from before (app/proxy.py), and some time for Kubernetes' nodes to
learn of the change."""


def deletion_delay_seconds(stack: StackConfig) -> int:
    """How long the old Ray cluster of an upgrade goes on with what it has begun, before all its pods end at once."""
    return max(LEFT_ALONE_S, OLD_CONNECTIONS_S + math.ceil(longest_shutdown_s(stack.serving)))


def drain(worker: dict[str, Any], stack: StackConfig) -> None:
    """Give a worker's pod template the time to drain; a worker that has no more to do ends before it is up.

    Not the head's: it has nothing to finish, and would wait all the time for its own controller of Serve. So a Ray
    cluster of 330 s that is deleted is gone a minute after its head; if the head had as long, it would take all of it.
    """
    seconds = PROXY_S + math.ceil(longest_shutdown_s(stack.serving))
    worker["spec"]["terminationGracePeriodSeconds"] = seconds + END_S
    (container,) = worker["spec"]["containers"]
    container["env"].append({"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": str(seconds)})

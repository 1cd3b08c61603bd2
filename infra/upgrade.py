"""How a change of the Ray cluster comes about: KubeRay's three strategies, under its own names.

What they do is read in KubeRay's source, which its documentation does not spell out:
https://github.com/ray-project/kuberay/blob/v1.6.2/ray-operator/controllers/ray/rayservice_controller.go
"""

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from app.validation import Strict


class NewCluster(Strict):
    """A second Ray cluster, of full size, gets all requests at once when it is ready. Then the first one goes."""

    kind: Literal["NewCluster"] = "NewCluster"


class Incremental(Strict):
    """A second Ray cluster grows while the first one shrinks, and a Gateway moves the requests over in steps."""

    kind: Literal["NewClusterWithIncrementalUpgrade"] = "NewClusterWithIncrementalUpgrade"
    gateway_class_name: str = Field(
        pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", description="GatewayClass of the cluster's Gateway API."
    )
    # KubeRay takes 0 for the surge and the step, too, and then the upgrade never ends.
    max_surge_percent: int = Field(
        default=100, ge=1, le=100, description="Part of the replicas that the new Ray cluster is ahead of the old one."
    )
    step_size_percent: int = Field(
        ge=1, le=100, description="Part of the requests that moves at once, within what the new Ray cluster can take."
    )
    interval_seconds: int = Field(ge=1, description="Seconds between two such steps.")

    def course(self) -> Iterator[tuple[int, int]]:
        """Capacities of the new and of the old Ray cluster in percent, one after the other.

        While both together have no more than 100, the new one gets a surge; then the old one loses as much.
        """
        new, old = 0, 100
        while old:
            if new + old <= 100:
                new = min(100, new + self.max_surge_percent)
            else:
                old = max(0, old - self.max_surge_percent)
            yield new, old

    @property
    def surges(self) -> list[int]:
        """What the new Ray cluster gets each time; the last may be less than the others."""
        whole, rest = divmod(100, self.max_surge_percent)
        return [self.max_surge_percent] * whole + [rest] * bool(rest)

    @property
    def traffic_seconds(self) -> int:
        """How long the requests take to move, when the new replicas are always there already."""
        return sum(math.ceil(surge / self.step_size_percent) for surge in self.surges) * self.interval_seconds


class NoUpgrade(Strict):
    """The Ray cluster stays as it is, whatever changes, until somebody deletes it."""

    kind: Literal["None"] = "None"


Upgrade = Annotated[NewCluster | Incremental | NoUpgrade, Field(discriminator="kind")]


def replicas(most: int, capacity: int) -> int:
    """Replicas of a deployment that has `most` at full capacity: rounded half up, and one at least.

    As get_capacity_adjusted_num_replicas has it:
    https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/serve/_private/utils.py
    """
    return max(1, (most * capacity + 50) // 100) if capacity else 0

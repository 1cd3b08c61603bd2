"""Which instances hold the pods of a worker group.

instances.csv has the types that we know, with prices of us-east-1 on demand: hardware as DescribeInstanceTypes gives it
(moto 5.2.5, October 2026), prices from the table in Karpenter's AWS provider 1.14.1 (July 2026). offerings.csv has
those of them that a region has, as DescribeInstanceTypeOfferings gives it (moto 5.2.5).
"""

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

MEMORY_OVERHEAD = 0.075
"""Part of its memory that the machine itself keeps: Karpenter's estimate, its VM_MEMORY_OVERHEAD_PERCENT."""
MEMORY_RESERVED_GIB = 1.5
"""What a node sets aside for the kubelet, and the pods that are on each."""
CPUS_RESERVED = 1

FILE = Path(__file__).with_name("instances.csv")

_SHORT = {("A100", 40960): "A100-40G", ("A100", 81920): "A100-80G"}
"""Ray's names of GPUs which are not EC2's."""


class Instance(NamedTuple):
    type: str
    gpu: str | None
    """By Ray's name, as a placement's accelerator_type has it."""
    gpus: int
    gpu_memory_gib: float
    """Of each."""
    cpus: int
    memory_gib: float
    usd_per_hour: float

    def pods(self, cpus: float, gpus: int, memory_gib: float, to_a_gpu: int = 1) -> int:
        """How many pods of these limits it holds, of which so many share a GPU."""
        memory = self.memory_gib * (1 - MEMORY_OVERHEAD) - MEMORY_RESERVED_GIB
        by = [int((self.cpus - CPUS_RESERVED) // cpus), int(memory // memory_gib)]
        return max(0, min([*by, self.gpus * to_a_gpu // gpus] if gpus else by))


@cache
def known() -> tuple[Instance, ...]:
    """All of x86-64, as our images are, and without burstable ones, whose cores are there for a while only."""
    with FILE.open() as file:
        return tuple(
            Instance(
                row["instance_type"],
                _SHORT.get((row["gpu"], int(row["gpu_memory_mib"])), row["gpu"]) or None,
                int(row["gpu_count"]),
                int(row["gpu_memory_mib"]) / 1024,
                int(row["vcpus"]),
                int(row["memory_mib"]) / 1024,
                float(row["on_demand_usd_per_hour"]),
            )
            for row in csv.DictReader(file)
            if not row["instance_type"].startswith(("t3.", "m7g."))
        )


def suited(gpu: str | None, cpus: float, gpus: int, memory_gib: float) -> list[Instance]:
    """The types that hold a pod, the cheapest first; with GPUs, those with the fewest that do.

    A node of one pod goes when its pod does. One of eight GPUs with a pod of one is paid for by seven idle ones.
    """
    found = [instance for instance in known() if instance.gpu == gpu and instance.pods(cpus, gpus, memory_gib)]
    fewest = min((instance.gpus for instance in found), default=0)
    return sorted((instance for instance in found if instance.gpus == fewest), key=lambda found: found.usd_per_hour)


def gpu_memory_gib(gpu: str) -> float | None:
    """Memory of a GPU by Ray's name: the least that an instance's has; None where we know none with it."""
    return min((instance.gpu_memory_gib for instance in known() if instance.gpu == gpu), default=None)


@cache
def absent(region: str) -> frozenset[str]:
    """The types of instances.csv that a region has not; none where that is not known."""
    with Path(__file__).with_name("offerings.csv").open() as file:
        offered = {row["region"]: row["instance_types"].split() for row in csv.DictReader(file)}
    with FILE.open() as file:
        types = [row["instance_type"] for row in csv.DictReader(file)]
    return frozenset(types) - {*offered.get(region, types)}

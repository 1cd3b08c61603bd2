"""What Karpenter is told of nodes: for each worker group a NodePool, and the EC2NodeClass of its instances.

Ray decides about pods, Karpenter about nodes, and only about empty ones: a node that it found worth replacing would
take the model on it along. https://github.com/ray-project/kuberay/issues/4445
"""

from collections.abc import Iterator
from typing import Any

from infra import versions
from infra.aws.config import DISCOVERY, POOL, SYSTEM, EksCluster, Pool
from infra.aws.pools import IOPS, THROUGHPUT, instances, labels, most_nodes, taint, user_data
from infra.config import StackConfig, WorkerGroup

EMPTY_FOR = "10m"
"""How long a node waits for the next pod. A worker that Ray takes away may be missed minutes later, and starting a node
with images and weights takes longer than this."""


def node_pools(stack: StackConfig, eks: EksCluster) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Class and pool of each group whose nodes Karpenter starts."""
    for group in stack.workers:
        pool = group.pool or Pool()
        if pool.nodes == "karpenter":
            yield node_class(eks, group), node_pool(stack, group)


def node_class(eks: EksCluster, group: WorkerGroup) -> dict[str, Any]:
    """The EC2NodeClass: image, disks, network and role of a group's nodes."""
    pool = group.pool or Pool()
    disk = {
        "volumeType": "gp3",
        "volumeSize": f"{pool.disk_gib}Gi",
        "throughput": THROUGHPUT,
        "iops": IOPS,
        "encrypted": True,
        "deleteOnTermination": True,
    }
    found = [{"tags": {DISCOVERY: eks.name}}]
    reserved = [{"id": reservation} for reservation in pool.reservations]
    return {
        "apiVersion": "karpenter.k8s.aws/v1",
        "kind": "EC2NodeClass",
        "metadata": {"name": group.name},
        "spec": {
            # For nodes with GPUs Karpenter takes the same release's image with NVIDIA's driver.
            "amiSelectorTerms": [{"alias": f"al2023@{versions.EKS_AMI}"}],
            "role": eks.role("karpenter-nodes"),
            "subnetSelectorTerms": found,
            "securityGroupSelectorTerms": found,
            "blockDeviceMappings": [{"deviceName": "/dev/xvda", "ebs": disk}],
            # Images and scratch space on the instance's own disks, where it has any: they are faster than EBS.
            "instanceStorePolicy": "RAID0",
            "userData": user_data(raid=False),
            # One hop ends in the node: a pod cannot take the node's role.
            "metadataOptions": {"httpEndpoint": "enabled", "httpTokens": "required", "httpPutResponseHopLimit": 1},
            "tags": eks.all_tags,
            **({"capacityReservationSelectorTerms": reserved} if reserved else {}),
        },
    }


def node_pool(stack: StackConfig, group: WorkerGroup) -> dict[str, Any]:
    """The NodePool: which instances, as which capacity, for which pods, and how many at most."""
    pool = group.pool or Pool()
    types, nodes = instances(group), most_nodes(stack, group)
    requirements = {
        "kubernetes.io/arch": ["amd64"],
        "kubernetes.io/os": ["linux"],
        # Karpenter itself takes what is reserved first, then spot, then on demand.
        "karpenter.sh/capacity-type": pool.capacity,
        "node.kubernetes.io/instance-type": [instance.type for instance in types],
    }
    limits: dict[str, Any] = {"cpu": nodes * max(instance.cpus for instance in types)}
    if pool.gpu:
        requirements |= {
            "karpenter.k8s.aws/instance-gpu-name": [pool.gpu.split("-")[0].lower()],
            "karpenter.k8s.aws/instance-gpu-count": [str(types[0].gpus)],
        }
        limits = {"nvidia.com/gpu": nodes * types[0].gpus}
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {"name": group.name},
        "spec": {
            "template": {
                "metadata": {"labels": labels(group)},
                "spec": {
                    "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": group.name},
                    "requirements": [
                        {"key": key, "operator": "In", "values": values} for key, values in requirements.items()
                    ],
                    "taints": [taint(group)],
                    # A node is replaced when its image or its class changes, and not because it is old.
                    "expireAfter": "Never",
                },
            },
            "limits": limits,
            "disruption": {
                "consolidationPolicy": "WhenEmpty",
                "consolidateAfter": EMPTY_FOR,
                "budgets": [{"nodes": "1"}],
            },
        },
    }


def place(pod: dict[str, Any], stack: StackConfig, group: WorkerGroup | None) -> None:
    """Bind the pod template of a worker group to its nodes; that of the head, without a group, to the system's."""
    if not isinstance(stack.cluster, EksCluster):
        return
    pod["spec"]["nodeSelector"] = {POOL: group.name if group else SYSTEM}
    if group:
        pod["spec"]["tolerations"] = [{**taint(group), "operator": "Equal"}]

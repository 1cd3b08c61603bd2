"""Worker pods of each stack lead to nodes, by the real Karpenter. AWS is a fake, instances and nodes are simulated."""

import json
import re

import pytest

from infra import versions
from infra.aws.config import POOL, Pool
from infra.aws.pools import instances, taint
from infra.config import WorkerGroup
from infra.platform.karpenter import node_pool
from tests.aws.stacks import SERVICE
from tests.karpenter import simulation
from tests.karpenter.conftest import GPU, Object, Stack

INTERRUPTIONS = {
    "spot": ("EC2 Spot Instance Interruption Warning", {"instance-action": "terminate"}, "SpotInterrupted"),
    "on-demand": ("EC2 Instance State-change Notification", {"state": "shutting-down"}, "InstanceTerminating"),
}
"""How EventBridge tells that an instance goes, and Karpenter that it has heard."""
_UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def amount(quantity: str) -> float:
    """https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/"""
    number, unit = re.fullmatch(r"([\d.]+)(\D*)", quantity).groups()  # pyright: ignore[reportOptionalMemberAccess]
    return float(number) * _UNITS[unit]


def image(gpus: int) -> str:
    """Of the ledger's release, for nodes with GPUs or without: Karpenter chooses."""
    return f"amazon-eks-node-al2023-x86_64-{'nvidia' if gpus else 'standard'}-{versions.EKS}-{versions.EKS_AMI}"


def pool_of(group: WorkerGroup) -> Pool:
    return group.pool or Pool()


def instance_id(object_: Object) -> str:
    """Of a node or NodeClaim: the end of its provider id."""
    return (object_.get("spec", {}).get("providerID") or object_["status"]["providerID"]).rpartition("/")[2]


@pytest.fixture(scope="module")
def full(stack: Stack) -> Stack:
    """With all pods that it may have at one time."""
    stack.fill()
    stack.until(
        "every pod that the stack may have runs on a node",
        lambda: not any(stack.waiting(group) for group in stack.groups),
    )
    return stack


def test_karpenter_finds_what_the_program_made(stack: Stack) -> None:
    """By the tags and names that the EC2NodeClasses have."""
    network = stack.made["aws_eks_cluster.eks"]["vpc_config"][0]
    classes = {item["metadata"]["name"]: item["status"] for item in stack.kubernetes.get("ec2nodeclasses")["items"]}
    assert set(classes) == {group.name for group in stack.groups}
    for status in classes.values():
        assert {item["id"] for item in status["subnets"]} == set(network["subnet_ids"])
        assert [item["id"] for item in status["securityGroups"]] == [network["cluster_security_group_id"]]
        assert {item["name"] for item in status["amis"]} >= {image(gpus=0), image(gpus=1)}
        profile = stack.aws.client("iam").get_instance_profile(InstanceProfileName=status["instanceProfile"])
        assert [role["RoleName"] for role in profile["InstanceProfile"]["Roles"]] == [stack.eks.role("karpenter-nodes")]


def test_who_has_no_business_there_gets_no_node(stack: Stack) -> None:
    for group in stack.groups:
        known = stack.worker(group, "x")["spec"]
        of_another = {**known["nodeSelector"], "karpenter.k8s.aws/instance-gpu-name": "m60"}
        stack.apply(
            stack.worker(group, f"another-gpu-{group.name}", nodeSelector=of_another),
            stack.worker(group, f"another-pool-{group.name}", nodeSelector={POOL: "nobodys"}),
            stack.worker(group, f"intolerant-{group.name}", tolerations=[]),
        )
    for group in stack.groups:
        refused = {
            f"another-gpu-{group.name}": r"incompatible requirements.*instance-gpu-name In \[m60\]",
            f"another-pool-{group.name}": rf"incompatible requirements.*{POOL}.*nobodys",
            f"intolerant-{group.name}": rf"did not tolerate taint.*{taint(group)['key']}",
        }
        for pod, reason in refused.items():
            said = stack.until(f"Karpenter refuses {pod}", lambda pod=pod: stack.said("Pod", pod, "FailedScheduling"))
            assert re.search(reason, said), said
        stack.delete("pods", *refused)
    assert stack.claims() == {}


def test_every_pod_gets_a_node_of_its_groups_kinds(full: Stack) -> None:
    for group in full.groups:
        nodes = full.nodes(group)
        assert {pod["spec"]["nodeName"] for pod in full.pods(group)} == set(nodes)
        types = {instance.type for instance in instances(group)}
        for node in nodes.values():
            labels, room = node["metadata"]["labels"], node["status"]["allocatable"]
            assert labels["node.kubernetes.io/instance-type"] in types
            assert labels["karpenter.sh/capacity-type"] == pool_of(group).capacity[0]
            assert labels["topology.kubernetes.io/zone"] in full.eks.zones
            # infra/aws/instances.py estimates by itself what a machine has left for pods.
            assert amount(room["cpu"]) >= group.cpus
            assert amount(room["memory"]) >= group.memory_gib * 2**30
            assert int(room[GPU]) >= group.gpus


def test_instances_are_what_the_classes_say(full: Stack) -> None:
    """But for their tags, which the simulation loses when Karpenter adds one."""
    found = simulation.instances(full.kubernetes)
    for group in full.groups:
        (status,) = [
            item["status"]
            for item in full.kubernetes.get("ec2nodeclasses")["items"]
            if item["metadata"]["name"] == group.name
        ]
        images = {item["id"]: item["name"] for item in status["amis"]}
        for node in full.nodes(group).values():
            instance = found[instance_id(node)]
            assert images[instance["ImageId"]] == image(group.gpus)
            assert instance["SubnetId"] in {item["id"] for item in status["subnets"]}
            assert [item["GroupId"] for item in instance["SecurityGroups"]] == [status["securityGroups"][0]["id"]]
            assert instance["IamInstanceProfile"]["Id"] == status["instanceProfile"]
            assert instance["MetadataOptions"]["HttpTokens"] == "required"
            assert instance["MetadataOptions"]["HttpPutResponseHopLimit"] == 1


def test_the_next_pod_is_beyond_the_limit(full: Stack) -> None:
    """The limit of a pool is what its group may have, and not a GPU more or less. A placeholder gives way."""
    for group in full.groups:
        (resource, limit), *_ = node_pool(full.config, group)["spec"]["limits"].items()
        before = full.nodes(group)
        assert sum(amount(node["status"]["capacity"][resource]) for node in before.values()) == limit
        full.apply(full.worker(group, f"{group.name}-next"))
        reason = f"all available instance types exceed limits for nodepool (NodePool={group.name})"
        loser = f"{SERVICE}-warm-{group.name}" if pool_of(group).warm else f"{group.name}-next"
        over = full.until(
            f"there is no room for {loser}",
            lambda group=group, loser=loser, reason=reason: [
                pod
                for pod in full.waiting(group)
                if pod.startswith(loser) and reason in full.said("Pod", pod, "FailedScheduling")
            ],
        )
        assert full.waiting(group) == over
        assert set(full.nodes(group)) == set(before)


def test_an_interruption_drains_its_node(full: Stack) -> None:
    """AWS' word goes the program's way: a rule of EventBridge, the queue, Karpenter. The next pod gets the room."""
    for group in full.groups:
        claim = next(item for item in full.claims().values() if item["metadata"]["labels"][POOL] == group.name)
        node, name = claim["status"]["nodeName"], claim["metadata"]["name"]
        on_it = {pod["metadata"]["uid"] for pod in full.pods(group) if pod["spec"].get("nodeName") == node}
        kind, detail, reason = INTERRUPTIONS["spot" if "spot" in pool_of(group).capacity else "on-demand"]
        answer = full.aws.client("events").put_events(
            Entries=[
                {
                    "Source": "aws.ec2",
                    "DetailType": kind,
                    "Detail": json.dumps({"instance-id": instance_id(claim), **detail}),
                }
            ]
        )
        assert answer["FailedEntryCount"] == 0
        full.until(f"the interrupted node of {group.name} goes", lambda name=name: name not in full.claims())
        assert full.said("NodeClaim", name, reason)
        assert node not in full.nodes(group)
        assert not on_it & {pod["metadata"]["uid"] for pod in full.pods(group)}
        full.until(f"its room goes to the pod of {group.name} that waits", lambda group=group: not full.waiting(group))


def test_empty_nodes_go_and_no_other(full: Stack) -> None:
    """Karpenter waits shorter here than the program tells it to."""
    groups = full.groups
    full.delete("deployments", "--all")
    for group in groups:
        full.delete("pods", *full.waiting(group))
        full.delete("pods", full.pods(group)[0]["metadata"]["name"])
    pods = {pod["metadata"]["uid"]: pod["spec"]["nodeName"] for group in groups for pod in full.pods(group)}
    assert all(set(full.nodes(group)) - set(pods.values()) for group in groups)
    for group in groups:
        shorter = json.dumps({"spec": {"disruption": {"consolidateAfter": "1s"}}})
        full.kubernetes("patch", "nodepool", group.name, "--type=merge", f"--patch={shorter}")
    full.until(
        "empty nodes go",
        lambda: {node for group in groups for node in full.nodes(group)} <= set(pods.values()),
    )
    assert {node for group in groups for node in full.nodes(group)} == set(pods.values())
    assert {pod["metadata"]["uid"] for group in groups for pod in full.pods(group)} == set(pods)


def test_with_the_pools_everything_goes(full: Stack) -> None:
    full.remove()
    assert full.claims() == {}
    assert full.kubernetes.get("nodes", f"--selector={simulation.NODES}")["items"] == []
    full.until("no instance is left", lambda: not simulation.instances(full.kubernetes))
    assert "instance profiles" not in full.aws.has()

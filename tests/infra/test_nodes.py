"""What a cluster on AWS gets by charts, under Pulumi's mocks."""

from typing import Any

import pulumi
import pytest
import yaml

from infra import versions
from infra.aws.config import EksCluster
from infra.aws.pools import instances, labels, most_nodes
from infra.config import PROJECT, StackConfig
from infra.platform.karpenter import node_pool
from infra.platform.nodes import Nodes
from infra.platform.secrets import ExternalSecrets
from tests.infra.made_up import FROM_HUB, GPUS, NAME, REGION, SMALL, Resource, eks_stack, registering

MANAGED = {**GPUS, "pool": {"gpu": "L4", "nodes": "managed"}}


def register(stack: StackConfig) -> dict[str, Resource]:
    def program() -> None:
        assert isinstance(stack.cluster, EksCluster)
        Nodes("nodes", stack, stack.cluster, pulumi.ResourceOptions())
        ExternalSecrets("secrets", stack, stack.cluster, pulumi.ResourceOptions())

    return registering(program)


def release(registered: dict[str, Resource], name: str) -> dict[str, Any]:
    return registered[f"Release/{name}"].inputs


def test_karpenter_comes_after_its_crds_and_before_what_it_reads() -> None:
    registered = register(eks_stack())
    crds = registered["ConfigGroup/karpenter-crds"].inputs["objs"]
    assert {"nodepools.karpenter.sh", "ec2nodeclasses.karpenter.k8s.aws"} < {crd["metadata"]["name"] for crd in crds}
    for crd in crds:
        assert crd["metadata"]["annotations"]["pulumi.com/patchFieldManager"] == f"{PROJECT}-test"
    assert "ConfigGroup/karpenter-crds" in registered["Release/karpenter"].after
    assert "Release/karpenter" in registered["EC2NodeClass/l4-ec2nodeclass"].after
    assert "EC2NodeClass/l4-ec2nodeclass" in registered["NodePool/l4-nodepool"].after


def test_karpenter_is_the_ledgers_and_finds_cluster_queue_and_role() -> None:
    karpenter = release(register(eks_stack()), "karpenter")
    assert karpenter["chart"] == "oci://public.ecr.aws/karpenter/karpenter"
    assert (karpenter["version"], karpenter["skipCrds"]) == (versions.KARPENTER, True)
    values = karpenter["values"]
    assert values["settings"] == {"clusterName": NAME, "interruptionQueue": NAME}
    assert (karpenter["namespace"], values["serviceAccount"]["name"]) == ("kube-system", "karpenter")
    assert values["nodeSelector"] == {"blueprint/pool": "system"}


@pytest.mark.parametrize(("nodes", "replicas"), [({}, 2), ({"min": 1, "max": 2}, 1)])
def test_karpenter_has_as_many_replicas_as_there_are_nodes_for_it(nodes: dict[str, int], replicas: int) -> None:
    assert release(register(eks_stack(nodes=nodes)), "karpenter")["values"]["replicas"] == replicas


def test_the_device_plugin_is_the_ledgers() -> None:
    plugin = release(register(eks_stack()), "nvidia-device-plugin")
    assert plugin["chart"] == "nvidia-device-plugin"
    assert plugin["repositoryOpts"] == {"repo": "https://nvidia.github.io/k8s-device-plugin"}
    assert plugin["version"] == versions.NVIDIA_DEVICE_PLUGIN


@pytest.mark.parametrize(("by", "key"), [("time-slicing", "timeSlicing"), ("mps", "mps")])
def test_a_group_that_shares_gpus_has_its_own_configuration_of_the_plugin(by: str, key: str) -> None:
    share = {"by": by, "replicas": 4}
    small = {**GPUS, "cpus": 1, "memory_gib": 6, "pool": {"gpu": "L4", "nodes": "managed", "share": share}}
    stack = eks_stack(small, {**GPUS, "name": "whole"}, serving=SMALL)
    config = release(register(stack), "nvidia-device-plugin")["values"]["config"]
    assert (set(config["map"]), config["default"]) == ({"default", "l4"}, "default")
    found = yaml.safe_load(config["map"]["l4"])
    assert found == {"version": "v1", "sharing": {key: {"resources": [{"name": "nvidia.com/gpu", "replicas": 4}]}}}
    shared, whole = (labels(group) for group in stack.workers)
    assert shared["nvidia.com/device-plugin.config"] == "l4"
    assert ("nvidia.com/mps.capable" in shared) is (by == "mps")
    assert "nvidia.com/device-plugin.config" not in whole


def test_pods_that_share_a_gpu_share_a_node() -> None:
    """Four pods and four of an upgrade, on machines with room for all four that share."""
    share = {"replicas": 4}
    small = {**GPUS, "cpus": 1, "memory_gib": 6, "pool": {"gpu": "L4", "nodes": "managed", "share": share}}
    stack = eks_stack(small, serving=SMALL)
    (group,) = stack.workers
    assert most_nodes(stack, group) == 2
    assert instances(group)[0].type == "g6.2xlarge", "a g6.xlarge has a GPU for them, and no memory"
    assert "config" not in release(register(eks_stack()), "nvidia-device-plugin")["values"]


def test_the_exporter_runs_where_gpus_are() -> None:
    exporter = release(register(eks_stack()), "dcgm-exporter")
    assert exporter["version"] == versions.DCGM_EXPORTER
    values, pool = exporter["values"], node_pool(eks_stack(), eks_stack().workers[0])["spec"]["template"]
    assert values["nodeSelector"].items() <= pool["metadata"]["labels"].items()
    (toleration,), (taint,) = values["tolerations"], pool["spec"]["taints"]
    assert toleration == {"key": taint["key"], "operator": "Exists", "effect": taint["effect"]}
    assert values["serviceMonitor"] == {"enabled": False}, (
        "without Prometheus' operator the chart could not be installed"
    )


def test_external_secrets_has_the_account_of_its_role_and_runs_restricted() -> None:
    registered = register(eks_stack())
    secrets, namespace = release(registered, "external-secrets"), registered["Namespace/external-secrets"].inputs
    assert (secrets["version"], secrets["namespace"]) == (versions.EXTERNAL_SECRETS, namespace["metadata"]["name"])
    assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    assert "Namespace/external-secrets" in registered["Release/external-secrets"].after
    values = secrets["values"]
    assert values["installCRDs"] is True, "they are templates of the chart, and skipCrds does not concern them"
    # Of the role that tests/infra/test_aws.py knows.
    assert values["serviceAccount"] == {"name": "external-secrets"}
    assert values["global"]["nodeSelector"] == {"blueprint/pool": "system"}


def test_the_store_is_the_clusters_region_and_opens_for_the_namespaces_of_the_stack_alone() -> None:
    stack = eks_stack()
    registered = register(stack)
    made = registered["ClusterSecretStore/secrets-store"]
    assert "Release/external-secrets" in made.after, "which brings its CRD, and reads it"
    assert made.inputs["spec"]["provider"] == {"aws": {"service": "SecretsManager", "region": REGION}}
    assert made.inputs["spec"]["conditions"] == [{"namespaces": [stack.namespace, stack.monitoring_namespace]}]


def test_charts_and_images_may_come_from_mirrors() -> None:
    mirrors = {"charts": "oci://mirror.example.com/charts", "images": "mirror.example.com:5000/images"}
    registered = register(eks_stack(mirrors=mirrors))
    karpenter, plugin = release(registered, "karpenter"), release(registered, "nvidia-device-plugin")
    assert karpenter["chart"] == "oci://mirror.example.com/charts/karpenter"
    assert plugin["chart"] == "oci://mirror.example.com/charts/nvidia-device-plugin"
    assert "repositoryOpts" not in plugin
    image = karpenter["values"]["controller"]["image"]["repository"]
    assert image == "mirror.example.com:5000/images/karpenter/controller"
    assert plugin["values"]["image"]["repository"] == "mirror.example.com:5000/images/nvidia/k8s-device-plugin"
    own = {"repository": "mirror.example.com:5000/images/external-secrets/external-secrets"}
    secrets = release(registered, "external-secrets")["values"]
    assert [part["image"] for part in (secrets, secrets["webhook"], secrets["certController"])] == [own] * 3


def test_nothing_is_installed_that_has_nothing_to_do() -> None:
    assert "Release/karpenter" not in register(eks_stack(MANAGED))
    cpu = {"name": "cpu", "cpus": 2, "memory_gib": 12}
    registered = register(eks_stack(cpu, serving=FROM_HUB))
    assert not {"Release/nvidia-device-plugin", "Release/dcgm-exporter"} & registered.keys()
    assert "NodePool/cpu-nodepool" in registered

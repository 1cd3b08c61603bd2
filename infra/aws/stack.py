"""The AWS half of a stack: config → components → what the Kubernetes half needs of them."""

import pulumi
import pulumi_aws as aws
import pulumi_kubernetes as kubernetes

from app.settings import weights
from infra.aws.cache import Cache
from infra.aws.cluster import Addons, Cluster
from infra.aws.config import EksCluster
from infra.aws.entry import Entry
from infra.aws.identity import BALANCER, SECRETS, PodRole, read_secrets, read_weights, register_pods, start_nodes
from infra.aws.network import Network
from infra.aws.nodes import KARPENTER_ACCOUNT, Karpenter, SystemNodes, WorkerNodes
from infra.aws.storage import Storage
from infra.config import StackConfig
from infra.serving.access import account_name


class Aws(pulumi.ComponentResource):
    """Network, cluster, nodes, storage, identity; with it done, pods can run."""

    cluster: Cluster
    storage: Storage
    karpenter: Karpenter
    cache: Cache | None
    entry: Entry | None
    network: Network

    def __init__(self, name: str, stack: StackConfig, eks: EksCluster, service: str) -> None:
        """`service` is the name of the RayService whose pods read the weights."""
        provider = aws.Provider(
            name,
            region=eks.region,
            # Credentials of another account end here, before anything is created there.
            allowed_account_ids=[eks.account],
            default_tags={"tags": eks.all_tags},
        )
        super().__init__("blueprint:aws:Aws", name, None, pulumi.ResourceOptions(provider=provider))
        self._eks = eks
        child = pulumi.ResourceOptions(parent=self)
        self.network = network = Network("network", eks, child)
        self.storage = Storage("storage", eks, child)
        self.cluster = Cluster("eks", eks, network, child)
        # Nodes without a way out cannot join, and without CNI and proxy do not become ready.
        ready = pulumi.ResourceOptions(parent=self, depends_on=[network, self.cluster])
        nodes = SystemNodes("system", eks, network, self.cluster, ready)
        Addons("addons", eks, self.cluster, pulumi.ResourceOptions(parent=self, depends_on=[nodes]))
        managed = [group for group in stack.workers if group.pool and group.pool.nodes == "managed"]
        if managed:
            WorkerNodes("workers", stack, managed, eks, network, self.cluster, ready)
        self.karpenter = Karpenter("karpenter-aws", eks, self.cluster, child)
        self.cache = eks.cache and Cache("valkey", eks, eks.cache, network, self.cluster, self.storage.key, child)
        # A load balancer in subnets that the internet does not reach would not be public.
        routed = pulumi.ResourceOptions(parent=self, depends_on=[network])
        self.entry = eks.entry and Entry("entry", eks, eks.entry, network, self.cluster, routed)
        self._identities(stack, eks, service)
        self.register_outputs({"cluster": self.cluster.name, "bucket": self.storage.bucket})

    def _identities(self, stack: StackConfig, eks: EksCluster, service: str) -> None:
        """Roles of the workloads. Those of the add-ons are with them."""
        child, cluster = pulumi.ResourceOptions(parent=self), self.cluster.name
        start = start_nodes(eks, self.karpenter.node_role.arn, self.karpenter.queue.arn)
        PodRole("karpenter", eks, cluster, "kube-system", [KARPENTER_ACCOUNT], start, child)
        if self.entry:
            register = register_pods(self.entry.target_group)
            PodRole("load-balancers", eks, cluster, "kube-system", [BALANCER], register, child)
        PodRole("external-secrets", eks, cluster, SECRETS, [SECRETS], read_secrets(eks), child)
        sources = [model.source for _, model in weights(stack.serving) if model.source.startswith("s3://")]
        if sources:
            # The head as well: it builds the applications, and looks at the models' configurations for that.
            ray = [account_name(service, role) for role in ("head", "worker")]
            PodRole("ray", eks, cluster, stack.namespace, ray, read_weights(sources, self.storage.key), child)

    @property
    def outputs(self) -> dict[str, pulumi.Input[str]]:
        """What one needs to know for the steps that are not Pulumi's."""
        return {
            "kubeconfig": self._eks.update_kubeconfig,
            "repository": self.storage.repository,
            "weights": pulumi.Output.concat("s3://", self.storage.bucket),
            **({"load_balancer": self.entry.address} if self.entry else {}),
        }

    def kubernetes(self) -> kubernetes.Provider:
        """The provider for the cluster: when nodes and rights are there, and not before."""
        after = pulumi.ResourceOptions(depends_on=[self])
        return kubernetes.Provider("cluster", kubeconfig=self.kubeconfig, opts=after)

    @property
    def kubeconfig(self) -> pulumi.Output[str]:
        """For who runs Pulumi, by their own AWS credentials: there are none in it, and so none in the state."""
        arguments = ["eks", "get-token", "--cluster-name", self.cluster.name, "--region", self._eks.region]
        command = {"apiVersion": "client.authentication.k8s.io/v1", "command": "aws", "args": arguments}
        server = {"server": self.cluster.endpoint, "certificate-authority-data": self.cluster.certificate}
        return pulumi.Output.json_dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "eks", "cluster": server}],
                "users": [{"name": "aws", "user": {"exec": {**command, "interactiveMode": "Never"}}}],
                "contexts": [{"name": "eks", "context": {"cluster": "eks", "user": "aws"}}],
                "current-context": "eks",
            }
        )

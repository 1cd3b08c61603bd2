"""The Kubernetes provider of a stack: always explicit, so no resource lands on whatever context is current."""

import pulumi_kubernetes as kubernetes

from infra.config import ExistingCluster, NativeCluster


def provider(cluster: NativeCluster | ExistingCluster) -> kubernetes.Provider:
    # The path, not the content: the state must not carry cluster credentials.
    return kubernetes.Provider("cluster", kubeconfig=str(cluster.kubeconfig_path), context=cluster.context)

"""Endpoints of AWS services that the internet reaches."""

from collections.abc import Collection, Iterator

from infra.policy.resources import UNKNOWN, Resource


def public_endpoint(resource: Resource, stacks: Collection[str]) -> Iterator[str]:
    """A Kubernetes API with a public endpoint, which EKS gives it unless told otherwise, in one of these stacks."""
    if resource.kind != "aws:eks/cluster:Cluster" or resource.stack not in stacks:
        return
    if resource.at("vpcConfig", "endpointPublicAccess") not in (False, UNKNOWN):
        yield (
            "vpcConfig.endpointPublicAccess = true: stolen credentials, or a hole in the API server, are enough to get "
            "into production from outside; fix: leave cluster.public_cidrs out of the stack file, and run Pulumi where "
            "the VPC is reached"
        )

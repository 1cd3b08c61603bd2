"""What AWS would say of what the program creates, for Pulumi's mocks: names, as one can tell them apart in a test."""

from typing import Any

SECURITY_GROUP = "sg-of-the-cluster"


def outputs(kind: str, name: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs and outputs of a resource; of other providers' the inputs."""
    if not kind.startswith("aws:"):
        return inputs
    short = kind.rpartition(":")[2]
    made: dict[str, Any] = {"arn": f"arn:{short}:{name}", "name": f"{name}-name", "url": f"https://{short}/{name}"}
    if short == "Cluster":
        made |= {"endpoint": "https://eks.example.com", "certificateAuthority": {"data": "Y2E="}}
        inputs = {**inputs, "vpcConfig": {**inputs["vpcConfig"], "clusterSecurityGroupId": SECURITY_GROUP}}
    if short == "LaunchTemplate":
        made["latestVersion"] = 1
    if short == "Repository":
        made["repositoryUrl"] = f"registry.example.com/{inputs['name']}"
    if short == "LoadBalancer":
        made["dnsName"] = "entry.example.com"
    if short == "ReplicationGroup":
        made["primaryEndpointAddress"] = "valkey.example.com"
    return {**made, **inputs}

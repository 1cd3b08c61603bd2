"""Encryption: of what is stored, always; on the way where a service has it off by default."""

from collections.abc import Iterator
from typing import Any

from infra.policy.resources import UNKNOWN, Resource, at, objects

_SWITCHES = {
    "aws:ebs/volume:Volume": ("encrypted",),
    "aws:efs/fileSystem:FileSystem": ("encrypted",),
    "aws:elasticache/replicationGroup:ReplicationGroup": ("atRestEncryptionEnabled", "transitEncryptionEnabled"),
    "aws:rds/cluster:Cluster": ("storageEncrypted",),
    "aws:rds/instance:Instance": ("storageEncrypted",),
}
"""Properties that are off unless they are set."""


def unencrypted(resource: Resource) -> Iterator[str]:
    """What a resource would store in the clear, or under a key that one cannot take away."""
    for place, value in _places(resource):
        # Booleans in launch templates and storage classes are strings.
        if value is not UNKNOWN and str(value).lower() in ("none", "false", "", "aes256"):
            yield (
                f"{place} = {value}: is readable by whoever gets at the disk, the snapshot or the network behind it; "
                "fix: set it, and a KMS key where it takes one"
            )


def _places(resource: Resource) -> Iterator[tuple[str, Any]]:
    for switch in _SWITCHES.get(resource.kind, ()):
        yield switch, resource.at(switch)
    if resource.kind == "aws:sqs/queue:Queue":
        yield "sqsManagedSseEnabled", resource.at("sqsManagedSseEnabled") or resource.at("kmsMasterKeyId")
    if resource.kind == "aws:eks/cluster:Cluster":
        # Of the Secrets in etcd.
        yield "encryptionConfig.provider.keyArn", resource.at("encryptionConfig", "provider", "keyArn")
    if resource.kind == "aws:ecr/repository:Repository":
        (configuration,) = objects(resource.at("encryptionConfigurations")) or [{}]
        yield "encryptionConfigurations.encryptionType", configuration.get("encryptionType")
    if resource.kind.startswith("aws:s3/bucketServerSideEncryptionConfiguration"):
        for rule in objects(resource.at("rules")):
            default = "applyServerSideEncryptionByDefault"
            yield f"rules.{default}.sseAlgorithm", at(rule, default, "sseAlgorithm")
    if resource.kind == "aws:ec2/launchTemplate:LaunchTemplate":
        for device in objects(resource.at("blockDeviceMappings")):
            yield "blockDeviceMappings.ebs.encrypted", at(device, "ebs", "encrypted")
    if resource.is_kubernetes("EC2NodeClass"):
        for device in objects(resource.at("spec", "blockDeviceMappings")):
            yield "spec.blockDeviceMappings.ebs.encrypted", at(device, "ebs", "encrypted")
    if resource.is_kubernetes("StorageClass") and resource.at("provisioner") == "ebs.csi.aws.com":
        yield "parameters.encrypted", resource.at("parameters", "encrypted")

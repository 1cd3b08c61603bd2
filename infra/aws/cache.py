"""A Valkey by ElastiCache, for the Ray head's state and what the gateway's replicas count together."""

import secrets

import pulumi
import pulumi_aws as aws

from infra.aws.cluster import Cluster
from infra.aws.config import Cache as Config
from infra.aws.config import EksCluster
from infra.aws.network import Network

PORT = 6379


class Cache(pulumi.ComponentResource):
    """One shard, as Ray's GCS needs it, with TLS and a password."""

    address: pulumi.Output[str]
    """rediss://<host>:<port>"""
    password: pulumi.Output[str]

    def __init__(
        self,
        name: str,
        eks: EksCluster,
        config: Config,
        network: Network,
        cluster: Cluster,
        key: pulumi.Output[str],
        opts: pulumi.ResourceOptions,
    ) -> None:
        super().__init__("blueprint:aws:Cache", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        # The first one stays, or every `up` would make another.
        password = pulumi.Output.secret(secrets.token_hex(32))
        group = aws.ec2.SecurityGroup(
            name,
            description="Valkey, from the cluster's nodes and pods",
            vpc_id=network.vpc_id,
            ingress=[
                {
                    "description": "Valkey from the cluster",
                    "protocol": "tcp",
                    "from_port": PORT,
                    "to_port": PORT,
                    "security_groups": [cluster.security_group],
                }
            ],
            tags={"Name": f"{eks.name}-valkey"},
            opts=child,
        )
        subnets = aws.elasticache.SubnetGroup(
            name, name=f"{eks.name}-valkey", subnet_ids=network.private_subnets, opts=child
        )
        valkey = aws.elasticache.ReplicationGroup(
            name,
            replication_group_id=f"{eks.name}-valkey",
            description=f"State of the Ray head, and counts of the gateway, of {eks.name}",
            engine="valkey",
            engine_version="8.0",
            node_type=config.node_type,
            num_cache_clusters=config.nodes,
            automatic_failover_enabled=config.nodes > 1,
            multi_az_enabled=config.nodes > 1,
            port=PORT,
            subnet_group_name=subnets.name,
            security_group_ids=[group.id],
            transit_encryption_enabled=True,
            at_rest_encryption_enabled=True,
            kms_key_id=key,
            auth_token=password,
            # The head's state is worth as much as the Ray cluster that it describes, which a day ends.
            snapshot_retention_limit=1,
            opts=pulumi.ResourceOptions(parent=self, protect=eks.deletion_protection, ignore_changes=["authToken"]),
        )
        self.address = pulumi.Output.concat("rediss://", valkey.primary_endpoint_address, f":{PORT}")
        self.password = pulumi.Output.secret(valkey.auth_token.apply(lambda token: token or ""))
        self.register_outputs({"address": self.address})

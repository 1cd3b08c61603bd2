"""The way in: a network load balancer in front of the models.

Pulumi makes it, and the Load Balancer Controller only registers the pods with it, by a TargetGroupBinding to KubeRay's
Service (infra/platform/entry.py). So its address is an output, and it goes with the stack, which what a Service of type
LoadBalancer makes does not always. A Service of ours would not know which of an upgrade's two Ray clusters serves, and
KubeRay's own takes the annotations of a `serveService` once and never changes them.
https://github.com/ray-project/kuberay/blob/v1.6.2/ray-operator/controllers/ray/rayservice_controller.go
"""

import pulumi
import pulumi_aws as aws

from infra.aws.cluster import Cluster
from infra.aws.config import EksCluster
from infra.aws.config import Entry as Config
from infra.aws.network import Network
from infra.serving.pods import SERVE_PORT

PRIVATE = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]
"""Who may be joined to the VPC. Who is, routes decide."""
TLS = "ELBSecurityPolicy-TLS13-1-2-2021-06"
"""TLS 1.2 and 1.3: https://docs.aws.amazon.com/elasticloadbalancing/latest/network/describe-ssl-policies.html"""


class Entry(pulumi.ComponentResource):
    """Load balancer, listener, and the target group in which the pods will be."""

    address: pulumi.Output[str]
    """The load balancer's own name."""
    url: pulumi.Output[str]
    """By which clients call it."""
    target_group: pulumi.Output[str]
    """Its ARN."""

    def __init__(
        self,
        name: str,
        eks: EksCluster,
        entry: Config,
        network: Network,
        cluster: Cluster,
        opts: pulumi.ResourceOptions,
    ) -> None:
        super().__init__("blueprint:aws:Entry", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        port = 443 if entry.certificate else 80
        balancer = aws.lb.LoadBalancer(
            name,
            name=f"{eks.name}-entry",
            load_balancer_type="network",
            internal=not entry.public,
            # Beside it there is only NAT in these, so a network policy can name it by them, also when it is internal.
            subnets=network.public_subnets,
            security_groups=[self._group(name, eks, entry, network, cluster, port)],
            # The pods may all be in one zone.
            enable_cross_zone_load_balancing=True,
            # A public one is another one, and a target group belongs to one only.
            opts=pulumi.ResourceOptions(parent=self, delete_before_replace=True),
        )
        targets = aws.lb.TargetGroup(
            name,
            name=f"{eks.name}-serve",
            vpc_id=network.vpc_id,
            target_type="ip",
            protocol="TCP",
            port=SERVE_PORT,
            # Network policies would not let the clients' own addresses in.
            preserve_client_ip="false",
            # Ray's proxy answers it itself, and not while it drains. As soon as it goes: KubeRay's Service leads to the
            # next Ray cluster all at once, and until its pods are healthy nobody takes new connections.
            health_check={
                "protocol": "HTTP",
                "path": "/-/healthz",
                "interval": 5,
                "timeout": 3,
                "healthy_threshold": 2,
                "unhealthy_threshold": 3,
            },
            # A proxy that drains still has streams to end.
            target_health_states=[{"enable_unhealthy_connection_termination": False}],
            opts=child,
        )
        aws.lb.Listener(
            name,
            load_balancer_arn=balancer.arn,
            port=port,
            protocol="TLS" if entry.certificate else "TCP",
            certificate_arn=entry.certificate,
            ssl_policy=TLS if entry.certificate else None,
            default_actions=[{"type": "forward", "target_group_arn": targets.arn}],
            opts=child,
        )
        self.address, self.target_group = balancer.dns_name, targets.arn
        base = pulumi.Output.concat("http://", balancer.dns_name)
        self.url = pulumi.Output.from_input(f"https://{entry.host}") if entry.host else base
        self.register_outputs({"address": self.address})

    def _group(
        self, name: str, eks: EksCluster, entry: Config, network: Network, cluster: Cluster, port: int
    ) -> pulumi.Output[str]:
        """The load balancer's security group: from clients, to the pods, which it opens for it."""
        child = pulumi.ResourceOptions(parent=self)
        group = aws.ec2.SecurityGroup(
            name,
            description="From clients to the models",
            vpc_id=network.vpc_id,
            ingress=[
                {
                    "description": "Clients",
                    "protocol": "tcp",
                    "from_port": port,
                    "to_port": port,
                    "cidr_blocks": ["0.0.0.0/0"] if entry.public else PRIVATE,
                }
            ],
            egress=[
                {
                    "description": "Ray Serve",
                    "protocol": "tcp",
                    "from_port": SERVE_PORT,
                    "to_port": SERVE_PORT,
                    "security_groups": [cluster.security_group],
                }
            ],
            tags={"Name": f"{eks.name}-entry"},
            opts=child,
        )
        aws.vpc.SecurityGroupIngressRule(
            name,
            security_group_id=cluster.security_group,
            description="Ray Serve from the load balancer",
            ip_protocol="tcp",
            from_port=SERVE_PORT,
            to_port=SERVE_PORT,
            referenced_security_group_id=group.id,
            opts=child,
        )
        return group.id

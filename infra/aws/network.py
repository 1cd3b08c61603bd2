"""The VPC: private subnets for nodes and pods, public ones for load balancers and NAT, in three zones."""

import pulumi
import pulumi_aws as aws

from infra.aws.config import DISCOVERY, EksCluster
from infra.aws.policy import allow, document, trusted


class Network(pulumi.ComponentResource):
    """VPC, subnets, routes, endpoints, flow logs."""

    vpc_id: pulumi.Output[str]
    private_subnets: list[pulumi.Output[str]]
    public_subnets: list[pulumi.Output[str]]

    def __init__(self, name: str, eks: EksCluster, opts: pulumi.ResourceOptions) -> None:
        super().__init__("blueprint:aws:Network", name, None, opts)
        self._name, self._eks, self._opts = name, eks, pulumi.ResourceOptions(parent=self)
        self._vpc = aws.ec2.Vpc(
            name,
            cidr_block=eks.network.cidr,
            # Both are what private names of endpoints and EKS's private API need.
            enable_dns_support=True,
            enable_dns_hostnames=True,
            tags={"Name": eks.name},
            opts=self._opts,
        )
        # Whatever forgets to name a security group gets this one, which lets nothing through.
        aws.ec2.DefaultSecurityGroup(f"{name}-default", vpc_id=self._vpc.id, opts=self._opts)
        public = self._subnets("public", eks.network.public, {"kubernetes.io/role/elb": "1"})
        internal = {"kubernetes.io/role/internal-elb": "1", DISCOVERY: eks.name}
        private = self._subnets("private", eks.network.private, internal)
        tables = self._routes(public, private)
        self._endpoints(private, tables)
        self._flow_logs()
        self.vpc_id = self._vpc.id
        self.private_subnets = [subnet.id for subnet in private]
        self.public_subnets = [subnet.id for subnet in public]
        self.register_outputs({"vpc_id": self.vpc_id, "private_subnets": self.private_subnets})

    def _subnets(self, kind: str, cidrs: list[str], tags: dict[str, str]) -> list[aws.ec2.Subnet]:
        return [
            aws.ec2.Subnet(
                f"{self._name}-{kind}-{zone[-1]}",
                vpc_id=self._vpc.id,
                availability_zone=zone,
                cidr_block=cidr,
                tags={"Name": f"{self._eks.name}-{kind}-{zone[-1]}", **tags},
                opts=self._opts,
            )
            for zone, cidr in zip(self._eks.zones, cidrs, strict=True)
        ]

    def _routes(self, public: list[aws.ec2.Subnet], private: list[aws.ec2.Subnet]) -> list[aws.ec2.RouteTable]:
        """Ways out: of public subnets by the internet gateway, of private ones by NAT. Returns the private tables."""
        gateway = aws.ec2.InternetGateway(
            self._name, vpc_id=self._vpc.id, tags={"Name": self._eks.name}, opts=self._opts
        )
        table = self._table("public", public)
        aws.ec2.Route(
            f"{self._name}-public",
            route_table_id=table.id,
            destination_cidr_block="0.0.0.0/0",
            gateway_id=gateway.id,
            opts=self._opts,
        )
        nats = []
        for subnet, zone in list(zip(public, self._eks.zones, strict=True))[: self._redundancy]:
            label = f"{self._name}-nat-{zone[-1]}"
            tags = {"Name": f"{self._eks.name}-nat-{zone[-1]}"}
            address = aws.ec2.Eip(label, domain="vpc", tags=tags, opts=self._opts)
            after = pulumi.ResourceOptions(parent=self, depends_on=[gateway])
            nats.append(aws.ec2.NatGateway(label, allocation_id=address.id, subnet_id=subnet.id, tags=tags, opts=after))
        tables = []
        for index, (subnet, zone) in enumerate(zip(private, self._eks.zones, strict=True)):
            tables.append(self._table(f"private-{zone[-1]}", [subnet]))
            aws.ec2.Route(
                f"{self._name}-private-{zone[-1]}",
                route_table_id=tables[-1].id,
                destination_cidr_block="0.0.0.0/0",
                nat_gateway_id=nats[index % len(nats)].id,
                opts=self._opts,
            )
        return tables

    @property
    def _redundancy(self) -> int:
        """In how many zones there is what costs by the hour."""
        return len(self._eks.zones) if self._eks.network.nat == "per-zone" else 1

    def _table(self, kind: str, subnets: list[aws.ec2.Subnet]) -> aws.ec2.RouteTable:
        label = f"{self._name}-{kind}"
        tags = {"Name": f"{self._eks.name}-{kind}"}
        table = aws.ec2.RouteTable(label, vpc_id=self._vpc.id, tags=tags, opts=self._opts)
        for index, subnet in enumerate(subnets):
            aws.ec2.RouteTableAssociation(
                f"{label}-{index}", subnet_id=subnet.id, route_table_id=table.id, opts=self._opts
            )
        return table

    def _endpoints(self, private: list[aws.ec2.Subnet], tables: list[aws.ec2.RouteTable]) -> None:
        """Ways to AWS that neither leave the VPC nor pay for NAT: to weights, and to images, whose layers S3 has."""
        service = f"com.amazonaws.{self._eks.region}"
        aws.ec2.VpcEndpoint(
            f"{self._name}-s3",
            vpc_id=self._vpc.id,
            service_name=f"{service}.s3",
            vpc_endpoint_type="Gateway",
            route_table_ids=[table.id for table in tables],
            tags={"Name": f"{self._eks.name}-s3"},
            opts=self._opts,
        )
        group = aws.ec2.SecurityGroup(
            f"{self._name}-endpoints",
            description="HTTPS from the VPC to endpoints of AWS",
            vpc_id=self._vpc.id,
            ingress=[
                {
                    "description": "HTTPS from the VPC",
                    "protocol": "tcp",
                    "from_port": 443,
                    "to_port": 443,
                    "cidr_blocks": [self._eks.network.cidr],
                }
            ],
            tags={"Name": f"{self._eks.name}-endpoints"},
            opts=self._opts,
        )
        for part in ("api", "dkr"):
            aws.ec2.VpcEndpoint(
                f"{self._name}-ecr-{part}",
                vpc_id=self._vpc.id,
                service_name=f"{service}.ecr.{part}",
                vpc_endpoint_type="Interface",
                private_dns_enabled=True,
                # By the private name, an endpoint in one zone serves all; only manifests and tokens pass it.
                subnet_ids=[subnet.id for subnet in private[: self._redundancy]],
                security_group_ids=[group.id],
                tags={"Name": f"{self._eks.name}-ecr-{part}"},
                opts=self._opts,
            )

    def _flow_logs(self) -> None:
        """Who talked to whom, allowed and refused."""
        group = aws.cloudwatch.LogGroup(
            f"{self._name}-flow",
            name=f"/aws/vpc/{self._eks.name}/flow",
            retention_in_days=self._eks.network.flow_log_days,
            opts=self._opts,
        )
        role = aws.iam.Role(
            f"{self._name}-flow",
            name=self._eks.role("flow-logs"),
            assume_role_policy=trusted(
                "vpc-flow-logs.amazonaws.com", StringEquals={"aws:SourceAccount": self._eks.account}
            ),
            opts=self._opts,
        )
        actions = ["logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"]
        policy = aws.iam.RolePolicy(
            f"{self._name}-flow",
            role=role.name,
            policy=document(allow(actions, [group.arn, pulumi.Output.concat(group.arn, ":*")])),
            opts=self._opts,
        )
        aws.ec2.FlowLog(
            f"{self._name}-flow",
            vpc_id=self._vpc.id,
            traffic_type="ALL",
            log_destination=group.arn,
            iam_role_arn=role.arn,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[policy]),
        )

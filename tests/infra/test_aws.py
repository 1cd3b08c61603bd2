"""The AWS half under Pulumi's mocks: of each component what matters."""

import base64
import email
import email.policy
import ipaddress
import json
import re
from typing import Any

import pytest
import yaml
from pulumi.runtime import rpc

from infra import versions
from infra.aws.cluster import AFTER_NODES, BEFORE_NODES
from tests.infra.aws_outputs import SECURITY_GROUP
from tests.infra.made_up import ACCOUNT, ADMIN, EKS, FROM_HUB, GPUS, NAME, REGION, SOURCE, Resource, eks_stack, register

Registered = dict[str, Resource]


@pytest.fixture(scope="module")
def made() -> Registered:
    """With all that is optional, and protected."""
    return register(eks_stack(public_cidrs=["203.0.113.0/24"], cache={}))


@pytest.fixture(scope="module")
def least() -> Registered:
    """As cheap as it gets, and free to go."""
    return register(eks_stack(network={"nat": "one"}, deletion_protection=False))


def of(made: Registered, kind: str) -> dict[str, Resource]:
    """By name, and in the order of names: Pulumi registers them in any."""
    found = {name.partition("/")[2]: made[name] for name in sorted(made) if name.startswith(f"{kind}/")}
    assert found, f"there is no {kind}"
    return found


def test_the_provider_has_region_account_and_tags(made: Registered) -> None:
    provider = made["aws/aws"].inputs
    # Providers get what is no text as JSON.
    assert provider["region"] == REGION
    assert json.loads(provider["allowedAccountIds"]) == [ACCOUNT]
    tags = {"owner": "ml", "cost-center": "4711", "environment": "test", "managed-by": "pulumi"}
    tags["cluster"] = NAME
    assert json.loads(provider["defaultTags"]) == {"tags": tags}


# The network.


def test_subnets_share_the_network_without_overlap_in_three_zones(made: Registered) -> None:
    subnets = [subnet.inputs for subnet in of(made, "Subnet").values()]
    networks = [ipaddress.IPv4Network(subnet["cidrBlock"]) for subnet in subnets]
    vpc = ipaddress.IPv4Network(made["Vpc/network"].inputs["cidrBlock"])
    assert all(network.subnet_of(vpc) for network in networks)
    assert sum(a.overlaps(b) for a in networks for b in networks) == len(networks)
    for kind in ("public", "private"):
        zones = [subnet["availabilityZone"] for subnet in subnets if kind in subnet["tags"]["Name"]]
        assert zones == EKS["zones"]


def test_load_balancers_and_karpenter_find_their_subnets_by_tags(made: Registered) -> None:
    for name, subnet in of(made, "Subnet").items():
        tags = subnet.inputs["tags"]
        assert ("kubernetes.io/role/elb" in tags) == ("public" in name)
        assert ("kubernetes.io/role/internal-elb" in tags) == ("private" in name)
        assert tags.get("karpenter.sh/discovery") == (NAME if "private" in name else None)


def test_private_subnets_go_out_by_their_own_zones_nat(made: Registered, least: Registered) -> None:
    assert list(of(made, "NatGateway")) == [f"network-nat-{zone}" for zone in "abc"]
    assert list(of(least, "NatGateway")) == ["network-nat-a"]
    for zone in "abc":
        route = f"Route/network-private-{zone}"
        assert made[route].inputs["natGatewayId"] == f"network-nat-{zone}-id"
        assert least[route].inputs["natGatewayId"] == "network-nat-a-id"
        for registered in (made, least):
            assert "gatewayId" not in registered[route].inputs
    public = of(made, "RouteTableAssociation")["network-public-0"].inputs
    assert public == {"subnetId": "network-public-a-id", "routeTableId": "network-public-id"}


def test_weights_and_images_do_not_pass_nat(made: Registered, least: Registered) -> None:
    endpoints = of(made, "VpcEndpoint")
    tables = [f"network-private-{zone}-id" for zone in "abc"]
    assert endpoints["network-s3"].inputs["vpcEndpointType"] == "Gateway"
    assert endpoints["network-s3"].inputs["routeTableIds"] == tables
    for part in ("api", "dkr"):
        endpoint = endpoints[f"network-ecr-{part}"].inputs
        assert endpoint["serviceName"] == f"com.amazonaws.{REGION}.ecr.{part}"
        assert (endpoint["vpcEndpointType"], endpoint["privateDnsEnabled"]) == ("Interface", True)
        assert len(endpoint["subnetIds"]) == 3
        assert len(of(least, "VpcEndpoint")[f"network-ecr-{part}"].inputs["subnetIds"]) == 1


def test_nothing_is_open_to_the_internet(made: Registered) -> None:
    for name, group in of(made, "SecurityGroup").items():
        for rule in group.inputs["ingress"]:
            assert all(ipaddress.ip_network(cidr).is_private for cidr in rule.get("cidrBlocks", [])), name
    # The default one lets nothing through, in neither direction.
    assert set(made["DefaultSecurityGroup/network-default"].inputs) == {"vpcId"}


def test_flow_logs_are_kept_and_their_role_writes_nowhere_else(made: Registered) -> None:
    log = made["FlowLog/network-flow"].inputs
    assert (log["trafficType"], log["vpcId"]) == ("ALL", "network-id")
    group = made["LogGroup/network-flow"].inputs
    assert (group["name"], group["retentionInDays"]) == (f"/aws/vpc/{NAME}/flow", 30)
    (statement,) = made["RolePolicy/network-flow"].document()
    assert statement["Resource"] == [log["logDestination"], f"{log['logDestination']}:*"]


# The cluster.


def test_the_cluster_is_of_the_ledgers_version_and_lets_only_entries_in(made: Registered) -> None:
    cluster = made["Cluster/eks"].inputs
    assert (cluster["name"], cluster["version"]) == (NAME, versions.EKS)
    assert versions.KUBERNETES.startswith(f"{versions.EKS}.")
    assert cluster["accessConfig"] == {"authenticationMode": "API", "bootstrapClusterCreatorAdminPermissions": False}
    assert cluster["bootstrapSelfManagedAddons"] is False
    assert len(cluster["enabledClusterLogTypes"]) == 5
    key = {"keyArn": "arn:Key:eks"}
    assert cluster["encryptionConfig"] == {"provider": key, "resources": ["secrets"]}
    assert made["Key/eks"].inputs["enableKeyRotation"] is True
    logs = made["LogGroup/eks"]
    assert (logs.inputs["name"], logs.inputs["retentionInDays"]) == (f"/aws/eks/{NAME}/cluster", 30)
    assert logs.retained
    assert {"LogGroup/eks", "RolePolicyAttachment/eks"} <= set(made["Cluster/eks"].after)


def test_the_api_is_private_or_for_listed_networks(made: Registered, least: Registered) -> None:
    public, private = (registered["Cluster/eks"].inputs["vpcConfig"] for registered in (made, least))
    assert public["endpointPrivateAccess"] is private["endpointPrivateAccess"] is True
    assert (public["endpointPublicAccess"], public["publicAccessCidrs"]) == (True, ["203.0.113.0/24"])
    assert private["endpointPublicAccess"] is False
    assert "publicAccessCidrs" not in private
    assert public["subnetIds"] == [f"network-private-{zone}-id" for zone in "abc"]


def test_admins_and_nobody_else_are_admins(made: Registered) -> None:
    entries = {name: entry.inputs for name, entry in of(made, "AccessEntry").items()}
    assert entries["admin-platform-admin"]["principalArn"] == ADMIN
    # Karpenter's nodes; of the managed ones EKS makes the entry.
    assert entries["karpenter-aws"] == {
        "clusterName": NAME,
        "principalArn": "arn:Role:karpenter-nodes",
        "type": "EC2_LINUX",
    }
    assert set(entries) == {"admin-platform-admin", "karpenter-aws"}
    ((_, policy),) = of(made, "AccessPolicyAssociation").items()
    assert policy.inputs["principalArn"] == ADMIN
    assert policy.inputs["policyArn"].endswith("/AmazonEKSClusterAdminPolicy")


def test_addons_come_before_the_nodes_that_need_them_and_after_those_they_need(made: Registered) -> None:
    addons = of(made, "Addon")
    assert set(addons) == {*BEFORE_NODES, *AFTER_NODES} == versions.EKS_ADDONS.keys()
    assert {addon: resource.inputs["addonVersion"] for addon, resource in addons.items()} == versions.EKS_ADDONS
    group = made["NodeGroup/system"]
    assert {f"Addon/{addon}" for addon in BEFORE_NODES} <= set(group.after)
    assert {f"Route/network-private-{zone}" for zone in "abc"} <= set(group.after)
    for addon in AFTER_NODES:
        assert "NodeGroup/system" in made[f"Addon/{addon}"].after
    assert "PodIdentityAssociation/vpc-cni" in made["Addon/vpc-cni"].after
    assert "PodIdentityAssociation/ebs-csi-driver" in made["Addon/aws-ebs-csi-driver"].after


def test_network_policies_are_enforced(made: Registered) -> None:
    assert json.loads(made["Addon/vpc-cni"].inputs["configurationValues"]) == {"enableNetworkPolicy": "true"}


# Nodes.


def test_the_managed_group_is_on_demand_and_one_node_is_replaced_at_a_time(made: Registered) -> None:
    group = made["NodeGroup/system"]
    assert (group.inputs["capacityType"], group.inputs["amiType"]) == ("ON_DEMAND", "AL2023_x86_64_STANDARD")
    assert group.inputs["version"] == versions.EKS
    assert group.inputs["scalingConfig"] == {"minSize": 2, "maxSize": 4, "desiredSize": 2}
    assert group.ignored == ["scalingConfig.desiredSize"], "every `up` would undo what has scaled it"
    assert group.inputs["updateConfig"] == {"maxUnavailable": 1}
    assert group.inputs["nodeRepairConfig"] == {"enabled": True}
    assert group.inputs["labels"] == {"blueprint/pool": "system"}
    assert group.inputs["subnetIds"] == [f"network-private-{zone}-id" for zone in "abc"]


def test_pods_do_not_reach_the_nodes_role_and_disks_are_encrypted(made: Registered) -> None:
    template = made["LaunchTemplate/system"].inputs
    metadata = {"httpEndpoint": "enabled", "httpTokens": "required", "httpPutResponseHopLimit": 1}
    assert template["metadataOptions"] == metadata
    (disk,) = template["blockDeviceMappings"]
    assert {"volumeType": "gp3", "volumeSize": 100, "encrypted": "true"}.items() <= disk["ebs"].items()
    for tagged in template["tagSpecifications"]:
        assert tagged["tags"] == {
            **{"Name": f"{NAME}-system", "owner": "ml", "cost-center": "4711"},
            **{"environment": "test", "managed-by": "pulumi", "cluster": NAME},
        }


@pytest.mark.parametrize("role", ["system-nodes", "karpenter-nodes"])
def test_nodes_join_and_pull_and_may_nothing_else(made: Registered, role: str) -> None:
    policies = {
        attachment.inputs["policyArn"].rpartition("/")[2]
        for attachment in of(made, "RolePolicyAttachment").values()
        if attachment.inputs["role"] == f"{NAME}-{REGION}-{role}"
    }
    assert policies == {"AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly"}
    (trust,) = made[f"Role/{role}"].document("assumeRolePolicy")
    assert trust["Principal"] == {"Service": "ec2.amazonaws.com"}


def test_gpus_may_come_from_a_managed_group() -> None:
    managed = {**GPUS, "pool": {"gpu": "L4", "nodes": "managed", "capacity": ["spot"]}}
    registered = register(eks_stack(managed))
    group = registered["NodeGroup/workers-l4"].inputs
    assert (group["amiType"], group["capacityType"]) == ("AL2023_x86_64_NVIDIA", "SPOT")
    # Four pods, and as many again for an upgrade.
    assert group["scalingConfig"] == {"minSize": 0, "maxSize": 8, "desiredSize": 8}
    assert group["instanceTypes"] == ["g6.2xlarge", "g6.4xlarge", "g6.8xlarge", "g6.16xlarge"]
    assert group["labels"] == {"blueprint/pool": "l4", "nvidia.com/gpu.present": "true"}
    assert group["taints"] == [{"key": "nvidia.com/gpu", "value": "present", "effect": "NO_SCHEDULE"}]
    assert {f"Addon/{addon}" for addon in BEFORE_NODES} <= set(registered["NodeGroup/workers-l4"].after)
    template = registered["LaunchTemplate/workers-l4"].inputs
    assert template["metadataOptions"]["httpPutResponseHopLimit"] == 1
    (disk,) = template["blockDeviceMappings"]
    assert (disk["ebs"]["throughput"], disk["ebs"]["encrypted"]) == (600, "true")
    data = base64.b64decode(template["userData"])
    (part,) = email.message_from_bytes(data, policy=email.policy.default).iter_parts()
    assert part.get_content_type() == "application/node.eks.aws"
    assert yaml.safe_load(part.get_content())["spec"] == {
        "instance": {"localStorage": {"strategy": "RAID0"}},
        "featureGates": {"FastImagePull": True},
    }


def test_karpenter_hears_of_nodes_that_will_go(made: Registered) -> None:
    queue = made["Queue/karpenter-aws"].inputs
    assert (queue["name"], queue["sqsManagedSseEnabled"]) == (NAME, True)
    rules, targets = of(made, "EventRule"), of(made, "EventTarget")
    patterns = [json.loads(rule.inputs["eventPattern"]) for rule in rules.values()]
    assert {kind for pattern in patterns for kind in pattern["detail-type"]} == {
        "AWS Health Event",
        "EC2 Spot Instance Interruption Warning",
        "EC2 Instance Rebalance Recommendation",
        "EC2 Instance State-change Notification",
        "EC2 Capacity Reservation Instance Interruption Warning",
    }
    assert {target.inputs["rule"] for target in targets.values()} == {rule.inputs["name"] for rule in rules.values()}
    assert {target.inputs["arn"] for target in targets.values()} == {"arn:Queue:karpenter-aws"}
    allowed, denied = made["QueuePolicy/karpenter-aws"].document()
    assert allowed["Principal"] == {"Service": "events.amazonaws.com"}
    assert (denied["Effect"], denied["Condition"]) == ("Deny", {"Bool": {"aws:SecureTransport": "false"}})


def test_karpenter_finds_the_clusters_security_group(made: Registered) -> None:
    tag = {"resourceId": SECURITY_GROUP, "key": "karpenter.sh/discovery", "value": NAME}
    assert made["Tag/eks-discovery"].inputs == tag


# Storage.


def test_the_bucket_is_private_encrypted_versioned_and_takes_tls_only(made: Registered) -> None:
    assert made["Bucket/storage"].inputs["bucket"] == f"{NAME}-weights-{ACCOUNT}-{REGION}"
    block = made["BucketPublicAccessBlock/storage"].inputs
    assert [value for value in block.values() if isinstance(value, bool)] == [True] * 4
    (rule,) = made["BucketServerSideEncryptionConfiguration/storage"].inputs["rules"]
    default = {"sseAlgorithm": "aws:kms", "kmsMasterKeyId": "arn:Key:storage"}
    assert rule == {"applyServerSideEncryptionByDefault": default, "bucketKeyEnabled": True}
    assert made["BucketVersioning/storage"].inputs["versioningConfiguration"] == {"status": "Enabled"}
    statements = made["BucketPolicy/storage"].document()
    assert {statement["Effect"] for statement in statements} == {"Deny"}
    assert [statement["Condition"] for statement in statements] == [
        {"Bool": {"aws:SecureTransport": "false"}},
        {"NumericLessThan": {"s3:TlsVersion": "1.2"}},
    ]
    for statement in statements:
        assert statement["Resource"] == ["arn:Bucket:storage", "arn:Bucket:storage/*"]
    rules = made["BucketLifecycleConfiguration/storage"].inputs["rules"]
    assert {rule["id"] for rule in rules} == {"old-versions", "broken-uploads"}
    assert not any("expiration" in rule for rule in rules), "weights that are served would go"


def test_images_are_scanned_and_tags_do_not_move(made: Registered) -> None:
    repository = made["Repository/storage"].inputs
    assert (repository["name"], repository["imageTagMutability"]) == (NAME, "IMMUTABLE")
    assert repository["imageScanningConfiguration"] == {"scanOnPush": True}
    rules = json.loads(made["LifecyclePolicy/storage"].inputs["policy"])["rules"]
    assert [rule["selection"]["tagStatus"] for rule in rules] == ["untagged", "any"]


def test_what_holds_data_is_protected_where_the_stack_says_so(made: Registered, least: Registered) -> None:
    holds_data = {"Bucket/storage", "Repository/storage", "Key/storage", "Key/eks", "Cluster/eks"}
    assert {name for name, resource in made.items() if resource.protected} == {
        *holds_data,
        "ReplicationGroup/valkey",
    }
    assert {name for name, resource in least.items() if resource.protected or resource.retained} == set()
    for registered, kept in ((made, True), (least, False)):
        assert registered["Cluster/eks"].inputs["deletionProtection"] is kept
        assert registered["Bucket/storage"].inputs["forceDestroy"] is not kept
        assert registered["Repository/storage"].inputs["forceDelete"] is not kept


# Identity.


def test_pods_take_their_roles_in_this_cluster_only(made: Registered) -> None:
    accounts = {
        name: (association.inputs["namespace"], association.inputs["serviceAccount"])
        for name, association in of(made, "PodIdentityAssociation").items()
    }
    assert accounts == {
        "vpc-cni": ("kube-system", "aws-node"),
        "ebs-csi-driver": ("kube-system", "ebs-csi-controller-sa"),
        "karpenter": ("kube-system", "karpenter"),
        "load-balancers": ("kube-system", "aws-load-balancer-controller"),
        "external-secrets": ("external-secrets", "external-secrets"),
        "ray-llm-head": ("serving", "llm-head"),
        "ray-llm-worker": ("serving", "llm-worker"),
    }
    for role in ("vpc-cni", "ebs-csi-driver", "karpenter", "load-balancers", "external-secrets", "ray"):
        (trust,) = made[f"Role/{role}"].document("assumeRolePolicy")
        assert trust["Principal"] == {"Service": "pods.eks.amazonaws.com"}
        assert trust["Action"] == ["sts:AssumeRole", "sts:TagSession"]
        assert trust["Condition"]["ArnEquals"] == {"aws:SourceArn": f"arn:aws:eks:{REGION}:{ACCOUNT}:cluster/{NAME}"}


def test_role_names_fit_the_longest_cluster_and_region() -> None:
    registered = register(
        eks_stack(name="a" * 24, region="ap-northeast-1", zones=[f"ap-northeast-1{z}" for z in "abc"])
    )
    for name, role in of(registered, "Role").items():
        assert len(role.inputs["name"]) <= 64, name
    assert len(registered["Bucket/storage"].inputs["bucket"]) <= 63


def test_rays_pods_read_the_models_that_they_serve_and_nothing_else(made: Registered) -> None:
    read, look, decrypt = made["RolePolicy/ray"].document()
    place = SOURCE.removeprefix("s3://")
    bucket, _, prefix = place.partition("/")
    assert (read["Action"], read["Resource"]) == (["s3:GetObject"], [f"arn:aws:s3:::{place}/*"])
    assert (look["Action"], look["Resource"]) == (["s3:ListBucket"], f"arn:aws:s3:::{bucket}")
    assert look["Condition"] == {"StringLike": {"s3:prefix": [prefix, f"{prefix}/*"]}}
    assert (decrypt["Action"], decrypt["Resource"]) == (["kms:Decrypt"], "arn:Key:storage")


def test_a_stack_that_reads_nothing_from_s3_has_no_role_for_it() -> None:
    registered = register(eks_stack(serving=FROM_HUB))
    assert "Role/ray" not in registered


WRITES = re.compile(
    r":(Add|Authorize|Create|Delete|Deregister|Modify|Pass|Put|Register|Remove|Revoke|Run|Set|Tag|Terminate|\*)"
)


@pytest.mark.parametrize("role", ["karpenter", "load-balancers", "external-secrets", "ray", "network-flow"])
def test_nobody_changes_what_is_not_the_clusters(made: Registered, role: str) -> None:
    """Whatever a role may change is named, or bound to a tag of this cluster."""
    for statement in made[f"RolePolicy/{role}"].document():
        assert "*" not in statement["Action"]
        if any(WRITES.search(action) for action in statement["Action"]):
            assert statement["Resource"] != "*", statement


def test_policies_fit_into_a_role(made: Registered) -> None:
    for name, policy in of(made, "RolePolicy").items():
        # https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html, which does not count white space
        assert len(re.sub(r"\s", "", policy.inputs["policy"])) <= 10_240, name


def test_karpenter_ends_only_what_it_has_started(made: Registered) -> None:
    statements = made["RolePolicy/karpenter"].document()
    owner = f"aws:ResourceTag/kubernetes.io/cluster/{NAME}"
    (end,) = (statement for statement in statements if "ec2:TerminateInstances" in statement["Action"])
    assert end["Condition"]["StringEquals"] == {owner: "owned"}
    (give,) = (statement for statement in statements if "iam:PassRole" in statement["Action"])
    assert give["Resource"] == "arn:Role:karpenter-nodes"


def test_external_secrets_reads_what_is_named_after_the_cluster(made: Registered) -> None:
    (statement,) = made["RolePolicy/external-secrets"].document()
    assert statement["Resource"] == f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:{NAME}/*"


# The cache.


def test_the_valkey_has_tls_a_secret_password_and_a_second_node(made: Registered, least: Registered) -> None:
    valkey = made["ReplicationGroup/valkey"]
    inputs: dict[str, Any] = valkey.inputs
    assert (inputs["engine"], inputs["numCacheClusters"], inputs["automaticFailoverEnabled"]) == ("valkey", 2, True)
    assert inputs["transitEncryptionEnabled"] is inputs["atRestEncryptionEnabled"] is True
    assert rpc.is_rpc_secret(inputs["authToken"]), "it would be in the clear in Pulumi's state"
    assert valkey.ignored == ["authToken"], "every `up` would change it under the head that runs"
    (rule,) = made["SecurityGroup/valkey"].inputs["ingress"]
    assert rule["securityGroups"] == [SECURITY_GROUP]
    assert not any(name.startswith("ReplicationGroup/") for name in least)

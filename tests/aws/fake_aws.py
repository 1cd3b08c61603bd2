"""AWS for the tests: moto's server, and what moto lacks of EKS, ElastiCache, EC2 (fake_machines) and the account
(fake_account).

    MOTO_ACCOUNT_ID=123456789012 python -m tests.aws.fake_aws PORT

Listens on 127.0.0.1 only, until its standard input ends, as it does also when the tests are killed. Every run wants a
new one: moto keeps the tags of what was deleted.
"""

import os
import sys
from threading import Thread
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

# Read when moto is imported.
os.environ["MOTO_IAM_LOAD_MANAGED_POLICIES"] = "true"

from moto.core.responses import ActionResult, EmptyResult
from moto.core.utils import utcnow
from moto.ec2 import urls as ec2
from moto.ec2.models import EC2Backend, ec2_backends
from moto.ec2.models.security_groups import SecurityGroupRule
from moto.eks import urls as eks
from moto.eks.exceptions import ResourceNotFoundException
from moto.eks.models import Cluster
from moto.eks.responses import EKSResponse
from moto.elasticache import urls as elasticache
from moto.elasticache.exceptions import CacheSubnetGroupNotFound
from moto.elasticache.models import ReplicationGroup
from moto.elasticache.responses import ElastiCacheResponse
from moto.server import main

import tests.aws.fake_account  # noqa: F401 - which changes what is served
from tests.aws.fake_machines import Machines

VERSIONS = {"v1.0.0-eksbuild.1": True}
"""Of every add-on; True marks the default."""


class Eks(EKSResponse):
    """EKS with add-ons, access entries and Pod Identity, and clusters that say what they were asked for."""

    _parts: dict[tuple[str, str], dict[str, dict[str, dict[str, Any]]]] = {}  # noqa: RUF012 - moto makes one object a request
    """What a cluster has, by account and cluster, then by kind (addon, access-entry, …), then by name."""

    def _text(self, name: str) -> str:
        return unquote(self._get_param(name) or "")

    def _cluster(self) -> Cluster:
        return self.eks_backend.describe_cluster(name=self._text("name") or self._text("clusterName"))

    @property
    def _ec2(self) -> EC2Backend:
        return ec2_backends[self.current_account][self.region]

    def _all(self, kind: str) -> dict[str, dict[str, Any]]:
        return self._parts.setdefault((self.current_account, self._cluster().name), {}).setdefault(kind, {})

    def _one(self, kind: str, name: str) -> dict[str, Any]:
        try:
            return self._all(kind)[name]
        except KeyError:
            raise ResourceNotFoundException(message=f"no {kind} {name}") from None

    def _made(self, kind: str, name: str, **properties: Any) -> dict[str, Any]:
        cluster, now = self._cluster().name, utcnow()
        given = {key: value for key, value in properties.items() if value is not None}
        self._all(kind)[name] = {
            **{"clusterName": cluster, "createdAt": now, "modifiedAt": now, "tags": self._get_param("tags") or {}},
            **given,
        }
        return self._all(kind)[name]

    def _arn(self, kind: str, *path: str) -> str:
        return f"arn:aws:eks:{self.region}:{self.current_account}:{kind}/{'/'.join((self._cluster().name, *path))}"

    # What moto has, and forgets parts of.

    def create_cluster(self) -> ActionResult:
        result = super().create_cluster()
        cluster: Any = self._cluster()
        ec2 = self._ec2
        vpc = ec2.get_subnet(cluster.resources_vpc_config["subnetIds"][0]).vpc_id
        group = ec2.create_security_group(f"eks-cluster-sg-{cluster.name}", "Made by EKS", vpc_id=vpc)
        cluster.resources_vpc_config = {
            **{"endpointPublicAccess": True, "endpointPrivateAccess": False, "publicAccessCidrs": ["0.0.0.0/0"]},
            **cluster.resources_vpc_config,
            **{"clusterSecurityGroupId": group.id, "vpcId": vpc},
        }
        network = {"ipFamily": "ipv4", "serviceIpv4Cidr": "172.20.0.0/16"}
        cluster.kubernetes_network_config = network | (self._get_param("kubernetesNetworkConfig") or {})
        cluster.access_config = self._get_param("accessConfig") or {"authenticationMode": "CONFIG_MAP"}
        cluster.upgrade_policy = self._get_param("upgradePolicy") or {"supportType": "EXTENDED"}
        cluster.zonal_shift_config = self._get_param("zonalShiftConfig")
        return result

    def delete_cluster(self) -> ActionResult:
        cluster: Any = self._cluster()
        result = super().delete_cluster()
        self._parts.pop((self.current_account, cluster.name), None)
        self._ec2.delete_security_group(group_id=cluster.resources_vpc_config["clusterSecurityGroupId"])
        return result

    def create_nodegroup(self) -> ActionResult:
        result = super().create_nodegroup()
        cluster = self._cluster()
        group = cluster.nodegroups[self._text("nodegroupName")]
        group.remote_access = self._get_param("remoteAccess")
        group.update_config = self._get_param("updateConfig") or {"maxUnavailable": 1}
        group.node_repair_config = self._get_param("nodeRepairConfig")
        group.version = self._get_param("version") or cluster.version
        group.release_version = self._get_param("releaseVersion") or f"{group.version}.0-20260101"
        return result

    # What it has not.

    def create_addon(self) -> ActionResult:
        name = self._text("addonName")
        given = {key: self._get_param(key) for key in ("configurationValues", "serviceAccountRoleArn")}
        addon = self._made(
            "addon",
            name,
            addonName=name,
            addonArn=self._arn("addon", name, str(uuid4())),
            addonVersion=self._get_param("addonVersion") or next(iter(VERSIONS)),
            status="ACTIVE",
            health={"issues": []},
            podIdentityAssociations=[],
            **given,
        )
        return ActionResult({"addon": addon})

    def describe_addon(self) -> ActionResult:
        return ActionResult({"addon": self._one("addon", self._text("addonName"))})

    def list_addons(self) -> ActionResult:
        return ActionResult({"addons": list(self._all("addon"))})

    def delete_addon(self) -> ActionResult:
        addon = self._one("addon", self._text("addonName"))
        return ActionResult({"addon": self._all("addon").pop(addon["addonName"])})

    def describe_addon_versions(self) -> ActionResult:
        cluster = self._text("kubernetesVersion")
        versions = [
            {"addonVersion": version, "compatibilities": [{"clusterVersion": cluster, "defaultVersion": default}]}
            for version, default in VERSIONS.items()
        ]
        return ActionResult({"addons": [{"addonName": self._text("addonName"), "addonVersions": versions}]})

    def create_access_entry(self) -> ActionResult:
        principal = self._text("principalArn")
        entry = self._made(
            "access-entry",
            principal,
            principalArn=principal,
            accessEntryArn=self._arn("access-entry", str(uuid4())),
            kubernetesGroups=self._get_param("kubernetesGroups") or [],
            username=self._get_param("username") or principal,
            type=self._get_param("type") or "STANDARD",
        )
        return ActionResult({"accessEntry": entry})

    def describe_access_entry(self) -> ActionResult:
        return ActionResult({"accessEntry": self._one("access-entry", self._text("principalArn"))})

    def delete_access_entry(self) -> ActionResult:
        entry = self._one("access-entry", self._text("principalArn"))
        del self._all("access-entry")[entry["principalArn"]]
        return EmptyResult()

    def _policies(self) -> dict[str, dict[str, Any]]:
        """Access policies of the access entry."""
        principal = self._one("access-entry", self._text("principalArn"))["principalArn"]
        return self._all(f"access-policy of {principal}")

    def associate_access_policy(self) -> ActionResult:
        arn, now = self._text("policyArn"), utcnow()
        scope = self._get_param("accessScope")
        policy = {"policyArn": arn, "accessScope": scope, "associatedAt": now, "modifiedAt": now}
        self._policies()[arn] = policy
        return ActionResult(
            {
                "clusterName": self._cluster().name,
                "principalArn": self._text("principalArn"),
                "associatedAccessPolicy": policy,
            }
        )

    def list_associated_access_policies(self) -> ActionResult:
        return ActionResult(
            {
                "clusterName": self._cluster().name,
                "principalArn": self._text("principalArn"),
                "associatedAccessPolicies": list(self._policies().values()),
            }
        )

    def disassociate_access_policy(self) -> ActionResult:
        self._policies().pop(self._text("policyArn"))
        return EmptyResult()

    def create_pod_identity_association(self) -> ActionResult:
        name = f"a-{uuid4().hex[:17]}"
        association = self._made(
            "podidentityassociation",
            name,
            associationId=name,
            associationArn=self._arn("podidentityassociation", name),
            **{key: self._get_param(key) for key in ("namespace", "serviceAccount", "roleArn")},
        )
        return ActionResult({"association": association})

    def describe_pod_identity_association(self) -> ActionResult:
        return ActionResult({"association": self._one("podidentityassociation", self._text("associationId"))})

    def delete_pod_identity_association(self) -> ActionResult:
        association = self._one("podidentityassociation", self._text("associationId"))
        return ActionResult({"association": self._all("podidentityassociation").pop(association["associationId"])})


class Caches(ElastiCacheResponse):
    """ElastiCache whose replication groups have the members that were asked for, and are gone when deleted."""

    def create_replication_group(self) -> ActionResult:
        result = super().create_replication_group()
        name = self._get_param("ReplicationGroupId")
        count = self._get_int_param("NumCacheClusters", 1)
        group = self.elasticache_backend.replication_groups[name]
        group.member_clusters = [f"{name}-{number:03}" for number in range(1, count + 1)]
        return result

    def delete_replication_group(self) -> ActionResult:
        result = super().delete_replication_group()
        del self.elasticache_backend.replication_groups[self._get_param("ReplicationGroupId")]
        return result

    def delete_cache_subnet_group(self) -> ActionResult:
        name = self._get_param("CacheSubnetGroupName")
        if name not in self.elasticache_backend.cache_subnet_groups:
            raise CacheSubnetGroupNotFound(name)
        del self.elasticache_backend.cache_subnet_groups[name]
        return EmptyResult()

    def describe_cache_clusters(self) -> ActionResult:
        name = self._get_param("CacheClusterId")
        for group in self.elasticache_backend.replication_groups.values():
            if name in group.member_clusters:
                return ActionResult({"CacheClusters": [self._member(name, group)]})
        return super().describe_cache_clusters()

    @staticmethod
    def _member(name: str, group: ReplicationGroup) -> dict[str, Any]:
        return {
            "CacheClusterId": name,
            "CacheClusterStatus": "available",
            "CacheNodeType": group.cache_node_type,
            "NumCacheNodes": 1,
            "Engine": group.engine,
            "EngineVersion": group.engine_version,
            "CacheParameterGroup": {"CacheParameterGroupName": group.cache_parameter_group_name},
            "CacheSubnetGroupName": group.cache_subnet_group_name,
            "SecurityGroups": [{"SecurityGroupId": id_, "Status": "active"} for id_ in group.security_group_ids or []],
            "PreferredMaintenanceWindow": group.preferred_maintenance_window or "sun:23:00-mon:01:30",
            "AutoMinorVersionUpgrade": group.auto_minor_version_upgrade,
            "SnapshotRetentionLimit": group.snapshot_retention_limit,
            "SnapshotWindow": group.snapshot_window,
            "AtRestEncryptionEnabled": group.at_rest_encryption_enabled,
            "TransitEncryptionEnabled": group.transit_encryption_enabled,
            "AuthTokenEnabled": group.auth_token_enabled,
            "ReplicationGroupId": group.replication_group_id,
        }


class Ec2(Machines):
    """EC2 whose launch templates do not give their own tags to instances, and whose NAT gateways go as a whole."""

    def delete_nat_gateway(self) -> ActionResult:
        result = super().delete_nat_gateway()
        gateway = self.ec2_backend.nat_gateways[self._get_param("NatGatewayId")]
        self.ec2_backend.delete_network_interface(gateway._eni.id)
        return result

    def create_launch_template(self) -> ActionResult:
        result = super().create_launch_template()
        template = self.ec2_backend.get_launch_template_by_name(self._get_param("LaunchTemplateName"))
        data = template.default_version().data
        specifications = data.get("TagSpecifications", [])
        data["TagSpecifications"] = [item for item in specifications if item["ResourceType"] != "launch-template"]
        return result


def _described(rule: SecurityGroupRule) -> str | None:
    return rule.ip_range.get("Description") or rule.source_group.get("Description")


# Of a rule for another security group, too.
SecurityGroupRule.description = property(_described)  # pyright: ignore[reportAttributeAccessIssue]

_ENTRY = "clusters/(?P<name>[^/]+)/access-entries"
PATHS = [
    "addons/supported-versions$",
    "clusters/(?P<name>[^/]+)/addons$",
    "clusters/(?P<name>[^/]+)/addons/(?P<addonName>[^/]+)$",
    f"{_ENTRY}$",
    f"{_ENTRY}/(?P<principalArn>.+)/access-policies$",
    f"{_ENTRY}/(?P<principalArn>.+)/access-policies/(?P<policyArn>.+)$",
    f"{_ENTRY}/(?P<principalArn>.+)$",
    "clusters/(?P<name>[^/]+)/pod-identity-associations$",
    "clusters/(?P<name>[^/]+)/pod-identity-associations/(?P<associationId>[^/]+)$",
]
eks.url_paths = {path: Eks.dispatch for path in [*eks.url_paths, *(f"{{0}}/{path}" for path in PATHS)]}
ec2.url_paths = dict.fromkeys(ec2.url_paths, Ec2.dispatch)
elasticache.url_paths = dict.fromkeys(elasticache.url_paths, Caches.dispatch)


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    Thread(target=_end_with_input, daemon=True).start()
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])

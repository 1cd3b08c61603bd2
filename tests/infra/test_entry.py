"""The way in: load balancer, controller, binding, and what they may reach."""

import json
import shlex
from typing import Any

import pulumi
import pytest

from infra import versions
from infra.aws.config import EksCluster
from infra.aws.stack import Aws
from infra.config import StackConfig
from infra.platform.entry import LoadBalancerController, binding, curl
from infra.platform.kubeconfig import custom_resource
from infra.serving.network import policies
from tests.infra import schemas
from tests.infra.aws_outputs import SECURITY_GROUP
from tests.infra.made_up import ACCOUNT, NAME, REGION, Resource, eks_stack, register, registering

CERTIFICATE = f"arn:aws:acm:{REGION}:{ACCOUNT}:certificate/0123-abcd"
PUBLIC = {"public": True, "host": "models.example.com", "certificate": CERTIFICATE}


@pytest.fixture(scope="module")
def internal() -> dict[str, Resource]:
    return register(eks_stack())


@pytest.fixture(scope="module")
def public() -> dict[str, Resource]:
    return register(eks_stack(entry=PUBLIC))


def test_it_is_internal_when_nothing_is_said(internal: dict[str, Resource]) -> None:
    assert internal["LoadBalancer/entry"].inputs["internal"] is True
    listener = internal["Listener/entry"].inputs
    assert (listener["protocol"], listener["port"]) == ("TCP", 80)
    (rule,) = internal["SecurityGroup/entry"].inputs["ingress"]
    assert (rule["fromPort"], rule["cidrBlocks"]) == (80, ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"])


def test_the_internet_gets_tls_and_nothing_else(public: dict[str, Resource]) -> None:
    assert public["LoadBalancer/entry"].inputs["internal"] is False
    listeners = [resource.inputs for key, resource in public.items() if key.startswith("Listener/")]
    assert [(listener["protocol"], listener["port"]) for listener in listeners] == [("TLS", 443)]
    assert listeners[0]["certificateArn"] == CERTIFICATE
    assert listeners[0]["sslPolicy"].startswith("ELBSecurityPolicy-TLS13-1-2")
    (rule,) = public["SecurityGroup/entry"].inputs["ingress"]
    assert (rule["fromPort"], rule["toPort"], rule["cidrBlocks"]) == (443, 443, ["0.0.0.0/0"])


def test_it_reaches_the_pods_and_they_let_it_in(internal: dict[str, Resource]) -> None:
    (out,) = internal["SecurityGroup/entry"].inputs["egress"]
    assert (out["fromPort"], out["toPort"], out["securityGroups"]) == (8000, 8000, [SECURITY_GROUP])
    rule = internal["SecurityGroupIngressRule/entry"].inputs
    assert (rule["securityGroupId"], rule["fromPort"], rule["toPort"]) == (SECURITY_GROUP, 8000, 8000)
    assert rule["referencedSecurityGroupId"] == "entry-id"
    balancer = internal["LoadBalancer/entry"]
    assert balancer.inputs["subnets"] == [f"network-public-{zone}-id" for zone in "abc"]
    assert balancer.inputs["securityGroups"] == ["entry-id"]
    assert "Route/network-public" in balancer.after, "a public one needs a way to the internet"


def test_policies_let_in_its_subnets_and_it_comes_from_there(internal: dict[str, Resource]) -> None:
    assert internal["TargetGroup/entry"].inputs["preserveClientIp"] == "false"
    subnets = [internal[f"Subnet/network-public-{zone}"].inputs["cidrBlock"] for zone in "abc"]

    def networks(stack: StackConfig) -> list[str]:
        (clients,) = (policy["spec"] for policy in policies(stack) if policy["metadata"]["name"] == "clients")
        (rule,) = clients["ingress"]
        return [peer["ipBlock"]["cidr"] for peer in rule["from"] if "ipBlock" in peer]

    assert networks(eks_stack()) == subnets
    assert networks(eks_stack(entry=None)) == []


def test_streams_outlive_a_pod_that_drains(internal: dict[str, Resource]) -> None:
    group = internal["TargetGroup/entry"].inputs
    assert group["targetHealthStates"] == [{"enableUnhealthyConnectionTermination": False}]
    check = group["healthCheck"]
    assert check["path"] == "/-/healthz"
    assert check["interval"] * check["healthyThreshold"] <= 10, "after an upgrade nobody takes new connections before"


def test_names_fit_the_longest_cluster() -> None:
    registered = register(eks_stack(name="a" * 24))
    for key in ("LoadBalancer/entry", "TargetGroup/entry"):
        assert len(registered[key].inputs["name"]) <= 32, key


def test_the_controller_registers_with_this_target_group_and_changes_nothing_else(
    internal: dict[str, Resource],
) -> None:
    look, change = internal["RolePolicy/load-balancers"].document()
    assert all(":Describe" in action for action in look["Action"])
    assert change["Action"] == ["elasticloadbalancing:RegisterTargets", "elasticloadbalancing:DeregisterTargets"]
    assert change["Resource"] == "arn:TargetGroup:entry"


def test_a_stack_without_one_has_nothing_of_it() -> None:
    registered = register(eks_stack(entry=None))
    kinds = {key.partition("/")[0] for key in registered}
    assert not {"LoadBalancer", "TargetGroup", "Listener", "SecurityGroupIngressRule"} & kinds
    assert "Role/load-balancers" not in registered


def installed(**cluster: Any) -> dict[str, Resource]:
    stack = eks_stack(**cluster)

    def program() -> None:
        assert isinstance(stack.cluster, EksCluster)
        controller = LoadBalancerController("entry", stack.cluster, "vpc-1", pulumi.ResourceOptions())
        manifest = binding("llm-serve-svc", "serving", "arn:tg", "vpc-1")
        custom_resource("llm-serve-svc", manifest, pulumi.ResourceOptions(depends_on=[controller]))

    return registering(program)


def test_the_controller_is_the_ledgers_after_its_crds() -> None:
    registered = installed()
    release = registered["Release/aws-load-balancer-controller"]
    assert (release.inputs["version"], release.inputs["skipCrds"]) == (versions.LOAD_BALANCER_CONTROLLER, True)
    assert "ConfigGroup/entry-crds" in release.after
    values = release.inputs["values"]
    assert (values["clusterName"], values["region"], values["vpcId"]) == (NAME, REGION, "vpc-1")
    # Of the role in the AWS half.
    assert values["serviceAccount"] == {"name": "aws-load-balancer-controller"}
    assert values["nodeSelector"] == {"blueprint/pool": "system"}
    assert values["enableServiceMutatorWebhook"] is False, "with it, no Service is made while the controller is away"
    mirrored = installed(mirrors={"images": "mirror.example.com"})["Release/aws-load-balancer-controller"].inputs
    assert mirrored["values"]["image"]["repository"] == "mirror.example.com/eks/aws-load-balancer-controller"


def test_the_binding_is_what_its_crd_takes_and_goes_before_the_controller() -> None:
    manifest = binding("llm-serve-svc", "serving", "arn:tg", "vpc-1")
    schemas.validate(manifest)
    assert "Release/aws-load-balancer-controller" in installed()["TargetGroupBinding/llm-serve-svc"].after


@pytest.mark.parametrize(("entry", "url"), [({}, "http://entry.example.com"), (PUBLIC, "https://models.example.com")])
def test_the_outputs_can_be_pasted(entry: dict[str, Any], url: str) -> None:
    stack, said = eks_stack(entry=entry), []

    def program() -> None:
        assert isinstance(stack.cluster, EksCluster)
        found = Aws("aws", stack, stack.cluster, "llm").entry
        assert found
        for model in ("chat", ""):
            curl(found.url, model).apply(said.append)

    registering(program)
    ask, names = sorted(said, key=len, reverse=True)
    assert shlex.split(ask)[:4] == [
        "curl",
        f"{url}/v1/chat/completions",
        "-H",
        "Authorization: Bearer $BLUEPRINT_API_KEY",
    ]
    assert json.loads(shlex.split(ask)[-1])["model"] == "chat"
    assert shlex.split(names)[1] == f"{url}/v1/models"

"""The policy pack: each rule on what it is about, and all of them on what the program registers for each stack.

That a violation stops Pulumi's engine, tests/engine/test_policy_pack.py shows.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.protobuf import empty_pb2, json_format
from google.protobuf.struct_pb2 import Struct
from pulumi.runtime import mocks, proto, rpc
from pulumi.runtime.proto import analyzer_pb2_grpc
from pulumi_policy import (
    PolicyCustomTimeouts,
    PolicyResource,
    PolicyResourceOptions,
    ResourceValidationArgs,
    ResourceValidationPolicy,
    StackValidationArgs,
    StackValidationPolicy,
)
from pulumi_policy.proxy import UNKNOWN_STRING_VALUE, unknown_checking_proxy

from infra.config import PROJECT, ROOT
from infra.policy import pack
from infra.policy.images import is_mutable
from infra.policy.resources import Resource
from scripts.engine import ANALYZER, POLICY_PACK
from tests.infra.test_program import STACKS, Recorder, record

OPTIONS = PolicyResourceOptions(False, [], None, [], PolicyCustomTimeouts(0, 0, 0), [])
Violation = tuple[str, str]
"""Name of the policy, and its message."""


def violations(resources: Iterable[Resource]) -> list[Violation]:
    """What the pack, with its own config, says of a stack of these resources."""
    resources, config, found = [*resources], pack.initial_config(), []
    members = {
        item.urn: PolicyResource(
            item.kind, unknown_checking_proxy(item.props), item.urn, "", OPTIONS, None, None, [], {}
        )
        for item in resources
    }
    for item in resources:
        depends = {key: [members[urn] for urn in urns if urn in members] for key, urns in item.depends.items()}
        members[item.urn].property_dependencies = depends

    for policy in pack.POLICIES:

        def report(message: str, _: str | None, name: str = policy.name) -> None:
            found.append((name, message))

        values = config.get(policy.name)
        if isinstance(policy, StackValidationPolicy):
            policy.validate(StackValidationArgs([*members.values()], values), report)
        if isinstance(policy, ResourceValidationPolicy):
            for member in members.values():
                args = (member.resource_type, member.props, member.urn, "", OPTIONS, None, values)
                policy.validate(ResourceValidationArgs(*args), report)
    return found


class Monitor(mocks.MockMonitor):
    """Remembers what the program registers as a policy pack sees it."""

    def __init__(self, recorder: Recorder, stack: str) -> None:
        super().__init__(recorder)
        self.stack = stack
        self.found: list[Resource] = []

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802
        response = super().RegisterResource(request)
        depends = {key: [*map(self._urn, of.urns)] for key, of in request.propertyDependencies.items()}
        props = rpc.deserialize_properties(request.object)
        self.found.append(Resource(request.type, props, self._urn(response.urn), depends))
        return response

    def _urn(self, urn: str) -> str:
        """The mocks know no stack's name."""
        return f"urn:pulumi:{self.stack}::{urn.partition('::')[2]}"


def rendered(stack: str, values: dict[str, Any] | None = None) -> list[Resource]:
    """What the program registers for a stack; what is in a ConfigGroup, as the provider will, each by itself."""
    monitors: list[Monitor] = []

    def monitor(recorder: Recorder) -> Monitor:
        monitors.append(Monitor(recorder, stack))
        return monitors[0]

    record(stack, values, monitor)
    found = [part for resource in monitors[0].found for part in (resource, *_parts(resource))]
    return [resource for resource in found if not pack.is_passed_over(resource.kind)]


def _parts(group: Resource) -> Iterator[Resource]:
    for item in group.props["objs"] if group.kind == "kubernetes:yaml/v2:ConfigGroup" else ():
        name = f"{item['kind']}/{item['metadata']['name']}"
        yield Resource(f"kubernetes:{item['apiVersion']}:{item['kind']}", item, f"{group.urn}/{name}")


@pytest.mark.parametrize("stack", STACKS)
def test_the_stacks_pass(stack: str) -> None:
    resources = rendered(stack)
    assert any(resource.is_kubernetes("RayService") for resource in resources)
    assert violations(resources) == []


def changed(stack: str, change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The stack file's values with a change."""
    values = yaml.safe_load((ROOT / f"Pulumi.{stack}.yaml").read_text())["config"]
    change(values)
    return values


@pytest.mark.parametrize(
    ("stack", "change", "found"),
    [
        (
            "prod",
            lambda values: values[f"{PROJECT}:cluster"].update(public_cidrs=["203.0.113.0/24"]),
            {"no-public-endpoint-in-production": "vpcConfig.endpointPublicAccess = true: "},
        ),
        (
            "dev",
            lambda values: (
                values.update({f"{PROJECT}:max_hourly_usd": 50}),
                values[f"{PROJECT}:workers"][0].update(max_replicas=3),
                values[f"{PROJECT}:workers"][0]["pool"].update(gpu="T4"),
                values[f"{PROJECT}:serving"]["models"][0]["variants"][0]["placement"].update(accelerator_type="T4"),
            ),
            {
                "allowed-gpu-families": "g4dn: is not one of the families that are allowed, g5, g6, ",
                "gpu-cap": "GPUs = 6: stack dev may have 4, ",
            },
        ),
    ],
)
def test_a_stack_file_that_goes_too_far(
    stack: str, change: Callable[[dict[str, Any]], object], found: dict[str, str]
) -> None:
    messages = dict(violations(rendered(stack, changed(stack, change))))
    assert messages.keys() == found.keys()
    for policy, says in found.items():
        assert messages[policy].startswith(says)
        assert "; fix: " in messages[policy]


TAGS = {"owner": "ml", "cost-center": "4711", "environment": "test"}
UNTAGGED = {key: TAGS[key] for key in ("owner",)}
INSTANCE = {"resourceType": "instance", "tags": TAGS}
DIGEST = "registry.example.com/app@sha256:" + "0" * 64


def pod(image: str, kind: str = "kubernetes:core/v1:Pod") -> Resource:
    return Resource(kind, {"spec": {"initContainers": [], "containers": [{"image": image}]}})


def pool(limits: dict[str, Any] | None, **requirements: list[str]) -> Resource:
    names = {"types": "node.kubernetes.io/instance-type", "families": "karpenter.k8s.aws/instance-family"}
    names["gpus"] = "karpenter.k8s.aws/instance-gpu-name"
    wanted = [{"key": names[key], "operator": "In", "values": values} for key, values in requirements.items()]
    spec = {"limits": limits, "template": {"spec": {"requirements": wanted}}}
    return Resource("kubernetes:karpenter.sh/v1:NodePool", {"spec": spec})


def group(types: list[str], most: int) -> Resource:
    return Resource("aws:eks/nodeGroup:NodeGroup", {"instanceTypes": types, "scalingConfig": {"maxSize": most}})


def rayservice(content: Any = None, gpus: int = 0, workers: int = 1, upgrade: str = "None", **spec: Any) -> Resource:
    container = {"image": DIGEST, "resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}
    groups = [{"maxReplicas": workers, "template": {"spec": {"containers": [container]}}}]
    spec |= {"serveConfigV2": yaml.safe_dump(content), "upgradeStrategy": {"type": upgrade}}
    cluster = {"workerGroupSpecs": groups, **spec.pop("cluster", {})}
    return Resource("kubernetes:ray.io/v1:RayService", {"spec": {**spec, "rayClusterConfig": cluster}})


def environment(**runtime_env: Any) -> Resource:
    deployment = {"name": "d", "ray_actor_options": {"runtime_env": runtime_env}}
    return rayservice({"applications": [{"name": "a", "deployments": [deployment]}]})


def bare(kind: str, **props: Any) -> Resource:
    return Resource(kind, props)


def service(kind: str = "LoadBalancer", **notes: str) -> Resource:
    annotations = {
        f"service.beta.kubernetes.io/aws-load-balancer-{key.replace('_', '-')}": note for key, note in notes.items()
    }
    return bare("kubernetes:core/v1:Service", metadata={"annotations": annotations}, spec={"type": kind})


def urn(name: str) -> str:
    return f"urn:pulumi:stack::blueprint::type::{name}"


KEYS = rayservice({"applications": [{"name": "gateway", "args": {"auth": {"keys_file": "/keys.yaml"}}}]})
KEYS = KEYS._replace(urn=urn("keys"))


def balancer(internal: bool | None, **listener: Any) -> list[Resource]:
    props = {} if internal is None else {"internal": internal}
    return [
        Resource("aws:lb/loadBalancer:LoadBalancer", props, urn("balancer")),
        Resource("aws:lb/listener:Listener", listener, urn("listener"), {"loadBalancerArn": [urn("balancer")]}),
    ]


PROD = "urn:pulumi:prod::blueprint::type::name"
KEY = {"encryptionConfig": {"provider": {"keyArn": "arn"}}}
EKS = "aws:eks/cluster:Cluster"
TEMPLATE = "aws:ec2/launchTemplate:LaunchTemplate"
CLASS = "kubernetes:karpenter.k8s.aws/v1:EC2NodeClass"
ENCRYPTED = {"ebs": {"encrypted": "true"}}
SSE = "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration"
IMMUTABLE = {"imageTagMutability": "IMMUTABLE"}
KMS = {"encryptionConfigurations": [{"encryptionType": "KMS"}]}

REFUSED: list[tuple[str, list[Resource], str]] = [
    # Tags.
    ("required-tags", [bare("pulumi:providers:aws")], "defaultTags.tags: has no owner and no cost-center and no env"),
    (
        "required-tags",
        [bare("pulumi:providers:aws", defaultTags=json.dumps({"tags": UNTAGGED}))],
        "defaultTags.tags: has no cost-center and no environment, ",
    ),
    ("required-tags", [bare(TEMPLATE, tagSpecifications=[INSTANCE])], "tagSpecifications of volumes: has no owner"),
    ("required-tags", [bare(CLASS, spec={"tags": UNTAGGED})], "spec.tags: has no cost-center"),
    # Endpoints.
    ("no-public-endpoint-in-production", [Resource(EKS, KEY, PROD)], "vpcConfig.endpointPublicAccess"),
    (
        "no-public-endpoint-in-production",
        [Resource(EKS, {**KEY, "vpcConfig": {"endpointPublicAccess": True}}, PROD)],
        "vpcConfig.endpointPublicAccess",
    ),
    # Families.
    ("allowed-gpu-families", [group(["p3.2xlarge"], 0)], "p3: is not one"),
    ("allowed-gpu-families", [bare("aws:ec2/instance:Instance", instanceType="g4dn.xlarge")], "g4dn: is not one"),
    ("allowed-gpu-families", [pool({"nvidia.com/gpu": 1}, types=["g6.xlarge", "g4dn.xlarge"])], "g4dn: is not one"),
    ("allowed-gpu-families", [pool({"nvidia.com/gpu": 1}, families=["p6-b200"])], "p6-b200: is not one"),
    ("allowed-gpu-families", [pool({"nvidia.com/gpu": 1}, gpus=["l4"])], "spec.template.spec.requirements: leave"),
    # Cap: 8 for a stack without one of its own.
    ("gpu-cap", [pool({"nvidia.com/gpu": 9}, types=["g6.xlarge"])], "GPUs = 9: stack stack may have 8, "),
    ("gpu-cap", [pool({"cpu": 9}, types=["g6.xlarge"])], "GPUs = any number: "),
    ("gpu-cap", [pool(None, types=["g6.xlarge"])], "GPUs = any number: "),
    ("gpu-cap", [group(["g6.xlarge", "p5.48xlarge"], 2)], "GPUs = 16: "),
    ("gpu-cap", [group(["p5.99xlarge"], 2)], "GPUs = 16: "),
    ("gpu-cap", [rayservice(gpus=3, workers=3)], "GPUs = 9: "),
    ("gpu-cap", [rayservice(gpus=1, workers=5, upgrade="NewCluster")], "GPUs = 10: "),
    # Images.
    ("no-mutable-images", [pod("app")], "spec.containers.0.image = app: "),
    ("no-mutable-images", [pod("registry.example.com:5000/app:latest")], "spec.containers.0.image = "),
    ("no-mutable-images", [bare("kubernetes:helm.sh/v3:Release", chart="c")], "version = None: "),
    ("no-mutable-images", [bare("kubernetes:helm.sh/v4:Chart", chart="c", version=">=1.2.3")], "version = >=1.2.3: "),
    (
        "no-mutable-images",
        [bare("kubernetes:helm.sh/v3:Release", version="1.2.3", values={"image": {"tag": "latest"}})],
        "values.image.tag = latest: ",
    ),
    ("no-mutable-images", [bare("aws:ecr/repository:Repository", **KMS)], "imageTagMutability: "),
    (
        "no-mutable-images",
        [bare(CLASS, spec={"tags": TAGS, "amiSelectorTerms": [{"alias": "al2023@latest"}]})],
        "spec.amiSelectorTerms.0.alias = al2023@latest: ",
    ),
    # Code past the image.
    (
        "no-foreign-code",
        [environment(pip=["x"])],
        "spec.serveConfigV2: applications.0.deployments.0.ray_actor_options.",
    ),
    ("no-foreign-code", [environment(uv={"packages": ["x"]})], "spec.serveConfigV2: "),
    ("no-foreign-code", [environment(conda="other")], "spec.serveConfigV2: "),
    ("no-foreign-code", [environment(working_dir="https://example.com/a.zip")], "spec.serveConfigV2: "),
    ("no-foreign-code", [environment(py_modules=["/here", "s3://bucket/a.zip"])], "spec.serveConfigV2: "),
    (
        "no-foreign-code",
        [bare("kubernetes:ray.io/v1:RayJob", spec={"runtimeEnvYAML": "pip: [x]"})],
        "spec.runtimeEnvYAML: runtime_env.pip = ['x']: ",
    ),
    # Load balancers.
    ("public-load-balancers", [*balancer(False, protocol="TCP"), KEYS], "protocol: has no TLS"),
    ("public-load-balancers", [*balancer(None, protocol="HTTP"), KEYS], "protocol: has no TLS"),
    ("public-load-balancers", balancer(False, protocol="TLS"), "the internet reaches it, and nothing"),
    ("public-load-balancers", [service(), KEYS], "metadata.annotations.service.beta.kubernetes.io/aws-load-bal"),
    ("public-load-balancers", [service(ssl_cert="arn")], "the internet reaches it, and nothing"),
    ("public-load-balancers", [bare("kubernetes:networking.k8s.io/v1:Ingress", spec={}), KEYS], "spec.tls: has no"),
    (
        "public-load-balancers",
        [rayservice(cluster={"headGroupSpec": {"serviceType": "LoadBalancer"}}), KEYS],
        "spec.rayClusterConfig.headGroupSpec.serviceType: has no TLS",
    ),
    (
        "public-load-balancers",
        [rayservice(serveService={"spec": {"type": "LoadBalancer"}}), KEYS],
        "spec.serveService.metadata.annotations.",
    ),
    # Encryption.
    ("encryption", [bare("aws:ebs/volume:Volume")], "encrypted = None: "),
    ("encryption", [bare("aws:ebs/volume:Volume", encrypted=False)], "encrypted = False: "),
    ("encryption", [bare(EKS)], "encryptionConfig.provider.keyArn = None: "),
    ("encryption", [bare("aws:sqs/queue:Queue")], "sqsManagedSseEnabled = None: "),
    ("encryption", [bare("aws:ecr/repository:Repository", **IMMUTABLE)], "encryptionConfigurations.encryptionType = N"),
    (
        "encryption",
        [bare("aws:elasticache/replicationGroup:ReplicationGroup", atRestEncryptionEnabled=True)],
        "transitEncryptionEnabled = None: ",
    ),
    (
        "encryption",
        [bare(SSE, rules=[{"applyServerSideEncryptionByDefault": {"sseAlgorithm": "AES256"}}])],
        "rules.applyServerSideEncryptionByDefault.sseAlgorithm = AES256: ",
    ),
    (
        "encryption",
        [
            bare(
                TEMPLATE,
                tagSpecifications=[INSTANCE, {**INSTANCE, "resourceType": "volume"}],
                blockDeviceMappings=[ENCRYPTED, {"ebs": {}}],
            )
        ],
        "blockDeviceMappings.ebs.encrypted = None: ",
    ),
    (
        "encryption",
        [bare(CLASS, spec={"tags": TAGS, "blockDeviceMappings": [{"ebs": {"encrypted": False}}]})],
        "spec.blockDeviceMappings.ebs.encrypted = False: ",
    ),
    (
        "encryption",
        [bare("kubernetes:storage.k8s.io/v1:StorageClass", provisioner="ebs.csi.aws.com")],
        "parameters.encrypted = None: ",
    ),
]


@pytest.mark.parametrize(("policy", "resources", "says"), REFUSED)
def test_what_a_policy_refuses(policy: str, resources: list[Resource], says: str) -> None:
    """One violation, and no other policy is touched."""
    found = [message for name, message in violations(resources) if name == policy]
    assert len(found) == 1, violations(resources)
    assert found[0].startswith(says)
    assert "; fix: " in found[0]
    assert {name for name, _ in violations(resources)} == {policy}


def test_every_policy_is_among_them() -> None:
    assert {policy for policy, _, _ in REFUSED} == {policy.name for policy in pack.POLICIES}


@pytest.mark.parametrize(
    "resources",
    [
        [bare("pulumi:providers:aws", defaultTags={"tags": TAGS})],
        [Resource(EKS, {**KEY, "vpcConfig": {"endpointPublicAccess": False}}, PROD)],
        [bare(EKS, **KEY, vpcConfig={"endpointPublicAccess": True})],
        [group(["m7i.xlarge"], 99)],
        [pool({"cpu": 8}, types=["m7i.xlarge"])],
        [pool({"nvidia.com/gpu": 8}, types=["p5.48xlarge"]), rayservice(gpus=1, workers=4, upgrade="NewCluster")],
        [pod(DIGEST)],
        [pod("registry.example.com/app:v1.2.3-slim", "kubernetes:apps/v1:Deployment")],
        [bare("kubernetes:helm.sh/v3:Release", version="v1.2.3", values={"image": {"repository": "x"}})],
        [environment(env_vars={"A": "https://example.com"}, working_dir="/app", pip=[])],
        [*balancer(True, protocol="TCP")],
        [*balancer(False, protocol="HTTPS", defaultActions=[{"type": "authenticate-oidc"}])],
        [*balancer(False, protocol="HTTP", defaultActions=[{"redirect": {"protocol": "HTTPS"}}]), KEYS],
        [service(scheme="internal"), service("ClusterIP")],
        [service(ssl_cert="arn"), KEYS],
        [bare("aws:sqs/queue:Queue", kmsMasterKeyId="key")],
    ],
)
def test_what_they_do_not_refuse(resources: list[Resource]) -> None:
    assert violations(resources) == []


def test_what_is_not_known_yet_waits_for_up() -> None:
    """A key that the same `up` makes is a key."""
    unknown = UNKNOWN_STRING_VALUE
    resources = [
        bare(EKS, encryptionConfig=unknown, vpcConfig=unknown),
        bare("aws:sqs/queue:Queue", kmsMasterKeyId=unknown),
        bare(CLASS, spec=unknown),
        bare("pulumi:providers:aws", defaultTags={"tags": unknown}),
        pod(unknown),
        group([unknown], 1),
        *balancer(False, protocol=unknown, defaultActions=[unknown, {"type": "authenticate-oidc"}]),
    ]
    named = [item._replace(urn=urn(str(number))) for number, item in enumerate(resources[:-2])] + resources[-2:]
    assert violations(named) == []


@pytest.mark.parametrize(
    ("image", "mutable"),
    [
        ("app", True),
        ("app:latest", True),
        ("app:1.2", True),
        ("registry:5000/app", True),
        ("debian:bookworm-slim", True),
        ("app:feedback", True),
        ("app:1.2.3", False),
        ("app:v1.2.3-rc1", False),
        ("app:0123456789ab", False),
        ("app:main-0123abc", False),
        (DIGEST, False),
        (f"app:latest@sha256:{'0' * 64}", False),
    ],
)
def test_which_image_names_move(image: str, mutable: bool) -> None:
    assert is_mutable(image) is mutable


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"gpu-caps": {}}, "gpu-caps is not known there; fix: use one of required-tags, "),
        ({"gpu-cap": {"mots": 1}}, "mots is not known there; fix: use one of most, stacks"),
    ],
)
def test_a_typo_in_the_config_is_told(
    content: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "CONFIG", tmp_path / "config.json")
    pack.CONFIG.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=says):
        pack.initial_config()


def test_the_pack_starts_as_the_engine_starts_it() -> None:
    """With flags around the arguments, in the pack's directory, whose modules come before the standard library's."""
    command = [str(ANALYZER / "pulumi-analyzer-policy-python"), "--tracing", "file:t", "-v=3", "127.0.0.1:1", "."]
    command += ["-virtualenv=../../.venv-infra", "--unknown"]
    environment = {**os.environ, "PULUMI_PYTHON_CMD": sys.executable}
    with subprocess.Popen(command, cwd=POLICY_PACK, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout
            port = int(process.stdout.readline())
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                analyzer = analyzer_pb2_grpc.AnalyzerStub(channel)
                info = analyzer.GetAnalyzerInfo(empty_pb2.Empty())
                analyzer.Configure(proto.ConfigureAnalyzerRequest(policyConfig=dict(info.initialConfig)))
                kinds = [
                    "aws:sqs/queue:Queue",
                    "pulumi:providers:aws",
                    "kubernetes:apiextensions.k8s.io/v1:CustomResourceDefinition",
                ]
                asked = [analyzer.Analyze(proto.AnalyzeRequest(type=kind, urn=urn("it"))) for kind in kinds]
                # Of a cluster that is not there, outputs are empty.
                wanted = pool({"nvidia.com/gpu": "9"}, types=["g6.xlarge"])
                made: dict[str, Any] = {"type": wanted.kind, "urn": wanted.urn}
                analyzer.Analyze(proto.AnalyzeRequest(**made, properties=json_format.ParseDict(wanted.props, Struct())))
                stack = proto.AnalyzeStackRequest(resources=[proto.AnalyzerResource(**made)])
                asked.append(analyzer.AnalyzeStack(stack))
        finally:
            process.kill()
    assert [policy.name for policy in info.policies] == [policy.name for policy in pack.POLICIES]
    found = [[(item.policyName, item.enforcementLevel) for item in answer.diagnostics] for answer in asked]
    refused = [[(name, proto.MANDATORY)] for name in ("encryption", "required-tags", "gpu-cap")]
    assert found == [refused[0], refused[1], [], refused[2]]

"""The way from a Pulumi program to a Terraform document, by small programs and the real provider's schema."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pulumi
import pulumi_aws as aws
import pytest

from tests.aws.translate import Schema, Translation, Untranslatable, translate


def cluster(**more: Any) -> aws.eks.Cluster:
    return aws.eks.Cluster("eks", name="eks", role_arn="arn", vpc_config={"subnet_ids": ["a"]}, **more)


def translated(schema: Schema, program: Callable[[], Any]) -> Translation:
    def run() -> Mapping[str, Any] | None:
        made = program()
        return made if isinstance(made, dict) else None

    return translate(run, schema)


def test_an_unknown_resource_is_an_error_that_names_it(schema: Schema) -> None:
    with pytest.raises(Untranslatable, match="aws:eks/pony:Pony: the provider has no aws_eks_pony"):
        translated(schema, lambda: pulumi.CustomResource("aws:eks/pony:Pony", "x", {}))


def test_an_unknown_data_source_is_an_error_that_names_it(schema: Schema) -> None:
    with pytest.raises(
        Untranslatable, match="aws:index/getPony:getPony: the provider has no aws_index_pony or aws_pony"
    ):
        translated(schema, lambda: pulumi.runtime.invoke("aws:index/getPony:getPony", {}))


def test_a_module_that_terraform_names_is_not_left_out(schema: Schema) -> None:
    """aws_instance exists, and is another thing."""
    with pytest.raises(Untranslatable, match="aws:pony/instance:Instance: the provider has no aws_pony_instance;"):
        translated(schema, lambda: pulumi.CustomResource("aws:pony/instance:Instance", "x", {}))


def test_a_resource_of_another_provider_is_an_error(schema: Schema) -> None:
    with pytest.raises(Untranslatable, match="gcp:compute/instance:Instance x: not of the AWS provider"):
        translated(schema, lambda: pulumi.CustomResource("gcp:compute/instance:Instance", "x", {}))


def test_unknown_arguments_are_errors_that_name_them_all(schema: Schema) -> None:
    vpc = {"cidrBlok": "10.0.0.0/16", "tags": {"a": "b"}}
    table = {"vpcId": "x", "routes": [{"gateway": "y"}]}

    def program() -> None:
        pulumi.CustomResource("aws:ec2/vpc:Vpc", "x", vpc)
        pulumi.CustomResource("aws:ec2/routeTable:RouteTable", "x", table)

    with pytest.raises(Untranslatable) as raised:
        translated(schema, program)
    assert sorted(str(raised.value).splitlines()) == [
        "aws_route_table.routes.gateway: the provider has no such argument",
        "aws_vpc.cidrBlok: the provider has no such argument",
    ]


def test_an_output_is_no_argument(schema: Schema) -> None:
    with pytest.raises(Untranslatable, match=r"aws_vpc\.arn: the provider has no such argument"):
        translated(schema, lambda: pulumi.CustomResource("aws:ec2/vpc:Vpc", "x", {"arn": "arn"}))


def test_a_value_of_another_shape_is_an_error(schema: Schema) -> None:
    with pytest.raises(Untranslatable, match=r"aws_vpc\.cidrBlock = \['a'\]: not a string"):
        translated(schema, lambda: pulumi.CustomResource("aws:ec2/vpc:Vpc", "x", {"cidrBlock": ["a"]}))


def test_two_resources_of_a_name_are_an_error(schema: Schema) -> None:
    def program() -> None:
        for parent in "ab":
            under = pulumi.ComponentResource("x:y:Z", parent)
            aws.ec2.Vpc("same", cidr_block="10.0.0.0/16", opts=pulumi.ResourceOptions(parent=under))

    with pytest.raises(Untranslatable, match=r"aws_vpc\.same: two resources of this name"):
        translated(schema, program)


def test_a_part_of_an_output_is_an_error(schema: Schema) -> None:
    def program() -> None:
        vpc = aws.ec2.Vpc("vpc", cidr_block="10.0.0.0/16")
        aws.ec2.Subnet("subnet", vpc_id=vpc.id.apply(lambda value: value[:6]), cidr_block="10.0.0.0/24")

    with pytest.raises(Untranslatable, match="a part of the output of a resource"):
        translated(schema, program).document()


def test_outputs_become_references_wherever_a_program_puts_them(schema: Schema) -> None:
    def program() -> dict[str, Any]:
        bucket = aws.s3.Bucket("models", bucket="models")
        own = "/${aws:PrincipalTag/team}/*"
        policy = pulumi.Output.json_dumps({"Resource": [bucket.arn, pulumi.Output.concat(bucket.arn, own)]})
        aws.iam.Policy("read", name="read", policy=policy)
        eks = cluster()
        nested = {"group": eks.vpc_config.cluster_security_group_id, "ca": eks.certificate_authority.data}
        return {**nested, "issuer": eks.identities[0].oidcs[0].issuer}

    document = translated(schema, program).document()
    policy = document["resource"]["aws_iam_policy"]["read"]["policy"]
    arn = "${aws_s3_bucket.models.arn}"
    assert json.loads(policy) == {"Resource": [arn, f"{arn}/$${{aws:PrincipalTag/team}}/*"]}
    assert {name: output["value"] for name, output in document["output"].items()} == {
        "group": "${aws_eks_cluster.eks.vpc_config[0].cluster_security_group_id}",
        "ca": "${aws_eks_cluster.eks.certificate_authority[0].data}",
        "issuer": "${aws_eks_cluster.eks.identity[0].oidc[0].issuer}",
    }


def test_a_dollar_before_an_output_stays_one(schema: Schema) -> None:
    def program() -> None:
        vpc = aws.ec2.Vpc("vpc", cidr_block="10.0.0.0/16", tags={"text": "%{ if }"})
        aws.ec2.Eip("ip", domain="vpc", tags={"text": pulumi.Output.concat("$", vpc.id)})

    resources = translated(schema, program).document()["resource"]
    assert resources["aws_vpc"]["vpc"]["tags"]["text"] == "%%{ if }"
    assert resources["aws_eip"]["ip"]["tags"]["text"] == '${"$"}${aws_vpc.vpc.id}'


def test_blocks_lists_and_objects_have_terraforms_names(schema: Schema) -> None:
    def program() -> None:
        cluster(
            access_config={"authentication_mode": "API", "bootstrap_cluster_creator_admin_permissions": False},
            encryption_config={"provider": {"key_arn": "arn"}, "resources": ["secrets"]},
        )
        aws.ec2.RouteTable("table", vpc_id="vpc", routes=[{"cidr_block": "0.0.0.0/0", "gateway_id": "gateway"}])

    resources = translated(schema, program).resources
    eks = resources["aws_eks_cluster"]["eks"]
    assert eks["access_config"] == [
        {"authentication_mode": "API", "bootstrap_cluster_creator_admin_permissions": False}
    ]
    assert eks["encryption_config"] == [{"provider": [{"key_arn": "arn"}], "resources": ["secrets"]}]
    # An attribute, and not a block: all of it, if only as null.
    (route,) = resources["aws_route_table"]["table"]["route"]
    assert {key: value for key, value in route.items() if value} == {"cidr_block": "0.0.0.0/0", "gateway_id": "gateway"}
    assert "nat_gateway_id" in route


def test_names_that_pulumi_would_make_up_are_made_up(schema: Schema) -> None:
    def program() -> None:
        aws.iam.Role("role", assume_role_policy="{}")
        aws.s3.Bucket("models")
        aws.iam.Role("named", name="own", assume_role_policy="{}")

    resources = translated(schema, program).resources
    assert resources["aws_iam_role"]["role"]["name"].startswith("role-")
    assert resources["aws_s3_bucket"]["models"]["bucket"].startswith("models-")
    assert resources["aws_iam_role"]["named"]["name"] == "own"


def test_who_waits_for_what(schema: Schema) -> None:
    """By `depends_on`, its own or its component's, where no reference says it."""

    def program() -> None:
        before = aws.ec2.Vpc("before", cidr_block="10.0.0.0/16")
        under = pulumi.ComponentResource("x:y:Z", "after", opts=pulumi.ResourceOptions(depends_on=[before]))
        vpc = aws.ec2.Vpc("vpc", cidr_block="10.0.0.0/16", opts=pulumi.ResourceOptions(parent=under))
        aws.ec2.InternetGateway("gateway", vpc_id=vpc.id)
        aws.ec2.Eip("ip", domain="vpc", opts=pulumi.ResourceOptions(depends_on=[under]))

    resources = translated(schema, program).resources
    assert "depends_on" not in resources["aws_vpc"]["before"]
    assert resources["aws_vpc"]["vpc"]["depends_on"] == ["aws_vpc.before"]
    assert "depends_on" not in resources["aws_internet_gateway"]["gateway"]
    assert resources["aws_eip"]["ip"]["depends_on"] == ["aws_vpc.vpc"]


def test_changes_to_ignore(schema: Schema) -> None:
    def program() -> None:
        aws.eks.NodeGroup(
            "nodes",
            cluster_name="eks",
            node_role_arn="arn",
            subnet_ids=["a"],
            scaling_config={"min_size": 0, "max_size": 2, "desired_size": 1},
            opts=pulumi.ResourceOptions(ignore_changes=["scalingConfig.desiredSize", "tags"]),
        )

    body = translated(schema, program).resources["aws_eks_node_group"]["nodes"]
    assert body["lifecycle"] == [{"ignore_changes": ["scaling_config[0].desired_size", "tags"]}]


def test_the_provider_is_configured_as_the_program_does(schema: Schema) -> None:
    def program() -> None:
        aws.Provider("aws", region="eu-west-1", allowed_account_ids=["1"], default_tags={"tags": {"team": "x"}})

    configured = translated(schema, program).provider
    assert configured.pop("skip_credentials_validation") is False
    assert configured.pop("skip_region_validation") is True  # both are Pulumi's defaults
    assert configured == {
        **{"region": "eu-west-1", "allowed_account_ids": ["1"]},
        "default_tags": [{"tags": {"team": "x"}}],
    }


def test_what_this_provider_does_not_know_yet_is_listed(schema: Schema) -> None:
    found = translated(schema, lambda: cluster(deletion_protection=True))
    assert "deletion_protection" not in found.resources["aws_eks_cluster"]["eks"]
    assert found.newer == {"aws_eks_cluster.deletionProtection"}


def test_secrets_are_taken_out_of_their_wrapping(schema: Schema) -> None:
    def program() -> None:
        secret = aws.secretsmanager.Secret("secret", name="secret")
        aws.secretsmanager.SecretVersion("secret", secret_id=secret.id, secret_string=pulumi.Output.secret("hidden"))

    body = translated(schema, program).resources["aws_secretsmanager_secret_version"]["secret"]
    assert body == {"secret_id": body["secret_id"], "secret_string": "hidden"}


def test_data_sources(schema: Schema) -> None:
    def program() -> None:
        zones = aws.get_availability_zones(state="available")
        account = aws.get_caller_identity()
        aws.ec2.Subnet("subnet", vpc_id="vpc", cidr_block="10.0.0.0/24", availability_zone=zones.names[1])
        aws.ec2.Eip("ip", domain="vpc", tags={"account": account.account_id, "region": aws.get_region().region})

    found = translated(schema, program)
    document = found.document()
    (zones,) = document["data"]["aws_availability_zones"]
    assert document["data"]["aws_availability_zones"][zones] == {"state": "available"}
    subnet = document["resource"]["aws_subnet"]["subnet"]
    assert subnet["availability_zone"] == f"${{data.aws_availability_zones.{zones}.names[1]}}"
    tags = document["resource"]["aws_eip"]["ip"]["tags"]
    assert tags["account"].endswith(".account_id}")
    assert tags["region"].endswith(".name}")

"""`make bootstrap`: the bucket for Pulumi's state, and the key for the secrets in it.

Both outlive the stacks, so no stack makes them. What is there already stays as it is.
"""

import argparse

from infra.aws.config import EksCluster
from scripts import stack_file
from scripts.aws_cli import aws, cluster_of
from scripts.console import main, say, step

ALIAS = "alias/pulumi"


def bootstrap(stack_name: str) -> None:
    eks = cluster_of(stack_name, stack_file.read(stack_name))
    state = f"pulumi-state-{eks.account}-{eks.region}"
    with step(f"bucket {state}"):
        make_bucket(state, eks)
    with step(f"key {ALIAS}"):
        make_key(eks)
    say(f"\nnow:\n\n  pulumi login s3://{state}")
    say(f'  pulumi stack init {stack_name} --secrets-provider "awskms://{ALIAS}?region={eks.region}"\n')


def make_bucket(name: str, eks: EksCluster) -> None:
    """Private, with versions: a state that a bad run has written can be had back."""
    there = ["--bucket", name, "--region", eks.region]
    if name not in [bucket["Name"] for bucket in aws("s3api", "list-buckets")["Buckets"]]:
        # us-east-1 is the one region that must not be named.
        place = ["--create-bucket-configuration", f"LocationConstraint={eks.region}"]
        aws("s3api", "create-bucket", *there, *([] if eks.region == "us-east-1" else place))
    blocks = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    private = ",".join(f"{block}=true" for block in blocks)
    aws("s3api", "put-public-access-block", *there, "--public-access-block-configuration", private)
    aws("s3api", "put-bucket-versioning", *there, "--versioning-configuration", "Status=Enabled")


def make_key(eks: EksCluster) -> None:
    aliases = aws("kms", "list-aliases", "--region", eks.region)["Aliases"]
    if any(alias["AliasName"] == ALIAS for alias in aliases):
        return
    made = aws("kms", "create-key", "--region", eks.region, "--description", "Secrets in Pulumi's state")
    key = made["KeyMetadata"]["KeyId"]
    aws("kms", "enable-key-rotation", "--region", eks.region, "--key-id", key)
    aws("kms", "create-alias", "--region", eks.region, "--alias-name", ALIAS, "--target-key-id", key)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack")
    main(lambda: bootstrap(parser.parse_args().stack))

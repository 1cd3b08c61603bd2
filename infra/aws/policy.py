"""IAM policy documents: what is allowed, and who may take a role."""

from typing import Any

import pulumi

from infra.aws.config import EksCluster


def document(*statements: dict[str, Any]) -> pulumi.Output[str]:
    """The statements as JSON; ARNs in them may be outputs."""
    return pulumi.Output.json_dumps({"Version": "2012-10-17", "Statement": list(statements)})


def allow(actions: list[str], resources: Any = "*", **condition: Any) -> dict[str, Any]:
    """A statement; `condition` by IAM's operators, say StringEquals={...}."""
    statement = {"Effect": "Allow", "Action": actions, "Resource": resources}
    return {**statement, "Condition": condition} if condition else statement


def trusted(service: str, actions: tuple[str, ...] = ("sts:AssumeRole",), **condition: Any) -> pulumi.Output[str]:
    """Trust of a role that an AWS service takes."""
    statement = {"Effect": "Allow", "Action": list(actions), "Principal": {"Service": service}}
    return document({**statement, "Condition": condition} if condition else statement)


def pods(eks: EksCluster) -> pulumi.Output[str]:
    """Trust of a role that pods of this cluster take by Pod Identity, and those of no other.

    https://docs.aws.amazon.com/eks/latest/userguide/pod-id-role.html
    """
    return trusted(
        "pods.eks.amazonaws.com",
        ("sts:AssumeRole", "sts:TagSession"),
        StringEquals={"aws:SourceAccount": eks.account},
        ArnEquals={"aws:SourceArn": eks.arn},
    )

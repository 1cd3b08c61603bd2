"""The stack file that a command was given."""

from app.settings import SettingsError
from infra import config
from infra.aws.config import EksCluster
from infra.config import StackConfig
from scripts.console import Problem


def read(stack: str, whatever_it_costs: bool = False) -> StackConfig:
    """The configuration of `stack`. Raises Problem before anything has begun."""
    try:
        return config.from_file(stack, whatever_it_costs=whatever_it_costs)
    except SettingsError as error:
        raise Problem(str(error), "nothing was created; correct the stack file") from None


def eks_cluster(stack_name: str, stack: StackConfig) -> EksCluster:
    """The stack's cluster on AWS. Raises Problem where it is none."""
    if not isinstance(stack.cluster, EksCluster):
        raise Problem(f"stack {stack_name} has no cluster on AWS", "name one of kind eks")
    return stack.cluster

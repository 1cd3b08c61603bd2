"""AWS's own command line, as the scripts use it: by the user's credentials, region and profile."""

import json
import shutil
import subprocess
from typing import Any

from infra.aws.config import EksCluster
from infra.config import StackConfig
from scripts.console import Problem
from scripts.stack_file import eks_cluster


def aws(*arguments: str) -> Any:
    """What `aws` answers, as JSON; None for nothing. Raises Problem with its own words."""
    done = subprocess.run(["aws", *arguments, "--output", "json"], capture_output=True, text=True)
    if done.returncode:
        raise Problem(
            f"aws {' '.join(arguments[:2])}: {done.stderr.strip()}", "mend that, and run the same command again"
        )
    return json.loads(done.stdout) if done.stdout.strip() else None


def cluster_of(stack_name: str, stack: StackConfig) -> EksCluster:
    """The stack's cluster. Raises Problem where it is none on AWS, or the credentials are those of another account."""
    eks = eks_cluster(stack_name, stack)
    if not shutil.which("aws"):
        raise Problem("there is no `aws` on PATH", "install AWS's command line: https://aws.amazon.com/cli")
    account = aws("sts", "get-caller-identity")["Account"]
    if account != eks.account:
        raise Problem(
            f"the credentials are those of account {account}, and stack {stack_name} is for {eks.account}",
            "set AWS_PROFILE to one of that account",
        )
    return eks

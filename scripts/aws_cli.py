"""AWS's own command line, as the scripts use it: by the user's credentials, region and profile."""

import json
import re
import shutil
import subprocess
from typing import Any

from infra.aws.config import EksCluster
from infra.config import StackConfig
from scripts.console import Problem
from scripts.stack_file import eks_cluster

_NO_CREDENTIALS = re.compile(
    r"Expired|expired|Unable to locate credentials|InvalidClientTokenId|InvalidAccessKeyId|UnrecognizedClient"
    r"|AuthFailure|SignatureDoesNotMatch|Error loading SSO Token|config profile"
)
_NO_RIGHT = re.compile(r"AccessDenied|UnauthorizedOperation|not authorized|Forbidden")


class NoCredentials(Problem):
    """AWS does not know who asks, or no longer."""


class Denied(Problem):
    """Whoever asks may not."""


def aws(*arguments: str) -> Any:
    """What `aws` answers, as JSON; None for nothing. Raises Problem with its own words."""
    done = subprocess.run(["aws", *arguments, "--output", "json"], capture_output=True, text=True)
    if not done.returncode:
        return json.loads(done.stdout) if done.stdout.strip() else None
    call, said = " ".join(arguments[:2]), " ".join(done.stderr.split())
    if _NO_CREDENTIALS.search(said):
        raise NoCredentials(f"aws {call}: {said}", "log in again (aws sso login), or set AWS_PROFILE to one that works")
    if _NO_RIGHT.search(said):
        raise Denied(f"aws {call}: {said}", f"let whoever runs this call `{call}`, or run it as somebody who may")
    raise Problem(f"aws {call}: {said}", "mend that, and run the same command again")


def require_aws() -> None:
    """Raises Problem where there is no `aws`."""
    if not shutil.which("aws"):
        raise Problem("there is no `aws` on PATH", "install AWS's command line: https://aws.amazon.com/cli")


def require_account(stack_name: str, eks: EksCluster) -> str:
    """Who asks, as an ARN. Raises Problem where the credentials are those of another account."""
    caller = aws("sts", "get-caller-identity", "--region", eks.region)
    if caller["Account"] != eks.account:
        raise Problem(
            f"the credentials are those of account {caller['Account']}, and stack {stack_name} is for {eks.account}",
            "set AWS_PROFILE to one of that account",
        )
    return caller["Arn"]


def cluster_of(stack_name: str, stack: StackConfig) -> EksCluster:
    """The stack's cluster. Raises Problem where it is none on AWS, or the credentials are those of another account."""
    eks = eks_cluster(stack_name, stack)
    require_aws()
    require_account(stack_name, eks)
    return eks

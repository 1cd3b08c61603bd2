"""AWS's own command line in a test, at the fake AWS."""

import os
import shutil

import pytest

from tests.aws.running import FakeAws


def use(monkeypatch: pytest.MonkeyPatch, aws: FakeAws, key: str, secret: str = "fake", token: str = "") -> None:  # noqa: S107 - of a fake
    """`aws` asks the fake with these credentials, whatever those of whoever runs the tests are."""
    assert shutil.which("aws"), "there is no `aws` on PATH; install AWS's command line: https://aws.amazon.com/cli"
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    nowhere = os.devnull
    for name, value in {
        "AWS_ENDPOINT_URL": aws.endpoint,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_CONFIG_FILE": nowhere,
        "AWS_SHARED_CREDENTIALS_FILE": nowhere,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
        **({"AWS_SESSION_TOKEN": token} if token else {}),
    }.items():
        monkeypatch.setenv(name, value)


def use_role(monkeypatch: pytest.MonkeyPatch, aws: FakeAws, arn: str) -> None:
    """With what somebody has who has taken the role `arn`."""
    taken = aws.client("sts").assume_role(RoleArn=arn, RoleSessionName="test")["Credentials"]
    use(monkeypatch, aws, taken["AccessKeyId"], taken["SecretAccessKey"], taken["SessionToken"])

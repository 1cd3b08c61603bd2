"""The API keys' Secret, Ray's token, the pods' service accounts."""

import base64
from pathlib import Path

import pytest
import yaml

from app import keys
from app.keys import Key, KeysFile
from infra.clusters import LOCAL_KEY
from infra.config import KEYS_FILE, StackConfig
from infra.serving.access import accounts, keys_secret, token_secret
from tests.infra import schemas

SECRET = "sk-a-key-that-nobody-guesses"  # noqa: S105
TEAM = Key(name="team", sha256=keys.digest(SECRET), models=["chat"], requests_per_minute=60)


def written(stack: StackConfig) -> KeysFile:
    """The file in the Secret, as the application reads it."""
    ((name, content),) = keys_secret("llm", stack)["stringData"].items()
    assert KEYS_FILE.endswith(f"/{name}")
    return KeysFile.model_validate(yaml.safe_load(content))


def test_the_secret_has_hashes_and_no_key() -> None:
    stack = StackConfig(keys=[TEAM])
    assert written(stack).keys == [TEAM]
    assert written(StackConfig()).keys == [Key(name="local", sha256=keys.digest(LOCAL_KEY))]
    assert "sk-" not in str(keys_secret("llm", stack))
    assert "sk-" not in str(keys_secret("llm", StackConfig()))


def test_the_application_reads_the_secrets_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    (content,) = keys_secret("llm", StackConfig(keys=[TEAM]))["stringData"].values()
    file.write_text(content)
    ring = keys.KeyRing(file)
    assert ring.find(SECRET) == TEAM
    assert ring.find(LOCAL_KEY) is None


def test_the_token_is_where_kuberay_looks_and_nobody_guesses_it() -> None:
    one, other = (token_secret("llm", StackConfig()) for _ in range(2))
    schemas.validate(one)
    # https://github.com/ray-project/kuberay/blob/v1.6.2/ray-operator/controllers/ray/utils/constant.go
    assert one["data"].keys() == {"auth_token"}
    assert len(base64.b64decode(one["data"]["auth_token"])) == 64
    assert one["data"] != other["data"]


@pytest.mark.parametrize("role", ["head", "worker"])
def test_no_account_brings_a_token_of_the_kubernetes_api(role: str) -> None:
    found = {account["metadata"]["name"]: account for account in accounts("llm", StackConfig())}
    schemas.validate(found[f"llm-{role}"])
    assert found[f"llm-{role}"]["automountServiceAccountToken"] is False

"""Who may do what: the API keys of those who ask, the token of Ray's own parts, the accounts of the pods."""

import base64
import secrets
from pathlib import PurePosixPath
from typing import Any

import yaml

from infra.config import KEYS_FILE, StackConfig


def keys_name(service: str) -> str:
    """Name of the Secret with the API keys of a RayService."""
    return f"{service}-keys"


def keys_secret(service: str, stack: StackConfig) -> dict[str, Any]:
    """The Secret with the file of API keys: SHA-256 only, and still nobody's business."""
    content = {"keys": [key.model_dump(exclude_none=True) for key in stack.api_keys]}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": keys_name(service), "namespace": stack.namespace},
        "stringData": {PurePosixPath(KEYS_FILE).name: yaml.safe_dump(content, sort_keys=False)},
    }


def token_name(service: str) -> str:
    """Name of the Secret with the token by which Ray's processes, and the operator, know each other."""
    return f"{service}-ray-token"


def token_secret(service: str, stack: StackConfig) -> dict[str, Any]:
    """The Secret with Ray's token, another one at each call.

    KubeRay would make one for each Ray cluster, which nobody but it knows by name.
    """
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": token_name(service), "namespace": stack.namespace},
        "data": {"auth_token": base64.b64encode(secrets.token_hex(32).encode()).decode()},
    }


def valkey_name(service: str) -> str:
    """Name of the Secret with the password of the Valkey that the program makes."""
    return f"{service}-valkey"


def valkey_secret(service: str, stack: StackConfig, password: Any) -> dict[str, Any]:
    """The Secret with the password, an output, by which the Ray head gets to its state."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": valkey_name(service), "namespace": stack.namespace},
        "stringData": {"password": password},
    }


def account_name(service: str, role: str) -> str:
    """Name of the service account of the pods of a role: head or worker."""
    return f"{service}-{role}"


def accounts(service: str, stack: StackConfig) -> list[dict[str, Any]]:
    """The service accounts of head and workers. No pod is given a token of the Kubernetes API with it."""
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": account_name(service, role), "namespace": stack.namespace},
            "automountServiceAccountToken": False,
        }
        for role in ("head", "worker")
    ]

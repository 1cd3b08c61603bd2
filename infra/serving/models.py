"""The built-in models' weights: a directory of the nodes, which pods read by way of a PersistentVolume.

A pod may not name a directory of its node itself: Pod Security's "restricted" forbids it.
"""

import hashlib
from pathlib import PurePosixPath
from typing import Any

from infra.config import StackConfig

CACHE = "/opt/blueprint"
"""$BLUEPRINT_CACHE of the pods."""


def volume_name(service: str, stack: StackConfig) -> str | None:
    """Name of the volume and of the claim to it; None in a stack that serves no built-in weights.

    Another directory has another name: where a volume is cannot be changed, nor can it go while pods use it.
    """
    if stack.models_path is None:
        return None
    return f"{stack.namespace}-{service}-models-{hashlib.sha256(stack.models_path.encode()).hexdigest()[:8]}"


def model_volume(service: str, stack: StackConfig) -> list[dict[str, Any]]:
    """The PersistentVolume and the claim that binds it; nothing where there is none."""
    name = volume_name(service, stack)
    if name is None:
        return []
    # What Kubernetes compares when it binds the two; nothing here is ever written.
    size = {"storage": "1Gi"}
    # storageClassName "": without it, the cluster's default class would make a new volume.
    common = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                **common,
                "capacity": size,
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"namespace": stack.namespace, "name": name},
                # Directory: a pod on a node without it waits, and its events say why.
                "hostPath": {"path": stack.models_path, "type": "Directory"},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": stack.namespace},
            "spec": {**common, "resources": {"requests": size}, "volumeName": name},
        },
    ]


def mount_models(pod: dict[str, Any], service: str, stack: StackConfig) -> None:
    """Give a pod template the built-in models that its stack serves, where app.builtin looks for them."""
    name = volume_name(service, stack)
    if name is None:
        return
    (container,) = pod["spec"]["containers"]
    claim = {"claimName": name, "readOnly": True}
    pod["spec"]["volumes"].append({"name": "models", "persistentVolumeClaim": claim})
    mount = {"name": "models", "mountPath": str(PurePosixPath(CACHE) / "models"), "readOnly": True}
    container["volumeMounts"].append(mount)
    container["env"].append({"name": "BLUEPRINT_CACHE", "value": CACHE})

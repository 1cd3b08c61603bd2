"""How a stack reaches its cluster, and under which name.

The provider is always explicit, so no resource lands on whatever context is current.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pulumi
import pulumi_kubernetes as kubernetes

from app.settings import SettingsError
from infra.clusters import ExistingCluster, NativeCluster
from infra.config import PROJECT


def provider(cluster: NativeCluster | ExistingCluster) -> kubernetes.Provider:
    """The provider. Raises RunError, which Pulumi prints without a trace, when the stack may not go there."""
    try:
        context = cluster.context
    except SettingsError as error:
        raise pulumi.RunError(str(error)) from None
    # The path, not the content: the state must not carry cluster credentials.
    return kubernetes.Provider("cluster", kubeconfig=str(cluster.kubeconfig_path), context=context)


def manager(stack: str) -> str:
    """The field manager by whose name the stack's objects know their maker."""
    return f"{PROJECT}-{stack}"


def signed(metadata: Mapping[str, Any]) -> Any:  # a dictionary, for resources and manifests alike
    """The metadata of a Kubernetes object that makes it the stack's `manager`'s, as every object of the program is.

    Pulumi invents a manager for each object it creates. After a create that was interrupted, the next `up` creates the
    object anew, which with server-side apply is taking it over, and would be another manager: the first still owns the
    fields, and the next change of one would end in a conflict.
    """
    annotations = metadata.get("annotations", {}) | {"pulumi.com/patchFieldManager": manager(pulumi.get_stack())}
    return {**metadata, "annotations": annotations}


def signed_objects(objects: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The manifests as the stack's own."""
    return [{**item, "metadata": signed(item["metadata"])} for item in objects]


def custom_resource(
    name: str, manifest: Mapping[str, Any], opts: pulumi.ResourceOptions
) -> kubernetes.apiextensions.CustomResource:
    """The resource of an object whose kind is a CRD's, as the stack's own; `name` is Pulumi's."""
    return kubernetes.apiextensions.CustomResource(
        name,
        api_version=manifest["apiVersion"],
        kind=manifest["kind"],
        metadata=signed(manifest["metadata"]),
        spec=manifest["spec"],
        opts=opts,
    )


def sign(resource: pulumi.ResourceTransformArgs) -> pulumi.ResourceTransformResult | None:
    """The transform for objects that the program does not write itself: a chart's.

    It takes the engine and this process 10 s to hand each other the megabytes of the CRDs, so only where it must be.
    """
    metadata = resource.props.get("metadata")
    if not isinstance(metadata, dict) or not resource.type_.startswith("kubernetes:"):
        return None
    return pulumi.ResourceTransformResult({**resource.props, "metadata": signed(metadata)}, resource.opts)

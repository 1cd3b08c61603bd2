"""Load balancers that the internet reaches: only by TLS, and only to what asks for a key."""

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from infra.policy.resources import UNKNOWN, Resource, at, objects, walk

_SERVICE = "service.beta.kubernetes.io/aws-load-balancer-"
_ALB = "alb.ingress.kubernetes.io/"


def open_to_all(resources: Sequence[Resource]) -> Iterator[tuple[str, str]]:
    """URN and message for each way from the internet to the models that is in the clear, or that anybody may take."""
    keys = any(map(_asks_for_keys, resources))
    for resource in resources:
        listeners = [other for other in resources if resource.urn in other.depends.get("loadBalancerArn", ())]
        ways = [*_of_kubernetes(resource)]
        if _is_public_balancer(resource):
            ways = [(listener.urn, "protocol", _is_encrypted(listener)) for listener in listeners]
        for urn, place, encrypted in ways:
            if not encrypted:
                yield (
                    urn,
                    f"{place}: has no TLS, and prompts and API keys would go over the internet in the clear; "
                    "fix: set host and certificate in cluster.entry, or make it internal",
                )
        if ways and not keys and not any(map(_asks_who, listeners)):
            yield (
                resource.urn,
                "the internet reaches it, and nothing behind it asks for a key: anybody's requests run on these GPUs; "
                "fix: list `keys` in the stack file, let the listener authenticate (OIDC), or make it internal",
            )


def _is_public_balancer(resource: Resource) -> bool:
    """As one of AWS is, unless it is internal."""
    made = resource.kind.startswith(("aws:lb/loadBalancer:", "aws:alb/loadBalancer:"))
    return made and resource.at("internal") not in (True, UNKNOWN)


def _is_encrypted(listener: Resource) -> bool:
    """Or leads to where it is."""
    redirects = [at(action, "redirect", "protocol") for action in objects(listener.at("defaultActions"))]
    return listener.at("protocol") in ("TLS", "HTTPS", UNKNOWN) or (bool(redirects) and {*redirects} == {"HTTPS"})


def _asks_who(listener: Resource) -> bool:
    actions = objects(listener.at("defaultActions"))
    return any(str(action.get("type")).startswith("authenticate-") for action in actions)


def _asks_for_keys(resource: Resource) -> bool:
    """Whether it is a RayService whose gateway has a file of API keys."""
    config = resource.at("spec", "serveConfigV2") if resource.is_kubernetes("RayService") else None
    if not isinstance(config, str):
        return False
    applications = objects(at(yaml.load(config, Loader=yaml.CSafeLoader), "applications"))
    return any(at(application, "args", "auth", "keys_file") for application in applications)


def _of_kubernetes(resource: Resource) -> Iterator[tuple[str, str, bool]]:
    """Public load balancers that come by way of Kubernetes: URN, the property that decides, and whether it has TLS."""
    urn = resource.urn
    if resource.is_kubernetes("Service") and _is_public(resource.props):
        yield urn, f"metadata.annotations.{_SERVICE}ssl-cert", _has_certificate(resource.props)
    if resource.is_kubernetes("Ingress"):
        notes = resource.at("metadata", "annotations")
        if resource.at("spec", "ingressClassName") != "alb" or at(notes, f"{_ALB}scheme") == "internet-facing":
            yield urn, "spec.tls", bool(resource.at("spec", "tls") or at(notes, f"{_ALB}certificate-arn"))
    if resource.is_kubernetes("RayService", "RayCluster"):
        for path, value in walk(resource.at("spec")):
            if path.endswith(("headService", "serveService")) and _is_public(value):
                yield urn, f"spec.{path}.metadata.annotations.{_SERVICE}ssl-cert", _has_certificate(value)
            # KubeRay makes it without annotations.
            if path.endswith("serviceType") and value == "LoadBalancer":
                yield urn, f"spec.{path}", False


def _is_public(service: Any) -> bool:
    """As a Service of type LoadBalancer is, unless its annotations say otherwise."""
    notes = at(service, "metadata", "annotations")
    internal = at(notes, f"{_SERVICE}scheme") == "internal" or at(notes, f"{_SERVICE}internal") == "true"
    return at(service, "spec", "type") == "LoadBalancer" and not internal


def _has_certificate(service: Any) -> bool:
    return bool(at(service, "metadata", "annotations", f"{_SERVICE}ssl-cert"))

"""What a stack file may say of how the stack is seen: who collects its metrics, for how long, and whom alerts reach."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from app.validation import Strict
from infra.aws.config import Mirrors
from infra.observability.objectives import Objectives
from infra.secret_key import SecretKey

ADDRESS = r"^https?://[^\s@]+$"
NAME = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"


class RemoteWrite(Strict):
    """Another Prometheus, Mimir or the like, to which every sample goes as well."""

    url: str = Field(
        json_schema_extra={"pattern": ADDRESS}, description="Where it takes them, say https://…/api/v1/write."
    )
    username: SecretKey | None = Field(default=None, description="Where the name for HTTP's basic authentication is.")
    password: SecretKey | None = Field(default=None, description="And the password that goes with it.")
    token: SecretKey | None = Field(default=None, description="Where the bearer token is, for those who want one.")

    @model_validator(mode="after")
    def _credentials_are_one_kind_of_secret(self) -> "RemoteWrite":
        if "@" in self.url:
            raise ValueError(
                "url: holds a password in the clear; fix: leave it out, and name the Secrets that have it in username "
                "and password"
            )
        if not re.fullmatch(ADDRESS, self.url):
            raise ValueError(f"url = {self.url!r}: is no address; fix: write https://<host>/<path>")
        if bool(self.username) != bool(self.password):
            key = "password" if self.username else "username"
            raise ValueError(f"{key}: is missing, and one is nothing without the other; fix: set both, or neither")
        if self.token and self.username:
            raise ValueError(
                "token: a request has one Authorization header; fix: leave it out, or username and password"
            )
        if (self.token or self.username) and not self.url.startswith("https://"):
            raise ValueError(f"url = {self.url!r}: would carry credentials in the clear; fix: write https://…")
        return self


class Storage(Strict):
    """The volume of Prometheus' samples."""

    gib: int = Field(default=50, ge=1, description="Its size, in GiB; Prometheus fills four fifths of it at most.")
    class_name: str | None = Field(
        default=None,
        pattern=NAME,
        description="StorageClass of the volume; left out, the cluster's default, or, on EKS, encrypted gp3.",
    )


class _Seen(Strict):
    objectives: Objectives = Objectives()


class _Prometheus(_Seen):
    """A Prometheus of the stack's own, in monitoring_namespace."""

    retention: str = Field(
        default="15d", pattern=r"^[1-9][0-9]*(h|d|w|y)$", description="How long samples are kept, say 15d."
    )
    storage: Storage | None = Field(
        default=Storage(), description="Where they are kept; null: in the pod, and gone with it."
    )
    memory_gib: int = Field(default=2, ge=1, description="Memory limit of Prometheus, in GiB.")
    external_labels: dict[Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")], str] = Field(
        default={}, description="Labels of all that leaves it: alerts, and samples that are written elsewhere."
    )
    remote_write: list[RemoteWrite] = Field(default=[], description="Where samples go as well.")
    alertmanager_secret: str | None = Field(
        default=None,
        pattern=NAME,
        description="Secret in monitoring_namespace with an alertmanager.yaml: whom alerts reach, and how. Left out, "
        "there is no Alertmanager, and alerts only show in Prometheus.",
    )
    mirrors: Mirrors = Field(
        default=Mirrors(), description="Where chart and images come from; for a cluster of kind eks, cluster.mirrors."
    )


class PrometheusStack(_Prometheus):
    """The Helm chart kube-prometheus-stack: operator, Prometheus, Alertmanager, Grafana, kube-state-metrics."""

    kind: Literal["chart"]
    grafana_secret: str | None = Field(
        default=None,
        pattern=NAME,
        description="Secret in monitoring_namespace with the admin-user and admin-password of Grafana; left out, the "
        "program makes one.",
    )


class PrometheusOperator(_Prometheus):
    """The Prometheus operator from the manifests in this repository, and a Prometheus: where no chart can be had."""

    kind: Literal["manifests"]

    @model_validator(mode="after")
    def _no_chart_is_mirrored(self) -> "PrometheusOperator":
        if self.mirrors.charts:
            raise ValueError(
                f"mirrors.charts = {self.mirrors.charts!r}: no chart is taken; fix: leave it out, or set kind: chart"
            )
        return self


class ObjectsOnly(_Seen):
    """PodMonitors, rules and dashboards for an operator that runs on the cluster already."""

    kind: Literal["objects"]
    labels: dict[str, str] = Field(
        default={},
        description="Of PodMonitors and rules: by which that Prometheus selects them, say release: prometheus.",
    )


Observability = Annotated[PrometheusStack | PrometheusOperator | ObjectsOnly, Field(discriminator="kind")]

"""Clusters that somebody else makes, or `make up` on this machine: where they are, and how they are reached.

That of kind eks, which the program makes, is in infra/aws/config.py.
"""

import os
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from app.builtin import models_dir
from app.settings import SettingsError, Strict
from infra import ROOT

LOCAL_KEY = "sk-local"
"""The API key of a native cluster whose stack file has none: everybody on this machine may know it, and nobody else
reaches that cluster."""

NATIVE_ADDRESS = "10.219.0.1"
"""Of a native cluster's one node: its API server's and its DNS', as pods see it."""


def state_dir() -> Path:
    """Where the native cluster and its Pulumi state live. `make down` removes it."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(os.environ.get("BLUEPRINT_STATE") or Path(base) / "ray-serve-blueprint")


def native_kubeconfig() -> Path:
    """The kubeconfig that `scripts/cluster` writes, for 127.0.0.1."""
    return state_dir() / "cluster" / "kubeconfig"


class NativeCluster(Strict):
    """A one-node Kubernetes on this machine, started by `make up` and removed by `make down`."""

    kind: Literal["native"] = "native"

    @property
    def models_path(self) -> str:
        """The node sees this machine's files."""
        return str(models_dir())

    @property
    def kubeconfig_path(self) -> Path:
        return native_kubeconfig()

    @property
    def context(self) -> str | None:
        """The native kubeconfig has one context only."""
        return None


class ExistingCluster(Strict):
    """A cluster that somebody else runs, reached through a kubeconfig."""

    kind: Literal["existing"] = "existing"
    contexts: list[str] = Field(
        min_length=1,
        description="The kubeconfig contexts that this stack may be deployed to. Of several, the current one is taken.",
    )
    kubeconfig: str | None = Field(
        default=None, description="Path of the kubeconfig; $KUBECONFIG or ~/.kube/config when left out."
    )
    models_path: str | None = Field(
        default=None,
        pattern="^/",
        description="Directory of its nodes with the built-in models (`python -m app.builtin` makes them); needed when "
        "any is served.",
    )

    @property
    def kubeconfig_path(self) -> Path:
        # Of a KUBECONFIG list, kubectl itself would merge all; Pulumi's provider takes one file.
        default = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0] or "~/.kube/config"
        return ROOT / Path(self.kubeconfig or default).expanduser()

    @property
    def context(self) -> str:
        """The context to deploy to. Raises SettingsError when the kubeconfig has none that the stack allows."""
        path = self.kubeconfig_path
        wants = "fix: set cluster.kubeconfig in the stack file or KUBECONFIG to"
        try:
            content = yaml.safe_load(path.read_text())
            known = [entry["name"] for entry in content["contexts"]]
        except OSError as error:
            raise SettingsError(
                f"cannot read the kubeconfig {path}: {error.strerror}; {wants} a file that you may read"
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
            raise SettingsError(f"{path} is not a kubeconfig; {wants} one") from None
        context = self.contexts[0] if len(self.contexts) == 1 else content.get("current-context")
        if context not in self.contexts:
            raise SettingsError(
                f"cluster.contexts = {self.contexts}: the current context of {path} is {context!r}, where this stack "
                "does not belong; fix: kubectl config use-context with one of them, or add it to the list"
            )
        if context not in known:
            raise SettingsError(
                f"cluster.contexts = {self.contexts}: {context!r} is not in {path}; "
                f"fix: name one of its contexts: {', '.join(known) or 'it has none'}"
            )
        return context

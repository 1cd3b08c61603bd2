"""The native cluster: a one-node Kubernetes in its own namespaces. What other packages may call."""

from scripts.cluster.lifecycle import leftovers, running, start, stop

__all__ = ["leftovers", "running", "start", "stop"]

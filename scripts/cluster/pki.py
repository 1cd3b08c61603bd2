"""Certificates and kubeconfigs of the native cluster, made by openssl. They live as long as the cluster."""

import base64
import subprocess
from pathlib import Path
from typing import Any

from scripts.cluster.layout import API_SERVICE_IP, NAME, NODE, NODE_IP
from scripts.console import Problem

USERS = {
    "admin": "/O=system:masters/CN=admin",
    "controller-manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "proxy": "/CN=system:kube-proxy",
    "kubelet": f"/O=system:nodes/CN=system:node:{NODE}",
    "coredns": "/CN=coredns",
}
"""Who gets a kubeconfig, and as what the API server knows them."""

_CLIENTS = {
    "apiserver-kubelet": "/O=system:masters/CN=apiserver-kubelet",
    "front-proxy": "/CN=front-proxy",
}

_SERVERS = {
    "apiserver": [
        *("DNS:kubernetes", "DNS:kubernetes.default", "DNS:kubernetes.default.svc"),
        *("DNS:kubernetes.default.svc.cluster.local", "DNS:localhost"),
        *("IP:127.0.0.1", f"IP:{API_SERVICE_IP}", f"IP:{NODE_IP}"),
    ],
    "kubelet-server": [f"DNS:{NODE}", f"IP:{NODE_IP}"],
}

_CURVE = ("-pkeyopt", "ec_paramgen_curve:P-256")


def _openssl(*arguments: str) -> None:
    # A configuration of our own: the distribution's would add extensions that clash with -addext.
    done = subprocess.run(
        ["openssl", *arguments],
        input="[req]\ndistinguished_name=dn\n[dn]\n",
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise Problem(
            f"openssl {arguments[0]} failed: {done.stderr.strip()}",
            "check that `openssl version` says 3.0 or newer",
        )


def _certificate(directory: Path, name: str, subject: str, *extensions: str, ca: bool = False) -> None:
    _openssl(
        *("req", "-x509", "-config", "/dev/stdin", "-days", "365", "-subj", subject),
        *("-newkey", "ec", "-noenc", *_CURVE),
        *("-keyout", str(directory / f"{name}.key"), "-out", str(directory / f"{name}.crt")),
        *(word for extension in extensions for word in ("-addext", extension)),
        *(() if ca else ("-CA", str(directory / "ca.crt"), "-CAkey", str(directory / "ca.key"))),
    )


def create(directory: Path) -> None:
    """One authority, the servers' and clients' certificates, and the key that signs service account tokens."""
    directory.mkdir(mode=0o700, parents=True)
    _certificate(
        *(directory, "ca", f"/CN={NAME}"),
        *("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"),
        ca=True,
    )
    leaf = ("basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature")
    for name, names in _SERVERS.items():
        alternatives = f"subjectAltName={','.join(names)}"
        _certificate(directory, name, f"/CN={name}", *leaf, "extendedKeyUsage=serverAuth", alternatives)
    for name, subject in {**_CLIENTS, **USERS}.items():
        _certificate(directory, name, subject, *leaf, "extendedKeyUsage=clientAuth")
    private, public = str(directory / "accounts.key"), str(directory / "accounts.pub")
    _openssl("genpkey", "-algorithm", "EC", *_CURVE, "-out", private)
    _openssl("pkey", "-in", private, "-pubout", "-out", public)


def kubeconfig(directory: Path, user: str, server: str) -> dict[str, Any]:
    """A kubeconfig that needs no other file."""

    def data(file: str) -> str:
        return base64.b64encode((directory / file).read_bytes()).decode()

    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": NAME,
                "cluster": {"server": server, "certificate-authority-data": data("ca.crt")},
            }
        ],
        "users": [
            {
                "name": f"{NAME}-{user}",
                "user": {
                    "client-certificate-data": data(f"{user}.crt"),
                    "client-key-data": data(f"{user}.key"),
                },
            }
        ],
        "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": f"{NAME}-{user}"}}],
        "current-context": NAME,
    }

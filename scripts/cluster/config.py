"""What every component is told: its command line and its configuration file. It starts nothing."""

import json
from pathlib import Path
from typing import Any

import yaml

from infra.clusters import native_kubeconfig
from scripts.cluster import pki
from scripts.cluster.layout import (
    API_PORT,
    NAME,
    NODE,
    NODE_IP,
    PAUSE_IMAGE,
    POD_RANGE,
    SERVICE_RANGE,
    api_port,
    home,
)

CNI_PLUGINS = "/usr/lib/cni"
_ETCD = "http://127.0.0.1:2379"
_PEER = "http://127.0.0.1:2380"


def commands(bin_dir: Path) -> dict[str, list[str]]:
    """The command line of every component, in the order in which they start."""
    keys = home() / "pki"
    files = home() / "config"
    kube = str(bin_dir / "kube")

    def as_user(user: str) -> list[str]:
        file = files / f"{user}.kubeconfig"
        return [f"--{use}kubeconfig={file}" for use in ("", "authentication-", "authorization-")]

    return {
        "containerd": ["containerd", "--config", f"{files}/containerd.toml"],
        "etcd": [
            *(kube, "etcd", "--name=only", f"--data-dir={home()}/etcd", "--log-level=warn"),
            *(f"--listen-client-urls={_ETCD}", f"--advertise-client-urls={_ETCD}"),
            *(f"--listen-peer-urls={_PEER}", f"--initial-advertise-peer-urls={_PEER}"),
            f"--initial-cluster=only={_PEER}",
            "--unsafe-no-fsync",  # the data does not outlive the cluster
        ],
        "kube-apiserver": [
            *(kube, "kube-apiserver", f"--etcd-servers={_ETCD}"),
            *(f"--bind-address={NODE_IP}", f"--advertise-address={NODE_IP}"),
            *(f"--secure-port={API_PORT}", f"--service-cluster-ip-range={SERVICE_RANGE}"),
            *("--anonymous-auth=false", "--authorization-mode=Node,RBAC", "--profiling=false"),
            *("--enable-admission-plugins=NodeRestriction", "--allow-privileged=true"),
            f"--client-ca-file={keys}/ca.crt",
            f"--tls-cert-file={keys}/apiserver.crt",
            f"--tls-private-key-file={keys}/apiserver.key",
            f"--kubelet-client-certificate={keys}/apiserver-kubelet.crt",
            f"--kubelet-client-key={keys}/apiserver-kubelet.key",
            f"--kubelet-certificate-authority={keys}/ca.crt",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={keys}/accounts.pub",
            f"--service-account-signing-key-file={keys}/accounts.key",
            f"--requestheader-client-ca-file={keys}/ca.crt",
            "--requestheader-allowed-names=front-proxy",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={keys}/front-proxy.crt",
            f"--proxy-client-key-file={keys}/front-proxy.key",
        ],
        "kube-controller-manager": [
            *(kube, "kube-controller-manager", *as_user("controller-manager")),
            *("--leader-elect=false", "--bind-address=127.0.0.1"),
            *("--use-service-account-credentials=true", f"--root-ca-file={keys}/ca.crt"),
            # Every controller fetches a token at the start: at the default 20 a second, 4 s.
            *("--kube-api-qps=200", "--kube-api-burst=400"),
            "--flex-volume-plugin-dir=/var/lib/kubelet/volume-plugins",
            f"--service-account-private-key-file={keys}/accounts.key",
            f"--cluster-signing-cert-file={keys}/ca.crt",
            f"--cluster-signing-key-file={keys}/ca.key",
        ],
        "kube-scheduler": [
            *(kube, "kube-scheduler", *as_user("scheduler")),
            *("--leader-elect=false", "--bind-address=127.0.0.1"),
        ],
        "kubelet": [
            *(kube, "kubelet", f"--config={files}/kubelet.yaml"),
            *(f"--kubeconfig={files}/kubelet.kubeconfig", f"--hostname-override={NODE}"),
            f"--node-ip={NODE_IP}",
        ],
        "kube-proxy": [kube, "kube-proxy", f"--config={files}/kube-proxy.yaml"],
        "coredns": [str(bin_dir / "coredns"), "-conf", f"{files}/Corefile"],
    }


def _kubelet() -> dict[str, Any]:
    keys = home() / "pki"
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_IP,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{keys}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{keys}/kubelet-server.crt",
        "tlsPrivateKeyFile": f"{keys}/kubelet-server.key",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",  # no systemd inside
        "cgroupRoot": f"/{NAME}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,  # lowering it takes a capability that containers and some machines lack
        "clusterDNS": [NODE_IP],
        "clusterDomain": "cluster.local",
        "resolvConf": f"{home()}/config/resolv.conf",
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",  # else it writes to /usr/libexec
        # Absolute amounts: the default 10 % of a large, well filled disk would evict every pod.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1Gi"},
        # Images cannot be pulled again here, so none is ever collected.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    }


def _kube_proxy() -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "bindAddress": NODE_IP,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "clientConnection": {"kubeconfig": f"{home()}/config/proxy.kubeconfig"},
        "clusterCIDR": POD_RANGE,
        "hostnameOverride": NODE,
        "oomScoreAdj": 0,
        # The size of the connection table is the machine's and not the namespace's: leave it alone.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "iptables": {"localhostNodePorts": False},
        "nodePortAddresses": [f"{NODE_IP}/32"],
    }


def _pod_network() -> dict[str, Any]:
    # Point to point, not a bridge: all traffic is routed, so that Services work between any two
    # pods without the br_netfilter module.
    ranges = {"type": "host-local", "dataDir": "/run/cni", "ranges": [[{"subnet": POD_RANGE}]]}
    return {
        "cniVersion": "1.0.0",
        "name": NAME,
        "plugins": [
            {"type": "ptp", "ipam": {**ranges, "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def _containerd(major: int) -> str:
    """https://github.com/containerd/containerd/blob/main/docs/cri/config.md"""
    cni = f"{home()}/config/cni"
    if major == 1:
        return f"""\
version = 2
oom_score = 0
# opt would create directories in the machine's /opt.
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{cni}"
"""
    return f"""\
version = 3
oom_score = 0
# opt would create directories in the machine's /opt; without mkfs.erofs on the machine, the erofs
# plugins take CRI down with them.
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.differ.v1.erofs",
  "io.containerd.snapshotter.v1.erofs",
]
[plugins."io.containerd.transfer.v1.local"]
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux"
    snapshotter = "overlayfs"
    differ = "walking"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{PAUSE_IMAGE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{CNI_PLUGINS}"]
    conf_dir = "{cni}"
"""


def _corefile() -> str:
    return f"""\
.:53 {{
  bind {NODE_IP}
  errors
  kubernetes cluster.local in-addr.arpa ip6.arpa {{
    kubeconfig "{home()}/config/coredns.kubeconfig"
    ttl 5
  }}
  cache 5
}}
"""


def addons() -> list[dict[str, Any]]:
    """Objects that the cluster needs from its first second: what CoreDNS may read."""
    name = {"metadata": {"name": "coredns"}}
    group = "rbac.authorization.k8s.io"

    def reads(api: str, *resources: str) -> dict[str, list[str]]:
        return {"apiGroups": [api], "resources": [*resources], "verbs": ["list", "watch"]}

    return [
        {
            **{"apiVersion": f"{group}/v1", "kind": "ClusterRole", **name},
            "rules": [
                reads("", "services", "pods", "namespaces"),
                reads("discovery.k8s.io", "endpointslices"),
            ],
        },
        {
            **{"apiVersion": f"{group}/v1", "kind": "ClusterRoleBinding", **name},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "coredns"},
            "subjects": [{"kind": "User", "name": "coredns", "apiGroup": group}],
        },
    ]


def write(containerd_major: int) -> None:
    """Every file that the components read, the user's kubeconfig included."""
    files = home() / "config"
    (files / "cni").mkdir(parents=True)
    inside = f"https://{NODE_IP}:{API_PORT}"
    outside = f"https://127.0.0.1:{api_port()}"
    documents = {
        **{files / f"{user}.kubeconfig": pki.kubeconfig(home() / "pki", user, inside) for user in pki.USERS},
        native_kubeconfig(): pki.kubeconfig(home() / "pki", "admin", outside),
        files / "kubelet.yaml": _kubelet(),
        files / "kube-proxy.yaml": _kube_proxy(),
    }
    texts = {
        **{path: yaml.safe_dump(document) for path, document in documents.items()},
        files / "addons.yaml": yaml.safe_dump_all(addons()),
        files / "cni" / "10-pods.conflist": json.dumps(_pod_network()),
        files / "containerd.toml": _containerd(containerd_major),
        files / "Corefile": _corefile(),
        files / "resolv.conf": f"nameserver {NODE_IP}\n",
    }
    for path, text in texts.items():
        path.touch(mode=0o600)
        path.write_text(text)

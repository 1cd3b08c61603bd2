"""An instrument of ours that enforces NetworkPolicies on the native cluster, whose network plug-in does not.

It is for these tests alone: one node, IPv4, and of what policies may say that which infra/serving/network.py makes use
of. Pods and policies are read twice a second, so a new pod is open that long. The rules are those of
https://kubernetes.io/docs/concepts/services-networking/network-policies/: the policies that select a pod close it in
their directions, and what any of them names is open. What a network plug-in makes of them, it does not show.
"""

import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx

from scripts.cluster.layout import Record
from scripts.kubectl import Kubectl

Object = dict[str, Any]
_SELECTOR_KEYS = {"matchLabels"}
_PEER_KEYS = {"podSelector", "namespaceSelector", "ipBlock"}
_PORT_KEYS = {"port", "protocol"}


class _Direction(NamedTuple):
    chain: str
    pod: str
    """iptables' option for the address of the pod that a policy selects."""
    peer: str
    """… and for the other end's."""
    peers: str
    """The key of the peers in a policy's rules."""


_DIRECTIONS = {
    "Egress": _Direction("POLICIES-EGRESS", "-s", "-d", "to"),
    "Ingress": _Direction("POLICIES-INGRESS", "-d", "-s", "from"),
}
# After kube-proxy has put a pod's address in a Service's place. What the node itself sends comes by neither: probes.
_PLACES = [("FORWARD", "Egress"), ("FORWARD", "Ingress"), ("INPUT", "Egress")]


def ruleset(pods: Sequence[Object], namespaces: Sequence[Object], policies: Sequence[Object]) -> str:
    """What iptables-restore is told: both chains, whole. A refused connection is told so at once, by ICMP."""
    lines = [f":{direction.chain} - [0:0]" for direction in _DIRECTIONS.values()]
    for name, direction in _DIRECTIONS.items():
        lines.append(f"-A {direction.chain} -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN")
        for pod in filter(_has_address, pods):
            about = [policy for policy in policies if _selects(policy, pod) and name in policy["spec"]["policyTypes"]]
            pod_is = f"-A {direction.chain} {direction.pod} {pod['status']['podIP']}"
            for policy in about:
                for rule in policy["spec"].get(name.lower(), []):
                    peers = _peers(policy, rule.get(direction.peers), pods, namespaces)
                    lines += [
                        f"{pod_is} {f'{direction.peer} {peer} ' if peer else ''}{port}-j RETURN"
                        for peer in peers
                        for port in _ports(rule.get("ports"))
                    ]
            if about:
                lines.append(f"{pod_is} -j REJECT --reject-with icmp-admin-prohibited")
    return "\n".join(["*filter", *lines, "COMMIT", ""])


def _has_address(pod: Object) -> bool:
    """One of its own, which a pod that has ended may have passed on."""
    running = pod["status"].get("phase") not in ("Succeeded", "Failed")
    return running and "podIP" in pod["status"] and not pod["spec"].get("hostNetwork")


def _selects(policy: Object, pod: Object) -> bool:
    same = policy["metadata"]["namespace"] == pod["metadata"]["namespace"]
    return same and _matches(policy["spec"]["podSelector"], pod)


def _matches(selector: Mapping[str, Any], item: Object) -> bool:
    _known(selector, _SELECTOR_KEYS)
    return selector.get("matchLabels", {}).items() <= item["metadata"].get("labels", {}).items()


def _known(found: Mapping[str, Any], known: set[str]) -> None:
    if unknown := found.keys() - known:
        raise NotImplementedError(f"the tests' enforcer of network policies does not read {unknown}")


def _peers(
    policy: Object, peers: Sequence[Object] | None, pods: Sequence[Object], namespaces: Sequence[Object]
) -> Iterator[str]:
    """Addresses and networks; an empty one is everywhere."""
    if peers is None:
        yield ""
    for peer in peers or ():
        _known(peer, _PEER_KEYS)
        if "ipBlock" in peer:
            _known(peer["ipBlock"], {"cidr"})
            yield peer["ipBlock"]["cidr"]
            continue
        homes = {policy["metadata"]["namespace"]}
        if "namespaceSelector" in peer:
            homes = {item["metadata"]["name"] for item in namespaces if _matches(peer["namespaceSelector"], item)}
        for pod in filter(_has_address, pods):
            if pod["metadata"]["namespace"] in homes and _matches(peer.get("podSelector", {}), pod):
                yield pod["status"]["podIP"]


def _ports(ports: Sequence[Object] | None) -> Iterator[str]:
    if ports is None:
        yield ""
    for port in ports or ():
        _known(port, _PORT_KEYS)
        if not isinstance(port["port"], int):
            raise NotImplementedError("the tests' enforcer of network policies reads numbers of ports only")
        yield f"-p {port['protocol'].lower()} --dport {port['port']} "


class Enforcer:
    def __init__(self, api: httpx.Client) -> None:
        record = Record.load()
        assert record, "the native cluster does not run"
        # In its mounts too: there is the lock that kube-proxy and this both wait for.
        self._node = ("nsenter", "--target", str(record.node), "--net", "--mount")
        self._api = api
        self._last = ""
        self.failure: BaseException | None = None

    def run(self, over: threading.Event) -> None:
        try:
            while not over.wait(0.5):
                self.enforce()
        except BaseException as error:
            self.failure = error
            raise

    def enforce(self) -> None:
        """Put in force what the API server says now."""
        resources = ("api/v1/pods", "api/v1/namespaces", "apis/networking.k8s.io/v1/networkpolicies")
        found = [self._api.get(resource).raise_for_status().json()["items"] for resource in resources]
        if (wanted := ruleset(*found)) != self._last:
            self._do("iptables-restore", "--noflush", "--wait", stdin=wanted)
            self._last = wanted

    def hook(self, switch: str) -> None:
        """iptables' -I puts the chains before all others, its -D takes them away."""
        for place, direction in _PLACES:
            self._do("iptables", "--wait", switch, place, "-j", _DIRECTIONS[direction].chain)

    def _do(self, *command: str, stdin: str = "") -> None:
        done = subprocess.run([*self._node, *command], input=stdin, text=True, capture_output=True)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}\n{stdin}"


@contextmanager
def enforced(kubernetes: Kubectl) -> Iterator[Enforcer]:
    """Network policies are enforced as long as this lasts."""
    over = threading.Event()
    with kubernetes.api() as api:
        enforcer = Enforcer(api)
        enforcer.enforce()
        enforcer.hook("-I")
        thread = threading.Thread(target=enforcer.run, args=[over])
        thread.start()
        try:
            yield enforcer
        finally:
            over.set()
            thread.join()
            enforcer.hook("-D")
    assert enforcer.failure is None, f"policies were not enforced to the end: {enforcer.failure!r}"

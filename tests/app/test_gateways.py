"""Several gateways of one application, and one that would be open to everybody."""

import json
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import keys
from app.settings import NOTHING, parse
from tests.app import redis_container
from tests.app.bad import Bad, require_refusal
from tests.app.conftest import eventually, httpx_client, metrics
from tests.app.ray_cluster import Cluster, ray_cluster
from tests.app.redis_container import PASSWORD

KEY = keys.make()
UNLIMITED = keys.make()
LIMIT = 20
CLASSIFY = {"model": "mood", "input": "I love it"}
ONLY: dict[str, Any] = {**NOTHING, "classifiers": [{"name": "mood", "source": "builtin:vader-sentiment"}]}


@pytest.fixture(scope="module")
def cluster(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Cluster]:
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    limited = {"name": "team", "sha256": keys.digest(KEY), "requests_per_minute": LIMIT}
    unlimited = {"name": "others", "sha256": keys.digest(UNLIMITED)}
    file.write_text(yaml.safe_dump({"keys": [limited, unlimited]}))
    with redis_container.engine(), redis_container.started() as redis, pytest.MonkeyPatch.context() as environment:
        environment.setenv("REDIS_PASSWORD", PASSWORD)
        auth = {"keys_file": str(file), "redis_url": redis.url}
        gateway = {"scaling": {"num_replicas": 2}}
        with ray_cluster(parse({**ONLY, "auth": auth, "gateway": gateway}), logs / "ray-gateways.log") as cluster:
            eventually("all applications run", cluster.runs)
            yield cluster


def test_they_share_the_limits_of_a_key(cluster: Cluster) -> None:
    def answered() -> int:
        """How many gateways have answered something."""
        counter = metrics(cluster.temp_dir).get("ray_serve_deployment_request_counter")
        samples = counter.samples if counter else []
        return len({one.labels["replica"] for one in samples if one.labels["deployment"] == "Gateway" and one.value})

    def ask(_: int) -> int:
        with httpx_client(str(cluster.http.base_url), KEY) as http:
            return http.post("/v1/classify", json=CLASSIFY).status_code

    with ThreadPoolExecutor(30) as pool:
        assert Counter(pool.map(ask, range(3 * LIMIT))) == {200: LIMIT, 429: 2 * LIMIT}
    eventually("both gateways have answered", lambda: answered() == 2)


@pytest.mark.parametrize("path", ["/v1/rerank", "/analyze", "/generate"])
def test_what_the_settings_leave_out_is_not_there(cluster: Cluster, path: str) -> None:
    with httpx_client(str(cluster.http.base_url), UNLIMITED) as http:
        require_refusal(http, Bad("left out", {}, status=404, path=path))


def test_none_is_open_to_everybody(logs: Path) -> None:
    """Beyond loopback it does not start without keys, and Ray has the reason."""
    with ray_cluster(parse(ONLY), logs / "ray-open.log", host="0.0.0.0") as cluster:
        eventually(
            "the reason is told",
            lambda: "whoever reaches that could use every model" in json.dumps(cluster.applications()),
        )
        assert cluster.applications()["gateway"]["status"] != "RUNNING"

"""Which requests find a place, and when: a deployment on a Ray of its own."""

import os
import subprocess
import sys
import tempfile

from app.settings import Settings, environment

# A request that asks a full replica again only when its wait is over would wait for an hour.
CALLS = """
import asyncio
import sys
import ray
from ray import serve
from app.deployments import router

config = router.OPTIONS["request_router_config"] | {"initial_backoff_s": 3600.0, "max_backoff_s": 3600.0}

@serve.deployment(max_ongoing_requests=1, request_router_config=config, ray_actor_options={"num_cpus": 0})
class OneAtATime:
    def __init__(self):
        self.under_way = 0

    async def __call__(self, number):
        self.under_way += 1
        await asyncio.sleep(0.01)
        self.under_way -= 1
        if number == 3:
            raise ValueError(number)
        return number, self.under_way

ray.init(address="local", include_dashboard=False, num_cpus=1, log_to_driver=False, _temp_dir=sys.argv[1])
serve.start(proxy_location="Disabled")
handle = serve.run(OneAtATime.bind())

async def ask():
    for number, answer in enumerate([handle.remote(number) for number in range(8)]):
        try:
            assert await asyncio.wait_for(answer, 60) == (number, 0)
        except ValueError:
            assert number == 3
    await serve.shutdown_async()

asyncio.run(ask())
ray.shutdown()
"""


def test_who_waits_for_a_place_gets_that_of_a_request_that_has_ended_however() -> None:
    variables = {**os.environ, **environment(Settings()), "RAY_USAGE_STATS_ENABLED": "0"}
    # Short: Ray keeps sockets in it, whose paths may have 107 characters. And not /tmp/ray, where the tests' server is.
    with tempfile.TemporaryDirectory(prefix="ray-") as directory:
        command = [sys.executable, "-c", CALLS, directory]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr

"""One application of several deployments. A module of its own: whoever imports it imports no models."""

from collections.abc import Mapping

from ray import serve
from ray.serve import Application


def build(parts: Mapping[str, Application]) -> Application:
    """The application; its parts are called by their names."""
    return serve.deployment(name="Nlp", ray_actor_options={"num_cpus": 0.01})(Root).bind(dict(parts))


class Root:
    """Ray wants one deployment at the root of an application, and starts those that it is given."""

    def __init__(self, parts: dict[str, object]) -> None:
        pass

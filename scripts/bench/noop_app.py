"""What is left of a server when nothing is to do: a FastAPI for uvicorn, and the same in Ray Serve.

As in our application, one route is answered where HTTP comes in, the other by a deployment behind it.
"""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve

api = FastAPI()
"""For uvicorn."""
_ingress = FastAPI()
OPTIONS: dict[str, Any] = {"max_ongoing_requests": 10_000, "ray_actor_options": {"num_cpus": 0.01}}


class Texts(BaseModel):
    """Body of the second route."""

    model: str
    input: str


def answer(text: str) -> dict[str, Any]:
    """As little as can be said."""
    return {"object": "list", "data": [{"index": 0, "label": "neutral", "text": text}]}


for routes in (api, _ingress):

    @routes.get("/ready")
    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        return answer("")


@api.post("/v1/classify")
async def classify(body: Texts) -> dict[str, Any]:
    return answer(body.input)


@serve.deployment(**OPTIONS)
class Nothing:
    """Does none of it."""

    async def answer(self, text: str) -> dict[str, Any]:
        return answer(text)


@serve.deployment(**OPTIONS)
@serve.ingress(_ingress)
class Ingress:
    """The way in."""

    def __init__(self, nothing: Any) -> None:
        self.nothing = nothing

    @_ingress.post("/v1/classify")
    async def classify(self, body: Texts) -> dict[str, Any]:
        return await self.nothing.answer.remote(body.input)


app = Ingress.bind(Nothing.bind())
"""For `serve run`."""

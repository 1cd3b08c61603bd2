"""/generate: a prompt goes in, text comes out; with `stream`, as server-sent events."""

import json
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.responses import StreamingResponse

from app import auth, request_log
from app.answers import Piece, Sampling
from app.errors import ApiError
from app.handles import answering, begun_once_more
from app.routes import Current, examples, require_characters
from app.settings import GENERATE

router = APIRouter()

Text = Annotated[str, Field(min_length=1), AfterValidator(require_characters)]


class GenerateRequest(BaseModel):
    """Body of /generate."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Text = Field(description="What the text begins with.")
    temperature: float = Field(default=1, ge=0, le=2, description="0 takes the likeliest token each time.")
    top_p: float = Field(default=1, gt=0, le=1, description="Draw from the likeliest tokens that have this share.")
    max_tokens: int = Field(default=64, ge=1, le=2**20, description="Most tokens to generate.")
    stop: Text | Annotated[list[Text], Field(max_length=16)] = Field(
        default=[], description="Texts that end the answer, up to 16; not part of it."
    )
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63, description="Same seed, same answer.")
    stream: bool = Field(default=False, description="Send the text as it is generated.")

    @property
    def sampling(self) -> Sampling:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        return Sampling(self.max_tokens, self.temperature, self.top_p, stop, self.seed)


class GenerateResponse(BaseModel):
    """The answer of /generate; of a stream, each event has what is new in `text`."""

    text: str
    tokens: int = Field(description="Tokens generated, until now in a stream.")
    finish_reason: str | None = Field(description="stop or length; null while it goes on.")


@router.post(
    "/generate",
    responses={200: {"content": {"text/event-stream": {}}}},
    response_model=GenerateResponse,
    openapi_extra=examples(
        a_text={"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0},
        a_stream={"prompt": "Once upon a time", "max_tokens": 32, "seed": 7, "stream": True},
    ),
)
async def generate(body: GenerateRequest, gateway: Current) -> Any:
    """Continue a prompt by the deployment that owns its vLLM engine."""
    auth.require_model("generate")
    pieces = _pieces(gateway.handles[GENERATE], body, auth.current())
    with answering("generate"):
        if body.stream:
            return StreamingResponse(_events(await anext(pieces), pieces), media_type="text/event-stream")
        (whole,) = [piece async for piece in pieces]
        return _response(whole)


async def _pieces(handle: Any, body: GenerateRequest, client: auth.Client) -> AsyncGenerator[Piece, None]:
    tokens, method = 0, handle.options(stream=True).generate
    try:
        async for piece in begun_once_more(method.remote, body.prompt, body.sampling, body.stream):
            tokens = piece.prompt_tokens + piece.tokens
            request_log.note(prompt_tokens=piece.prompt_tokens, completion_tokens=piece.tokens)
            yield piece
    finally:
        await client.spend(tokens)


async def _events(first: Piece, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[str, None]:
    try:
        with answering("generate"):
            yield _event(_response(first).model_dump())
            async for piece in pieces:
                yield _event(_response(piece).model_dump())
    except ApiError as error:
        yield error.event()
    yield "data: [DONE]\n\n"


def _response(piece: Piece) -> GenerateResponse:
    return GenerateResponse(text=piece.text, tokens=piece.tokens, finish_reason=piece.finish_reason)


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"

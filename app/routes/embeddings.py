"""/v1/embeddings, in OpenAI's shape."""

import base64
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, field_validator

from app import auth
from app.answers import Embedded
from app.errors import ApiError
from app.handles import answering, once_more
from app.routes import Current, chosen, examples, require_texts

router = APIRouter()


class EmbeddingsRequest(BaseModel):
    """Body of /v1/embeddings."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(default=None, description="Name of an embedding model; may be left out if there is one.")
    input: str | list[str] = Field(description="One text, or up to 2048.")
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="Numbers, or the bytes of little-endian float32, four times smaller."
    )
    dimensions: int | None = Field(default=None, description="Must be the model's own number, if given.")
    user: str | None = Field(default=None, description="Taken for compatibility.")
    truncate_prompt_tokens: int | None = Field(
        default=None, ge=-1, description="Cut each text off at so many tokens; -1 means at the model's limit."
    )

    @field_validator("input", mode="before")
    @classmethod
    def _texts(cls, given: Any) -> Any:
        texts = given if isinstance(given, list) else [given]
        if isinstance(given, list) and any(isinstance(text, int | list) for text in given):
            raise ValueError("tokens are not taken, since a client's tokenizer is not the model's; send the text")
        require_texts(texts)
        return given

    @field_validator("truncate_prompt_tokens")
    @classmethod
    def _leaves_something(cls, tokens: int | None) -> int | None:
        if tokens == 0:
            raise ValueError("would leave nothing; send -1 or a number above 0")
        return tokens

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class Vector(BaseModel):
    """The embedding of one text."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """What a request for embeddings took, in tokens."""

    prompt_tokens: int
    total_tokens: int


class VectorList(BaseModel):
    """The answer of /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[Vector]
    model: str
    usage: Usage


@router.post("/v1/embeddings", openapi_extra=examples(two_texts={"input": ["The sea is calm", "Das Meer ist ruhig"]}))
async def embed(body: EmbeddingsRequest, gateway: Current) -> VectorList:
    """Turn texts into vectors of length 1.

    A text of more tokens than the model takes is refused, unless `truncate_prompt_tokens` says where to cut it off.
    """
    models = {model.name: model for model in gateway.settings.embeddings}
    name = chosen(body.model, models)
    handle = gateway.handles[models[name].deployment]
    with answering(name):
        done: Embedded = await once_more(handle.embed.remote, body.texts, body.truncate_prompt_tokens)
    await auth.current().spend(done.tokens)
    width = done.vectors.shape[1]
    if body.dimensions not in (None, width):
        raise ApiError(400, f"dimensions: the model {name!r} has {width} and no other", param="dimensions")
    if body.encoding_format == "base64":
        vectors = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in done.vectors]
    else:
        vectors = done.vectors.tolist()
    data = [Vector(index=index, embedding=vector) for index, vector in enumerate(vectors)]
    return VectorList(data=data, model=name, usage=Usage(prompt_tokens=done.tokens, total_tokens=done.tokens))

"""/v1/rerank, in the shape that Jina's and Cohere's clients use."""

import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from app import auth
from app.deployments.rerank import Relevance
from app.handles import answering, once_more
from app.routes import Current, chosen, examples, require_texts

MOST_DOCUMENTS = 1000
"""Documents in one request, as Cohere advises."""

router = APIRouter()


def _require_text(text: str) -> str:
    require_texts([text])
    return text


class Document(BaseModel):
    """A text as an object."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str


class RerankRequest(BaseModel):
    """Body of /v1/rerank."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(default=None, description="Name of a reranker; may be left out if there is one.")
    query: Annotated[str, AfterValidator(_require_text)] = Field(description="What the documents should fit.")
    documents: list[str | Document] = Field(description="Up to 1000 texts.")
    top_n: int | None = Field(default=None, ge=1, description="Number of results; all when left out.")
    return_documents: bool = Field(default=False, description="Whether the results have the texts.")

    @field_validator("documents")
    @classmethod
    def _texts(cls, documents: list[str | Document]) -> list[str | Document]:
        require_texts(_texts(documents), MOST_DOCUMENTS)
        return documents

    @property
    def texts(self) -> list[str]:
        return _texts(self.documents)


class Ranked(BaseModel):
    """A document's place in the answer."""

    index: int = Field(description="Which of the request's documents it is, from 0.")
    relevance_score: float = Field(description="0 to 1; comparable within one model only.")
    document: Document | None = None


class Usage(BaseModel):
    """What the request took, in tokens."""

    total_tokens: int


class RankedList(BaseModel):
    """The answer of /v1/rerank: the best documents first."""

    id: str
    object: Literal["list"] = "list"
    model: str
    results: list[Ranked]
    usage: Usage
    meta: dict[str, Any] = Field(default={}, description="Empty; Cohere's clients look for it.")


@router.post(
    "/v1/rerank",
    response_model_exclude_none=True,
    openapi_extra=examples(
        the_best_two={
            "query": "How do I bake bread?",
            "documents": ["The law of taxes", "Knead the dough, then let it rise", "Ovens and their temperatures"],
            "top_n": 2,
            "return_documents": True,
        }
    ),
)
async def rerank(body: RerankRequest, gateway: Current) -> RankedList:
    """Sort documents by how well they fit a query; one of more tokens than the model takes is cut off."""
    rerankers = {reranker.name: reranker for reranker in gateway.settings.rerankers}
    name = chosen(body.model, rerankers)
    handle = gateway.handles[rerankers[name].deployment]
    texts = body.texts
    with answering(name):
        found: Relevance = await once_more(handle.rerank.remote, body.query, texts)
    await auth.current().spend(found.tokens)
    order = sorted(range(len(texts)), key=lambda index: -found.scores[index])[: body.top_n]
    results = [
        Ranked(
            index=index,
            relevance_score=found.scores[index],
            document=Document(text=texts[index]) if body.return_documents else None,
        )
        for index in order
    ]
    return RankedList(
        id=f"rerank-{uuid.uuid4().hex}", model=name, results=results, usage=Usage(total_tokens=found.tokens)
    )


def _texts(documents: list[str | Document]) -> list[str]:
    return [document if isinstance(document, str) else document.text for document in documents]

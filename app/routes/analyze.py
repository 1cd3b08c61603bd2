"""/analyze: language, tokens, sentiment and summary of a text."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app import auth
from app.deployments.pipeline import Analysis
from app.errors import ApiError
from app.handles import answering, once_more
from app.routes import Current, examples, require_characters
from app.settings import ANALYZE

router = APIRouter()


def _require_words(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return require_characters(text)


class AnalyzeRequest(BaseModel):
    """Body of /analyze."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: Annotated[str, AfterValidator(_require_words)] = Field(description="What to analyze.")


@router.post(
    "/analyze",
    openapi_extra=examples(
        a_short_text={"text": "Quel beau matin au bord de la mer !"},
        a_text_with_a_summary={
            "text": "The old harbour was quiet this morning. The fishermen had come back at dawn with a good catch, "
            "and now they sat on the wall, mending their nets and telling stories. I loved every minute of my walk "
            "along the wonderful bay, and I hope to come again soon."
        },
    ),
)
async def analyze(body: AnalyzeRequest, gateway: Current) -> Analysis:
    """Analyze a text in a pipeline of deployments.

    A stage that fails leaves its field null and is named in `errors`; a short text has no summary.
    """
    auth.require_model("analyze")
    assert gateway.settings.pipeline
    limit = gateway.settings.pipeline.max_characters
    if len(body.text) > limit:
        reason = f"text: has {len(body.text)} characters, and at most {limit} are taken (pipeline.max_characters)"
        raise ApiError(400, reason, param="text", code="text_too_long")
    if gateway.settings.summariser is not None:
        await gateway.require_safe(gateway.settings.summariser, "text", lambda: [body.text])
    with answering("analyze"):
        done: Analysis = await once_more(gateway.handles[ANALYZE].analyze.remote, body.text)
    await auth.current().spend(done.tokens)
    return done

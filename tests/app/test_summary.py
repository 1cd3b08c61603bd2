"""The pipeline with its summary by the language model."""

from tests.app.conftest import Running
from tests.app.nlp.test_analyze import ANALYZE, ENGLISH

SHAPES = ["cluster"]


def test_a_summary_by_the_language_model(server: Running) -> None:
    text = " ".join([ENGLISH] * 4)
    answered = server.http.post(ANALYZE, json={"text": text})
    assert answered.status_code == 200, answered.text
    done = answered.json()
    assert done["summary"]
    assert (done["language"], done["sentiment"]["label"], done["errors"]) == ("en", "positive", [])


def test_a_text_too_long_for_the_language_model(server: Running) -> None:
    """A partial failure: the answer has the rest, and names the stage."""
    text = "harbour " * 2400
    answered = server.http.post(ANALYZE, json={"text": text})
    assert answered.status_code == 200, answered.text
    done = answered.json()
    assert done["summary"] is None
    assert done["sentiment"]["label"] == "neutral"
    (failure,) = done["errors"]
    assert failure["stage"] == "summary"
    assert "maximum context length" in failure["message"]

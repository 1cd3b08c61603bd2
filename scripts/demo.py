"""`make demo [URL=http://127.0.0.1:8000]`: a tour over all routes of a running server.

The routes and what to send are the server's own: the examples in its OpenAPI document, which /docs shows, too. A server
with keys wants one in the environment variable OPENAI_API_KEY.
"""

import argparse
import json
import os
import shutil
import textwrap
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx

from scripts.console import Problem, main, say

WIDTH = min(shutil.get_terminal_size().columns, 120)
LONGEST = 4
"""Items of a list that are shown; a vector has hundreds."""


class Visit(NamedTuple):
    """One request of the tour."""

    method: str
    path: str
    title: str
    body: dict[str, Any] | None


def tour(document: dict[str, Any]) -> Iterator[Visit]:
    """What an OpenAPI document says to try, in its order."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = path
            for parameter in operation.get("parameters", []):
                value = parameter["schema"]["examples"][0]
                where = where.replace(f"{{{parameter['name']}}}", value)
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            examples = content.get("examples", {"": {"value": None}})
            about = operation.get("description", "").splitlines()[0]
            for title, example in examples.items():
                yield Visit(method.upper(), where, f"{title}: {about}" if title else about, example["value"])


def show(answered: httpx.Response) -> None:
    """Print an answer as it comes."""
    if answered.headers["Content-Type"].startswith("text/event-stream"):
        for line in answered.iter_lines():
            print(_piece(line), end="", flush=True)
        say("")
    else:
        answered.read()
        say(textwrap.indent(_pretty(answered.json()), "  "))


def _piece(line: str) -> str:
    """The text in a server-sent event, of OpenAI's routes or of /generate."""
    content = line.removeprefix("data: ")
    if not content or content == "[DONE]":
        return ""
    event = json.loads(content)
    if "text" in event:
        return event["text"]
    choices = event.get("choices") or [{}]
    return choices[0].get("text") or choices[0].get("delta", {}).get("content") or ""


def _pretty(value: Any) -> str:
    return json.dumps(_shortened(value), indent=2, ensure_ascii=False)


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shortened(one) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        kept = [_shortened(one) for one in value[:LONGEST]]
        return kept if len(value) <= LONGEST else [*kept, f"… {len(value) - LONGEST} more"]
    return round(value, 4) if isinstance(value, float) else value


def demo() -> None:
    """Make the tour; Problem when there is no server, or when something on the way is refused."""
    parser = argparse.ArgumentParser(prog="make demo")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    chosen = parser.parse_args()
    key = os.environ.get("OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    refused: list[str] = []
    with httpx.Client(base_url=chosen.url, headers=headers, timeout=300, trust_env=False) as http:
        try:
            document = http.get("/openapi.json").raise_for_status().json()
            for visit in tour(document):
                say(f"\n{'─' * WIDTH}\n{visit.method} {visit.path}  {visit.title}")
                if visit.body is not None:
                    say(
                        textwrap.fill(
                            json.dumps(visit.body, ensure_ascii=False),
                            WIDTH,
                            initial_indent="  > ",
                            subsequent_indent="    ",
                        )
                    )
                started = time.monotonic()
                with http.stream(visit.method, visit.path, json=visit.body) as answered:
                    show(answered)
                say(f"  {answered.status_code} after {time.monotonic() - started:.2f} s")
                if answered.is_error:
                    refused.append(f"{visit.method} {visit.path} ({answered.status_code})")
        except (httpx.HTTPError, ValueError) as error:
            raise Problem(
                f"no server of ours answers at {chosen.url} ({error})", "start one with `make serve`"
            ) from None
    if refused:
        raise Problem(
            f"not all went well: {', '.join(refused)}",
            "read the answers above; a 401 wants a key in OPENAI_API_KEY, a 503 a moment of patience",
        )


if __name__ == "__main__":
    main(demo)

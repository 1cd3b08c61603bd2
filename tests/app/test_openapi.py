"""The OpenAPI document: complete, and its examples work (`make demo` sends them)."""

import subprocess
import sys
from typing import Any

import pytest

from app.bodies import PATHS
from tests.app.conftest import ROOT, Running

ROUTES = {
    "/health",
    "/ready",
    "/ready/{model}",
    "/v1/models",
    "/v1/models/{model}",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/classify",
    "/v1/moderations",
    "/v1/rerank",
    "/generate",
    "/analyze",
}


def document(server: Running) -> dict[str, Any]:
    return server.http.get("/openapi.json").raise_for_status().json()


def test_every_route_is_described(server: Running) -> None:
    paths = document(server)["paths"]
    assert paths.keys() == ROUTES
    assert {path for path, methods in paths.items() if "post" in methods} == PATHS
    for path, methods in paths.items():
        for method, operation in methods.items():
            assert operation["description"], path
            assert {"400", "401", "404", "429", "503"} <= operation["responses"].keys(), path
            assert "422" not in operation["responses"], "errors here are OpenAI's"
            if method == "post":
                assert operation["requestBody"]["content"]["application/json"]["examples"], path
    docs = server.http.get("/docs")
    assert docs.status_code == 200
    assert "/openapi.json" in docs.text


def test_the_tour_visits_all_of_them(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", server.key)
    command = [sys.executable, "-m", "scripts.demo", "--url", server.url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for route in ROUTES:
        assert f" {route.replace('{model}', 'embed')}  " in done.stdout, route
    assert "Paris" in done.stdout
    assert '"label": "positive"' in done.stdout


def test_the_tour_without_a_server_says_so() -> None:
    command = [sys.executable, "-m", "scripts.demo", "--url", "http://127.0.0.1:9"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "no server of ours answers at http://127.0.0.1:9" in done.stderr
    assert "make serve" in done.stderr
    assert "Traceback" not in done.stderr

"""What is in the image, what is known against it, and no secret in a commit: each by its tool, run for real."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from infra.config import ROOT, StackConfig
from scripts import audit, image
from scripts.console import Problem
from tests.ports import free_port

KNOWN = {
    "id": "GHSA-0000-0000-0001",
    "aliases": ["CVE-2026-0001"],
    "summary": "It runs what it is sent.",
    "affected": [
        {
            "package": {"name": "jinja2", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]}],
        }
    ],
}


class Osv(BaseHTTPRequestHandler):
    """A stand-in for OSV, which knows something against one package: https://google.github.io/osv.dev/post-v1-query/"""

    asked: set[str]

    def do_POST(self) -> None:
        name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]["name"]
        self.asked.add(name)
        body = json.dumps({"vulns": [KNOWN]} if name == "jinja2" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing."""


@pytest.fixture
def osv(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its address. One lock is enough, and quicker."""
    monkeypatch.setattr(audit, "LOCKS", ("cpu",))
    Osv.asked = set()
    with HTTPServer(("127.0.0.1", 0), Osv) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()


def locked(accelerator: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{accelerator}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9-]+)(?:\[[^]]*\])?==(\S+)", text, re.MULTILINE))


def test_what_is_known_is_told_with_the_version_that_mends_it(osv: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Problem, match="1 known vulnerabilities"):
        audit.audit(osv)
    said = capsys.readouterr().out
    assert f"jinja2 {locked('cpu')['jinja2']}" in said
    assert "99.1" in said
    assert Osv.asked == locked("cpu").keys()


def test_what_somebody_has_accepted_may_stay(
    osv: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "accepted", lambda: {"CVE-2026-0001": "no template comes from outside"})
    audit.audit(osv)
    assert "but what is accepted" in capsys.readouterr().out


def test_without_the_data_it_says_so_and_does_not_pass() -> None:
    nobody = f"http://127.0.0.1:{free_port()}/v1/query"
    command = [sys.executable, "-m", "scripts.audit"]
    done = subprocess.run(command, env={"OSV_URL": nobody}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == audit.NO_DATA
    assert "NOT AUDITED" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_lock_that_cannot_be_read_is_no_lack_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "cpu.txt").write_text("jinja2>=3 --hash=sha256:0\n")
    monkeypatch.setattr(audit, "ROOT", tmp_path)
    with pytest.raises(Problem, match="pip-audit failed"):
        audit.known("cpu", None)


def test_what_is_accepted_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.audit]\naccepted = { "CVE-1" = " " }\n')
    monkeypatch.setattr(audit, "ROOT", tmp_path)
    with pytest.raises(Problem, match="CVE-1: has no reason"):
        audit.accepted()


def test_the_image_has_a_bill_of_materials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLUEPRINT_CACHE", str(tmp_path))
    monkeypatch.setattr(image, "_docker_runs", lambda: True)
    monkeypatch.setattr(image, "_build_with_docker", lambda _: None)
    image.build(StackConfig())
    written = image.bill(StackConfig()).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(written) is None
    parts = json.loads(written)["components"]
    assert {part["name"]: part["version"] for part in parts} == locked("cpu")
    assert all(part["externalReferences"][0]["hashes"] for part in parts)


@pytest.mark.parametrize(
    "line",
    [
        # In two parts, or this file would be refused.
        'access = "AKIA' + 'Q3EGRIU5NDY2XJ7K"',
        "-----BEGIN RSA " + "PRIVATE KEY-----",
        'api_password = "correct-' + 'horse-battery"',
        "redis_url: rediss://user:" + "v8sX2pQ9@redis.example.com:6379",
    ],
)
def test_a_secret_does_not_get_into_a_commit(tmp_path: Path, line: str) -> None:
    file = tmp_path / "settings.py"
    file.write_text(f"{line}\n")
    (entry,) = re.findall(
        r"entry: \.venv-infra/bin/(detect-secrets-hook .*)", (ROOT / ".pre-commit-config.yaml").read_text()
    )
    hook, *options = entry.split()
    command = [str(Path(sys.executable).with_name(hook)), *options, str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert str(file) in done.stdout

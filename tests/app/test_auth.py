"""Who gets in: the middleware in front of routes, asked over ASGI; the keys file; what `make key` prints."""

import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import yaml
from fastapi import FastAPI
from pydantic import BaseModel

from app import auth, errors, keys, routes
from app.keys import KeyRing, digest, load, make
from app.settings import Auth
from app.validation import SettingsError

ROOT = Path(__file__).parents[2]
KEY, OTHER = make(), make()
NAMES = ["chat", "chat@canary", "chat:legal", "chat@canary:legal", "embed", "Qwen/chat"]

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def item(key: str, name: str, **limits: Any) -> dict[str, Any]:
    return {"name": name, "sha256": digest(key), **limits}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    write(path, item(KEY, "team-a"))
    return path


def write(path: Path, *items: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump({"keys": items}))


class Question(BaseModel):
    model: str | None = None


def gateway(file: Path) -> FastAPI:
    """What the gateway is to a client, without the models."""
    api = FastAPI()
    api.add_middleware(auth.Authenticate, str(file), None)
    errors.install(api)

    @api.get("/who")
    async def who() -> str:
        return auth.current().name

    @api.post("/ask")
    async def ask(body: Question) -> str:
        return routes.chosen(body.model, NAMES)

    @api.get("/health")
    @api.get("/ready")
    @api.get("/ready/{model:path}")
    @api.get("/healthy")
    async def health() -> str:
        return auth.current().name or "nobody"

    return api


def client(file: Path, key: str | None = KEY) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(transport=httpx.ASGITransport(gateway(file)), base_url="http://gateway", headers=headers)


async def test_the_key_says_who_asks(file: Path) -> None:
    write(file, item(KEY, "team-a"), item(OTHER, "team-b"))
    async with client(file) as http:
        assert (await http.get("/who")).json() == "team-a"
        assert (await http.get("/who", headers={"Authorization": f"Bearer {OTHER}"})).json() == "team-b"
    assert auth.current() is auth.ANONYMOUS


@pytest.mark.parametrize("value", [f"bearer {KEY}", f"BEARER {KEY}", f"Bearer  {KEY}", f"Bearer {KEY} "])
async def test_the_scheme_is_read_as_http_says(file: Path, value: str) -> None:
    async with client(file, None) as http:
        assert (await http.get("/who", headers={"Authorization": value})).json() == "team-a"


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        KEY,
        f"Basic {KEY}",
        f"Bearer{KEY}",
        f"Bearer {OTHER}",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY.upper()}",
        f"Bearer {KEY}, Bearer {OTHER}",
        f"Bearer {digest(KEY)}",
        "Bearer team-a",
        "Bearer \u00e9\u00ff",
        "Bearer " + "x" * 10_000,
    ],
)
@pytest.mark.parametrize("path", ["/who", "/no-such-route"])
async def test_without_a_known_key_nothing_is_answered(file: Path, value: str | None, path: str) -> None:
    headers = {b"Authorization": value.encode("latin-1")} if value is not None else None
    async with client(file, None) as http:
        answer = await http.get(path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
    assert KEY not in answer.text and OTHER not in answer.text


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/ready/chat", "/ready/Qwen/chat", "/docs", "/openapi.json", "/docs/oauth2-redirect"]
)
async def test_probes_and_documentation_need_no_key(file: Path, path: str) -> None:
    async with client(file, None) as http:
        assert (await http.get(path)).status_code == 200


@pytest.mark.parametrize("path", ["/healthy", "/health/", "/HEALTH", "//health", "/who/../health/x", "/redoc", "/"])
async def test_what_only_looks_like_a_probe_needs_one(file: Path, path: str) -> None:
    async with client(file, None) as http:
        assert (await http.get(path)).status_code == 401


async def test_a_key_says_nothing_to_a_probe(file: Path) -> None:
    """The tokens that a probe costs are nobody's."""
    async with client(file) as http:
        assert (await http.get("/ready/chat")).json() == "nobody"


@pytest.mark.parametrize(
    "header", ["x-tenant", "x-tenant-id", "x-user", "x-forwarded-user", "openai-organization", "x-name"]
)
async def test_no_header_says_who_asks(file: Path, header: str) -> None:
    write(file, item(KEY, "team-a"), item(OTHER, "team-b"))
    async with client(file) as http:
        assert (await http.get("/who", headers={header: "team-b"})).json() == "team-a"
    async with client(file, None) as http:
        assert (await http.get("/who", headers={header: KEY})).status_code == 401


@pytest.mark.parametrize(
    ("authorization", "x_api_key", "status"),
    [
        (None, KEY, 200),
        ("Basic cHJveHk6c2VjcmV0", KEY, 200),
        (None, OTHER, 401),
        (None, "", 401),
        (None, "team-a", 401),
        (None, f"Bearer {KEY}", 401),
        # A bearer key is the one that counts, also when it is wrong.
        (f"Bearer {OTHER}", KEY, 401),
        ("Bearer ", KEY, 401),
        (f"Bearer {KEY}", OTHER, 200),
    ],
)
async def test_behind_a_proxy_with_its_own_authorization_the_key_has_another_header(
    file: Path, authorization: str | None, x_api_key: str, status: int
) -> None:
    headers = {"x-api-key": x_api_key} | ({"Authorization": authorization} if authorization else {})
    async with client(file, None) as http:
        assert (await http.get("/who", headers=headers)).status_code == status


async def test_each_request_has_its_own_client(file: Path) -> None:
    write(file, *(item(f"key-{number}", f"team-{number}") for number in range(20)))
    async with client(file, None) as http:
        answers: dict[int, str] = {}

        async def ask(number: int) -> None:
            answers[number] = (await http.get("/who", headers={"Authorization": f"Bearer key-{number}"})).json()

        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(ask, number)
    assert answers == {number: f"team-{number}" for number in range(20)}


@pytest.mark.parametrize(
    ("models", "asked", "status"),
    [
        (None, "chat", 200),
        (["chat"], "chat", 200),
        (["chat"], "chat@canary", 200),
        (["chat"], "chat@canary:legal", 200),
        (["Qwen/chat"], "Qwen/chat", 200),
        (["chat"], "embed", 403),
        (["Qwen/chat"], "chat", 403),
        (["embed"], "chat", 403),
        (["embed"], "chat@canary", 403),
        (["embed"], "chat:legal", 403),
        (["embed"], "embed", 200),
        # An unknown model is unknown to everybody.
        (["embed"], "gpt-4", 404),
        (["gpt-4"], "gpt-4", 404),
        (["embed"], "chat@none", 404),
        (["embed"], "", 404),
        (["chat"], None, 400),
    ],
)
async def test_a_key_is_for_its_models(file: Path, models: list[str] | None, asked: str | None, status: int) -> None:
    write(file, item(KEY, "team-a", **({"models": models} if models else {})))
    async with client(file) as http:
        answer = await http.post("/ask", json={"model": asked})
    assert answer.status_code == status, answer.text
    if status == 403:
        error = answer.json()["error"]
        assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "model_not_allowed", "model")


def test_without_keys_everybody_may_ask_everything() -> None:
    assert routes.chosen("chat", NAMES) == "chat"
    with pytest.raises(errors.ApiError, match="is missing"):
        routes.chosen(None, ["chat", "embed"])
    assert routes.chosen(None, ["chat", "chat@canary"]) == "chat"


async def reaches(status: int, http: httpx.AsyncClient, key: str) -> None:
    """The key gets this status, soon; a busy machine takes longer than the second that it should take."""
    with anyio.fail_after(10):
        while (await http.get("/who", headers={"Authorization": f"Bearer {key}"})).status_code != status:
            await anyio.sleep(0.05)


async def test_keys_come_and_go_while_it_runs(file: Path) -> None:
    async with client(file) as http:
        await reaches(200, http, KEY)
        write(file, item(OTHER, "team-b"))
        await reaches(401, http, KEY)
        await reaches(200, http, OTHER)
        write(file)
        await reaches(401, http, OTHER)


async def test_a_mounted_secret_is_replaced_by_its_link(tmp_path: Path) -> None:
    """Kubernetes writes a directory for each version, and moves a link from one to the next."""
    for version, key in (("..1", KEY), ("..2", OTHER)):
        (tmp_path / version).mkdir()
        write(tmp_path / version / "keys.yaml", item(key, "team-a"))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "keys.yaml").symlink_to("..data/keys.yaml")
    async with client(tmp_path / "keys.yaml") as http:
        await reaches(200, http, KEY)
        (tmp_path / "..next").symlink_to("..2")
        (tmp_path / "..next").replace(tmp_path / "..data")
        await reaches(401, http, KEY)
        await reaches(200, http, OTHER)


@pytest.mark.parametrize(
    "breaks", [lambda file: file.write_text("keys: [{name: x}]"), lambda file: file.write_text("0b_"), Path.unlink]
)
async def test_a_file_that_breaks_leaves_the_keys_as_they_were(
    file: Path, breaks: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    async with client(file) as http:
        await reaches(200, http, KEY)
        breaks(file)
        deadline = time.monotonic() + 2 * keys.CHECK_SECONDS + 0.5
        while time.monotonic() < deadline:
            await reaches(200, http, KEY)
            await anyio.sleep(0.1)
        (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert "stay as they were" in said
        assert str(file) in said and "fix: " in said
        write(file, item(OTHER, "team-b"))
        await reaches(200, http, OTHER)
        await reaches(401, http, KEY)


HASH = digest("one")
# What is in the file, and what the error must say.
WRONG: list[tuple[str, str, str]] = [
    ("", "holds None", "write a mapping, keys: [...]"),
    ("- name: a", "holds [{'name': 'a'}]", "write a mapping"),
    ("keys: [", "is not YAML", "write a mapping"),
    ("keys: \x00", "is not YAML", "write a mapping"),
    ("keys: [{name: 2001-13-45}]", "is not YAML (month must be in 1..12)", "write a mapping"),
    ("keys: !!bool x", "is not YAML", "write a mapping"),
    ("keys: !!timestamp x", "is not YAML", "write a mapping"),
    ("[" * 2000, "is not YAML (it is nested too deep)", "write a mapping"),
    ("{}", "keys: is missing", "add it"),
    ("keys: {}", "keys = {}: does not fit", "make it a valid list"),
    ("keys: [a]", "keys.0 = 'a': does not fit", "make it a mapping"),
    ("key: []", "key = []: there is no such key", "did you mean keys?"),
    (f"keys: [{{sha256: {HASH}}}]", "keys.0.name: is missing", "add it"),
    ("keys: [{name: a}]", "keys.0.sha256: is missing", "add it"),
    ("keys: [{name: a, sha256: abc}]", "keys.0.sha256 = 'abc': does not fit", "^[0-9a-f]{64}$"),
    (f"keys: [{{name: a, sha256: {HASH.upper()}}}]", "keys.0.sha256 = ", "^[0-9a-f]{64}$"),
    (f"keys: [{{name: a/b, sha256: {HASH}}}]", "keys.0.name = 'a/b': does not fit", "match pattern"),
    (f"keys: [{{name: a, sha256: {HASH}, model: [chat]}}]", "keys.0.model = ['chat']: there is no", "mean models?"),
    (f"keys: [{{name: a, sha256: {HASH}, models: chat}}]", "keys.0.models = 'chat': does not fit", "a valid list"),
    (f"keys: [{{name: a, sha256: {HASH}, models: []}}]", "keys.0.models = []: does not fit", "at least 1 item"),
    (f"keys: [{{name: a, sha256: {HASH}, models: ['chat@x']}}]", "keys.0.models.0 = 'chat@x'", "match pattern"),
    (f"keys: [{{name: a, sha256: {HASH}, requests_per_minute: 0}}]", "keys.0.requests_per_minute = 0", "equal to 1"),
    (f"keys: [{{name: a, sha256: {HASH}, tokens_per_minute: 1.5}}]", "keys.0.tokens_per_minute = 1.5", "integer"),
    (f"keys: [{{name: a, sha256: {HASH}, concurrency: '4'}}]", "keys.0.concurrency = '4'", "a valid integer"),
    (f"keys: [{{name: a, sha256: {HASH}}}, {{name: b, sha256: {HASH}}}]", "keys.1.sha256 = ", "`make key`"),
    (
        f"keys: [{{name: a, sha256: {HASH}}}, {{name: a, sha256: {digest('two')}}}]",
        "keys.1.name = 'a': keys.0 has this name",
        "give each its own",
    ),
]


@pytest.mark.parametrize(("content", "problem", "fix"), WRONG)
def test_a_wrong_file_is_told(tmp_path: Path, content: str, problem: str, fix: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(content)
    for start in (load, KeyRing, lambda path: auth.require(Auth(keys_file=str(path)))):
        with pytest.raises(SettingsError) as raised:
            start(file)
        said = str(raised.value)
        assert said.startswith(f"{file}: ") or said.startswith(f"{file}:\n")
        assert problem in said
        assert fix in said.split("fix: ", 1)[1]


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.yaml: cannot be read \(No such file.*fix: set auth\.keys_file"):
        auth.require(Auth(keys_file=str(tmp_path / "none.yaml")))


@pytest.mark.parametrize(
    "where", ["sha256: {}", "sha256: 2{}", f"sha256: {HASH}, key: {{}}", "sha256: {}]", "sha256: [[{}]]"]
)
def test_a_key_in_its_hash_s_place_is_not_told(tmp_path: Path, where: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(f"keys: [{{name: a, {where.format(KEY)}}}]")
    with pytest.raises(SettingsError) as raised:
        load(file)
    assert KEY[3:] not in str(raised.value)


async def test_no_key_is_in_the_log(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = make()
    write(file, item(KEY, "team-a", requests_per_minute=1))
    async with client(file) as http:
        for _ in range(2):
            await http.get("/who")
        await http.get("/who", headers={"Authorization": f"Bearer {wrong}"})
        file.write_text(f"keys: [{{name: a, sha256: {KEY}}}]")
        await anyio.sleep(keys.CHECK_SECONDS)
        await http.get("/who")
    assert "stay as they were" in caplog.text
    assert KEY not in caplog.text and wrong not in caplog.text


def test_every_stored_hash_is_compared(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever measures the time learns nothing: each lookup compares with all hashes, the found one or not."""
    known = [make() for _ in range(5)]
    write(file, *(item(key, f"team-{index}") for index, key in enumerate(known)))
    ring = KeyRing(file)
    compared: list[str] = []
    compare = keys.hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: compared.append(b) or compare(a, b))
    for presented in (known[0], known[4], "sk-wrong"):
        compared.clear()
        found = ring.find(presented)
        assert (found and found.name) == {known[0]: "team-0", known[4]: "team-4"}.get(presented)
        assert compared == [digest(key) for key in known]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost", None])
def test_loopback_needs_no_keys(host: str | None) -> None:
    auth.require_keys_or_loopback(Auth(), host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "192.168.1.2", "2001:db8::1", "example.com", ""])
def test_where_others_can_ask_keys_are_a_must(host: str, file: Path) -> None:
    with pytest.raises(SettingsError, match=r"^auth\.keys_file = None: .*listens on .*fix: .*make key") as raised:
        auth.require_keys_or_loopback(Auth(), host)
    assert repr(host) in str(raised.value)
    auth.require_keys_or_loopback(Auth(keys_file=str(file)), host)


def make_key(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`make key`, in this environment."""
    command = ["make", "--no-print-directory", "-o", ".venv-infra/.installed", f"INFRA={sys.executable}", "key"]
    return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)


async def test_what_make_key_prints_lets_its_holder_in(tmp_path: Path) -> None:
    done = make_key("NAME=team-a", "MODELS=chat,embed", "RPM=60", "TPM=10000", "CONCURRENCY=4")
    assert done.returncode == 0, done.stderr
    (secret,) = re.findall(r"sk-[\w-]+", done.stdout)
    file = tmp_path / "keys.yaml"
    file.write_text("keys:\n" + done.stdout[done.stdout.index("  - name:") :])
    (key,) = load(file)
    assert (key.name, key.models, key.sha256) == ("team-a", ["chat", "embed"], digest(secret))
    assert (key.requests_per_minute, key.tokens_per_minute, key.concurrency) == (60, 10_000, 4)
    async with client(file, secret) as http:
        assert (await http.get("/who")).json() == "team-a"


def test_make_key_makes_another_key_each_time() -> None:
    one, two = (re.findall(r"sk-[\w-]{43}\b", make_key("NAME=team-a").stdout) for _ in range(2))
    assert len(one) == len(two) == 1
    assert one != two


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "whose key it is was not said"),
        (["NAME=a b"], "name = 'a b': does not fit"),
        (["NAME=a", "RPM=many"], "RPM = 'many' is not a whole number"),
        (["NAME=a", "TPM=0"], "tokens_per_minute = 0: does not fit"),
        (["NAME=a", "MODELS=chat@x"], "models.0 = 'chat@x': does not fit"),
    ],
)
def test_make_key_tells_what_is_wrong(arguments: list[str], problem: str) -> None:
    done = make_key(*arguments)
    assert done.returncode != 0
    assert problem in done.stderr and "fix: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "sk-" not in done.stdout

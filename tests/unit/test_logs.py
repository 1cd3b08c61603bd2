"""`make logs`: the script that runs in the pods, for real; and how its lines are told apart, with a fake kubectl."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.config import StackConfig
from scripts import kubectl, logs, stack_file, tail
from scripts.console import Problem
from scripts.observe import View
from tests.unit.made_up import pod, view

LONG = 60.0


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Ray's directory of logs, with those of Serve and of a raylet."""
    (tmp_path / "serve").mkdir()
    (tmp_path / "serve" / "replica_chat.log").write_text("one\ntwo\nhalf a li")
    (tmp_path / "serve" / "controller.log").write_text("three\n")
    (tmp_path / "raylet.log").write_text("four\n")
    return tmp_path


def test_files_are_chosen_by_a_part_of_their_path(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tail.main(directory, "serve/", follow=False)
    assert capsys.readouterr().out.splitlines() == [
        "serve/controller.log\tthree",
        "serve/replica_chat.log\tone",
        "serve/replica_chat.log\ttwo",
    ]
    tail.main(directory, "raylet", follow=False)
    assert capsys.readouterr().out == "raylet.log\tfour\n"


def test_of_a_long_file_the_end_is_shown(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "serve" / "replica_chat.log").write_text("x" * 20 + "\n" + ("y" * 99 + "\n") * 1000)
    tail.main(directory, "chat", follow=False)
    shown = capsys.readouterr().out
    assert tail.BYTES < len(shown) < 2 * tail.BYTES
    assert "xxx" not in shown


@pytest.fixture
def following(directory: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", Path(tail.__file__).read_text(), str(directory), "serve/", "follow", ""]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_what_comes_later_is_followed_until_nobody_listens(directory: Path, following: "subprocess.Popen[str]") -> None:
    assert following.stdin
    assert following.stdout
    assert [following.stdout.readline() for _ in range(3)][-1] == "serve/replica_chat.log\ttwo\n"
    with (directory / "serve" / "replica_chat.log").open("a") as log:
        log.write("ne\n")
    assert following.stdout.readline() == "serve/replica_chat.log\thalf a line\n"
    (directory / "serve" / "replica_later.log").write_text("of a new replica\n")
    assert following.stdout.readline() == "serve/replica_later.log\tof a new replica\n"
    (directory / "serve" / "controller.log").write_text("new\n")  # rotated
    assert following.stdout.readline() == "serve/controller.log\tnew\n"
    following.stdin.close()
    assert following.wait(LONG) == 0


class FakeKubectl(kubectl.Kubectl):
    """Runs on this machine what it should run in a pod."""

    def __init__(self) -> None: ...

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, *arguments[arguments.index("python") + 1 :]]


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """A stack whose head and worker have the same logs."""
    seen: View = view(pod("llm-head"), pod("llm-worker"), pod("llm-pending", phase="Pending"))
    monkeypatch.setattr(logs, "look", lambda *_: seen)
    monkeypatch.setattr(logs, "LOGS", str(directory))
    monkeypatch.setattr(kubectl, "connect", lambda _: FakeKubectl())
    monkeypatch.setattr(stack_file, "read", lambda _: StackConfig())


@pytest.mark.usefixtures("stack")
def test_each_line_says_where_it_is_from(capfd: pytest.CaptureFixture[str]) -> None:
    logs.logs("local", "", logs.SERVE, "", follow=False)
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "llm-head controller.log | three"
    assert {line.split()[0] for line in lines} == {"llm-head", "llm-worker"}


@pytest.mark.usefixtures("stack")
def test_a_request_is_found_however_long_ago_it_was(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    entry = {"asctime": "2026-11-29 01:02:03,004", "levelname": "INFO", "message": "GET / 200", "request_id": "req-7"}
    later = "x" * 99 + "\n"
    (directory / "serve" / "replica_chat.log").write_text(f"{json.dumps(entry)}\n{later * 1000}")
    logs.logs("local", "head", logs.SERVE, "req-7", follow=False)
    assert capfd.readouterr().out == "llm-head replica_chat.log | INFO 2026-11-29 01:02:03,004 req-7 -- GET / 200\n"


ENTRY = {"asctime": "now", "levelname": "ERROR", "message": "it failed", "deployment": "Gateway", "lineno": 7}


@pytest.mark.parametrize(
    ("line", "read"),
    [
        (json.dumps(ENTRY), "ERROR now -- it failed"),
        (json.dumps({**ENTRY, "request_id": "req-7"}), "ERROR now req-7 -- it failed"),
        (
            json.dumps({**ENTRY, "exc_text": "Traceback …\nKeyError: 3"}),
            "ERROR now -- it failed\nTraceback …\nKeyError: 3",
        ),
        *((line, line) for line in ("", "some text", "3", "[]", '{"other": "json"}', '{"cut off', "null")),
    ],
)
def test_json_is_shown_as_text(line: str, read: str) -> None:
    assert logs.readable(line) == read


@pytest.mark.usefixtures("stack")
def test_pods_are_chosen_by_a_part_of_their_name(capfd: pytest.CaptureFixture[str]) -> None:
    logs.logs("local", "work", "raylet", "", follow=False)
    assert capfd.readouterr().out == "llm-worker raylet.log | four\n"
    with pytest.raises(Problem, match="no Ray pod of stack local runs whose name contains 'wrok'") as raised:
        logs.logs("local", "wrok", "raylet", "", follow=False)
    assert "make status" in raised.value.fix


@pytest.mark.usefixtures("stack")
def test_a_pod_that_comes_later_is_followed_too(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    looks = iter([view(pod("llm-a")), view(pod("llm-a")), view(pod("llm-a"), pod("llm-b"))])

    def look(*_: object) -> View:
        try:
            return next(looks)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(logs, "look", look)
    monkeypatch.setattr(logs, "LOOK_EVERY", 0.5)
    logs.logs("local", "", "raylet", "", follow=True)
    deadline, said = time.monotonic() + LONG, ""
    while said.count("four") < 2 and time.monotonic() < deadline:
        said += capfd.readouterr().out
        time.sleep(0.1)
    assert sorted(said.splitlines()) == ["llm-a raylet.log | four", "llm-b raylet.log | four"]

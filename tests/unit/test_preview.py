"""What `make preview` says: a fake engine."""

from typing import Any

import pytest
from pulumi import automation

from scripts import engine, preview
from scripts.console import Problem


class FakeStack:
    def __init__(self, *changes: tuple[automation.OpType, int], error: Exception | None = None) -> None:
        self.changes, self.error = dict(changes), error

    def preview(self, **_: Any) -> automation.PreviewResult:
        if self.error:
            raise self.error
        return automation.PreviewResult("", "", change_summary=self.changes)


def run(monkeypatch: pytest.MonkeyPatch, stack: FakeStack) -> None:
    monkeypatch.setattr(engine, "open_stack", lambda *_: stack)
    preview.preview("local")


SAME, CREATE, DELETE = automation.OpType.SAME, automation.OpType.CREATE, automation.OpType.DELETE


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([(SAME, 4), (CREATE, 2), (DELETE, 1)], "`make up STACK=local` would create 2, delete 1"),
        ([(SAME, 4)], "nothing would change"),
    ],
)
def test_it_says_what_up_would_do(
    changes: list[tuple[automation.OpType, int]],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(monkeypatch, FakeStack(*changes))
    assert capsys.readouterr().out.splitlines()[-1] == says


def test_a_failure_is_told_by_the_engines_own_line(monkeypatch: pytest.MonkeyPatch) -> None:
    result = automation.CommandResult(stdout="", stderr="  error: no such context\nmore", code=255)
    with pytest.raises(Problem, match="error: no such context\n  fix: nothing was changed"):
        run(monkeypatch, FakeStack(error=automation.CommandError(result)))

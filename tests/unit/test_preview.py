"""What `make preview` says, and that `make up` begins with it on a shared cluster: a fake engine."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from pulumi import automation

from app.keys import Key, digest
from infra.config import ExistingCluster, StackConfig
from scripts import engine, kubectl, ownership, preview, stack_file, up
from scripts.console import Problem


class FakeStack:
    def __init__(
        self,
        *changes: tuple[automation.OpType, int],
        error: Exception | None = None,
        violations: Iterable[automation.PolicyEvent] = (),
    ) -> None:
        self.changes, self.error, self.violations = dict(changes), error, violations

    def preview(self, *, on_event: Callable[[Any], None], **_: Any) -> automation.PreviewResult:
        for violation in self.violations:
            on_event(automation.EngineEvent(0, 0, policy_event=violation))
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


def violation(level: str) -> automation.PolicyEvent:
    message = "<{%fg 12%}>What is stored is encrypted.\nencrypted = None: is readable; fix: set it<{%reset%}>\n"
    urn = "urn:pulumi:dev::blueprint::blueprint:aws:Aws$aws:ebs/volume:Volume::disk"
    return automation.PolicyEvent(message, "raw", "encryption", "blueprint", "1", "1", level, urn)


def test_what_violates_a_policy_is_told_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = automation.CommandError(automation.CommandResult(stdout="", stderr="", code=255))
    violations = [violation("advisory"), violation("mandatory")]
    with pytest.raises(Problem) as raised:
        run(monkeypatch, FakeStack(error=failed, violations=violations))
    assert raised.value.what.splitlines() == [
        "policies are violated:",
        "  Volume disk: encrypted = None: is readable; fix: set it (encryption)",
    ]


def test_an_up_on_a_shared_cluster_begins_with_a_preview(monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies about a whole stack are asked when an `up` has made all of it."""
    key = Key(name="team", sha256=digest("sk-a-key-that-nobody-guesses"))
    config = StackConfig(cluster=ExistingCluster(contexts=["dev"], models_path="/models"), keys=[key])
    failed = automation.CommandError(automation.CommandResult(stdout="", stderr="", code=255))
    stack = FakeStack(error=failed, violations=[violation("mandatory")])
    monkeypatch.setenv("BLUEPRINT_API_KEY", "sk-a-key-that-nobody-guesses")
    monkeypatch.setattr(stack_file, "read", lambda _: config)
    monkeypatch.setattr(kubectl, "connect", lambda _: None)
    monkeypatch.setattr(ownership, "require", lambda *_: None)
    for name, value in {"require_state": None, "open_stack": stack, "refresh": None}.items():
        monkeypatch.setattr(engine, name, lambda *_, value=value: value)
    with pytest.raises(Problem, match="policies are violated"):
        up.up("dev")  # FakeStack has no `up`

"""The Pulumi engine on one stack: the program infra/ run by the Automation API.

With Pulumi's Python host installed, the engine starts the program itself, as in a plain `pulumi up`. Where it is not
to be had, the same program runs inline in this process.
"""

import json
import os
import re
import runpy
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import yaml
from pulumi import automation

from infra.clusters import NativeCluster, state_dir
from infra.config import PROJECT, ROOT, StackConfig
from scripts import tools
from scripts.cluster.layout import start_time
from scripts.console import Problem, say

POLICY_PACK = ROOT / "infra" / "policy"
ANALYZER = Path(__file__).parent / "analyzer"
"""Directory of what starts the policy pack where Pulumi's own, which comes with its Python host, is not there."""
Result = TypeVar("Result")


def has_python_host() -> bool:
    return shutil.which("pulumi-language-python") is not None


def _program() -> None:
    runpy.run_path(str(ROOT / "infra" / "__main__.py"))


def native_home() -> Path:
    """Project copy, state and plug-ins of a native cluster's stack: they live and die with that cluster."""
    return state_dir() / "pulumi"


def _native_environment() -> dict[str, str]:
    home = native_home()
    (home / "state").mkdir(parents=True, exist_ok=True)
    passphrase = home / "passphrase"
    if not passphrase.exists():
        scratch = home / "passphrase.new"
        scratch.touch(0o600)
        scratch.write_text(secrets.token_urlsafe(32))
        scratch.replace(passphrase)  # at once, or a run that is killed here leaves an empty one
    # A file where the directory of automatic logs would be. Pulumi 3.259 logs every property of every step there, which
    # with four CRDs is two thirds of an `up` that changes nothing (73 s and 27 s), and it has no other switch:
    # https://github.com/pulumi/pulumi/blob/v3.259.0/pkg/logging/encrypted.go
    (home / "logs").touch()
    return {
        "PULUMI_BACKEND_URL": f"file://{home / 'state'}",
        "PULUMI_HOME": str(home),
        "PULUMI_CONFIG_PASSPHRASE_FILE": str(passphrase),
    }


def _split_salt(path: Path) -> tuple[list[str], list[str]]:
    """The line that ties a stack file to a passphrase, and the others."""
    lines = path.read_text().splitlines() if path.exists() else []
    salt = [line for line in lines if line.startswith("encryptionsalt:")]
    return salt, [line for line in lines if line not in salt]


def _native_project(stack: str) -> Path:
    """A copy of the project files: Pulumi writes a salt into the stack file, which is no change of the checkout's."""
    project = native_home() / "project"
    project.mkdir(parents=True, exist_ok=True)
    text = (ROOT / "Pulumi.yaml").read_text()
    text = text.replace("main: infra/", f"main: {ROOT / 'infra'}")
    text = text.replace("virtualenv: ", f"virtualenv: {ROOT}/")
    (project / "Pulumi.yaml").write_text(text)
    target = project / f"Pulumi.{stack}.yaml"
    made, committed = (_split_salt(path) for path in (target, ROOT / target.name))
    target.write_text("\n".join([*made[0], *committed[1], ""]))
    return project


def require_state(stack: str, config: StackConfig) -> None:
    """Whether the stack's state has a place and a key. Raises Problem: Pulumi's own words for this come late, and say
    nothing of where to set it.
    """
    if isinstance(config.cluster, NativeCluster):
        return
    if not (place := backend()):
        raise Problem(
            f"Pulumi does not know where to keep the state of stack {stack}",
            "pulumi login s3://…, or export PULUMI_BACKEND_URL=s3://… (file://~ keeps it on this machine alone)",
        )
    given = any(os.environ.get(f"PULUMI_CONFIG_PASSPHRASE{end}") is not None for end in ("", "_FILE"))
    keyed = given or "secretsprovider:" in (ROOT / f"Pulumi.{stack}.yaml").read_text()
    # Pulumi Cloud keeps the key itself.
    if not keyed and not place.startswith("http"):
        raise Problem(
            f"there is no passphrase for the secrets of stack {stack}",
            "export PULUMI_CONFIG_PASSPHRASE=…, or give the stack a key of your cloud: "
            f"pulumi stack init {stack} --secrets-provider awskms://…",
        )


def backend() -> str | None:
    """The address of what keeps the states of stacks, in the order in which Pulumi looks for it."""
    project = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())
    login = Path(os.environ.get("PULUMI_HOME") or "~/.pulumi").expanduser() / "credentials.json"
    return (
        os.environ.get("PULUMI_BACKEND_URL")
        or project.get("backend", {}).get("url")
        or (json.loads(login.read_text()).get("current") if login.exists() else None)
        or ("https://api.pulumi.com" if os.environ.get("PULUMI_ACCESS_TOKEN") else None)
    )


def open_stack(name: str, config: StackConfig) -> automation.Stack:
    """The stack, created if it does not exist, ready for preview, up, refresh and destroy.

    Whatever a killed run has left of locks and begun operations is cleared away. Raises Problem when another run is at
    work.
    """
    wanted = ["pulumi"] if has_python_host() else ["pulumi", "pulumi-kubernetes"]
    environment = {
        "PATH": f"{tools.ensure(*wanted)}{os.pathsep}{os.environ['PATH']}",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
    }
    if not has_python_host():
        environment["PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION"] = "true"
        environment["PATH"] = f"{ANALYZER}{os.pathsep}{environment['PATH']}"
        environment["PULUMI_PYTHON_CMD"] = sys.executable
    native = isinstance(config.cluster, NativeCluster)
    if native:
        environment |= _native_environment()
    work_dir = _native_project(name) if native else ROOT
    os.environ.update(environment)
    command = automation.PulumiCommand()
    options = automation.LocalWorkspaceOptions(str(work_dir), env_vars=environment, pulumi_command=command)
    if has_python_host():
        stack = automation.create_or_select_stack(name, work_dir=str(work_dir), opts=options)
    else:
        stack = automation.create_or_select_stack(name, project_name=PROJECT, program=_program, opts=options)
    if native:
        _break_dead_locks(stack)
    _forget_interrupted(name, lambda *arguments: command.run(list(arguments), str(work_dir), environment))
    return stack


def _break_dead_locks(stack: automation.Stack) -> None:
    """Free a native stack from what a killed run has left: one user on one machine, so a dead process is a dead lock.

    Raises Problem when the process of one lives.
    """
    found = (native_home() / "state" / ".pulumi" / "locks").glob(f"*/*/{stack.name}/*.json")
    locks = [json.loads(path.read_text()) for path in found]
    for lock in locks:
        if lock["hostname"] != socket.gethostname() or _is_pulumi(lock["pid"]):
            raise Problem(
                f"stack {stack.name} is in use: process {lock['pid']} on {lock['hostname']} works on it",
                "wait until it has ended, or end it",
            )
    if locks:
        say("the last run was killed; its lock is removed")
        stack.cancel()


def _is_pulumi(pid: int) -> bool:
    """Whether that process runs, and its id is not somebody else's by now."""
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "pulumi\n" and start_time(pid) is not None
    except OSError:
        return False


def _forget_interrupted(stack: str, pulumi: Callable[..., automation.CommandResult]) -> None:
    """Drop from the state what a killed run has begun; else Pulumi warns of unfinished creates in every run to come.

    To begin again is enough with Kubernetes: server-side apply creates an object and takes over an existing one by the
    same request, and waits until it is ready, as the killed run did. After `pulumi refresh`, which would clear these
    operations too, nothing would be left to wait for. What was begun in a cloud may exist under an id that nobody has
    noted down, so there Pulumi's warning stands.
    """
    with tempfile.TemporaryDirectory() as private:
        state = f"{private}/state.json"
        pulumi("stack", "export", "--stack", stack, "--file", state)
        content = json.loads(Path(state).read_text())["deployment"] or {}
        kinds = [operation["resource"]["type"] for operation in content.get("pending_operations") or []]
        if kinds and all(kind.startswith(("kubernetes:", "pulumi:", "blueprint:")) for kind in kinds):
            say(f"the last run was interrupted while it worked on {', '.join(kinds)}")
            # Importing is what drops them.
            pulumi("stack", "import", "--stack", stack, "--file", state)


def in_use(stack: str, error: automation.ConcurrentUpdateError) -> Problem:
    """What to say when another run holds the lock of a shared state."""
    found = re.search(r"created by (.+)", str(error))
    return Problem(
        f"stack {stack} is in use by {found[1] if found else 'another run'}",
        f"wait until that has ended; when it was killed, `pulumi cancel --stack {stack}` frees the stack",
    )


def policed(run: Callable[..., Result], **options: Any) -> Result:
    """A stack's preview or up, with the policy pack. Raises Problem with what violates it.

    What is about a single resource stops it from being made. What is about the whole stack is asked at the end, which
    in an `up` is too late: so a preview comes before, as in a plain `pulumi up`.
    """
    violations: list[str] = []

    def note(event: automation.EngineEvent) -> None:
        found = event.policy_event
        if found and found.enforcement_level == "mandatory":
            *_, kind, name = (found.resource_urn or "").split("::")
            # The policy's description, then what it found, in Pulumi's markup.
            _, _, message = re.sub(r"<\{%.*?%\}>", "", found.message).strip().partition("\n")
            violations.append(f"{kind.rpartition(':')[2]} {name}: {message} ({found.policy_name})")

    try:
        return run(policy_packs=[str(POLICY_PACK)], on_event=note, color="never", **options)
    except automation.CommandError:
        if not violations:
            raise
        said = "\n".join(f"  {violation}" for violation in violations)
        raise Problem(f"policies are violated:\n{said}", "do what each says; docs/policy.md has all of them") from None


def refresh(stack: automation.Stack) -> None:
    """Take note of what somebody has changed by hand; the next `up` puts it right.

    But in the CRDs: to read their megabytes takes longer than all the rest of an `up` that changes nothing.
    """
    stack.refresh(exclude=["**CustomResourceDefinition::**"], color="never")


def destroy(stack: automation.Stack, drain: Callable[[], None] | None = None) -> None:
    """Take everything away, or nothing: Pulumi alone deletes until it comes to what is protected, the nodes say, and
    leaves the cluster without them. `drain` comes between, when nothing is protected.
    """
    stack.preview_destroy(color="never")
    if drain:
        drain()
    stack.destroy(on_output=progress(), color="never")


def interrupt() -> None:
    """End the operation that runs as Ctrl-C does: Pulumi stops waiting, and its state has what was made until then."""
    for child in psutil.Process().children():
        if child.name() == "pulumi":
            child.send_signal(signal.SIGINT)


def progress() -> Callable[[str], None]:
    """Where the engine's output goes: every new message once, without the dots and the running seconds."""
    seen: set[str] = set()

    def show(line: str) -> None:
        message = re.sub(r" \(\d+s\)", "", line).strip()
        if message and not message.startswith("@") and message not in seen:
            seen.add(message)
            say(f"  {line.strip()}")

    return show


def reason(error: automation.CommandError) -> str:
    """The engine's own error lines, without the process output around them."""
    lines = [line.strip() for line in str(error).splitlines() if "error:" in line.lower()]
    return "\n".join(dict.fromkeys(lines)) or str(error)

"""The Pulumi engine on one stack: the program infra/ run by the Automation API.

With Pulumi's Python host installed, the engine starts the program itself, as in a plain `pulumi up`. Where it is not
to be had, the same program runs inline in this process.
"""

import os
import re
import runpy
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from pulumi import automation

from infra.config import PROJECT, ROOT, NativeCluster, StackConfig, state_dir
from scripts import tools
from scripts.console import Problem, say


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
        passphrase.touch(0o600)
        passphrase.write_text(secrets.token_urlsafe(32))
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


def require_passphrase(stack: str) -> None:
    """Pulumi's own message for this comes late and says nothing of where to set it."""
    given = any(os.environ.get(f"PULUMI_CONFIG_PASSPHRASE{end}") is not None for end in ("", "_FILE"))
    if not given and "secretsprovider:" not in (ROOT / f"Pulumi.{stack}.yaml").read_text():
        raise Problem(
            f"there is no passphrase for the secrets of stack {stack}",
            "export PULUMI_CONFIG_PASSPHRASE=…, or give the stack a key of your cloud: "
            f"pulumi stack init {stack} --secrets-provider awskms://…",
        )


def open_stack(name: str, config: StackConfig) -> automation.Stack:
    """The stack, created if it does not exist, ready for preview, up, refresh and destroy."""
    wanted = ["pulumi"] if has_python_host() else ["pulumi", "pulumi-kubernetes"]
    environment = {
        "PATH": f"{tools.ensure(*wanted)}{os.pathsep}{os.environ['PATH']}",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
    }
    if not has_python_host():
        environment["PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION"] = "true"
    if isinstance(config.cluster, NativeCluster):
        environment |= _native_environment()
        work_dir = _native_project(name)
    else:
        require_passphrase(name)
        work_dir = ROOT
    os.environ.update(environment)
    options = automation.LocalWorkspaceOptions(work_dir=str(work_dir), env_vars=environment)
    if has_python_host():
        return automation.create_or_select_stack(name, work_dir=str(work_dir), opts=options)
    return automation.create_or_select_stack(name, project_name=PROJECT, program=_program, opts=options)


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

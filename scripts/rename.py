"""`make rename`: another name for the project, once, before anything of it is deployed.

The name is in Pulumi.yaml, and everything that runs reads it there (infra.config.PROJECT). Pulumi wants it before every
key of a stack file as well, and so do the schema of these files and the examples in the documentation. What is left
alone is not the project's name: variables BLUEPRINT_…, labels, metrics, the types of components.
"""

import argparse
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from infra.config import PROJECT, ROOT
from scripts import cluster
from scripts.console import Problem, main, say

FILES = ("Pulumi.yaml", "Pulumi.*.yaml", "README.md", "docs/**/*.md", "app/profiles/*.yaml", "infra/stack.schema.json")
TAKEN = ("aws", "kubernetes", "pulumi", "random", "tls")
"""Prefixes of keys that are those of Pulumi and of its providers."""


def rename(name: str) -> None:
    require_good(name)
    if name == PROJECT:
        say(f"the project is called {name} already")
        return
    require_clean(PROJECT)
    changed = [path for path in files() if _rewrite(path, PROJECT, name)]
    say("changed: " + ", ".join(str(path.relative_to(ROOT)) for path in changed))
    say(f"the project is called {name}; see it with `git diff`, then `make test`, and commit it")


def require_good(name: str) -> None:
    """Raises Problem where no stack could be called by it."""
    fix = "choose up to 16 lower-case letters, digits and hyphens, a letter first: make rename NAME=chat-platform"
    if not name:
        raise Problem("NAME is missing", fix)
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        raise Problem(f"NAME = {name!r}: AWS takes no cluster, bucket or repository of that name", fix)
    if len(name) > 16:
        raise Problem(
            f"NAME = {name!r}: has {len(name)} letters, and {name}-staging is no longer a cluster's name", fix
        )
    if name in TAKEN:
        raise Problem(f"NAME = {name!r}: keys of stack files that begin with {name}: are those of Pulumi's {name}", fix)


def require_clean(old: str) -> None:
    """Raises Problem where the change could not be told from others, or a state would be left behind."""
    status = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True)
    if status.returncode:
        raise Problem(f"this is no clone of a repository: {status.stderr.strip()}", "clone it, and rename it there")
    if status.stdout:
        first = status.stdout.splitlines()[0][3:]
        raise Problem(f"there are changes that are not committed: {first} …", "commit or stash them, and rename then")
    if cluster.running():
        raise Problem(f"the native cluster runs, and its state is that of {old}", "make down, and rename then")


def files() -> Iterable[Path]:
    for pattern in FILES:
        yield from sorted(ROOT.glob(pattern))


def _rewrite(path: Path, old: str, new: str) -> bool:
    text = path.read_text()
    renamed = renamed_text(text, old, new)
    if path.name == "Pulumi.yaml":
        renamed = re.sub(rf"^name: {old}$", f"name: {new}", renamed, flags=re.MULTILINE)
    if renamed != text:
        path.write_text(renamed)
    return renamed != text


def renamed_text(text: str, old: str, new: str) -> str:
    """`text` with the keys and the names that begin with the project's: old:keys, old-<stack>, localhost/old."""
    stacks = "|".join(path.name.split(".")[1] for path in ROOT.glob("Pulumi.*.yaml"))
    return re.sub(
        rf"(?<![\w.-]){re.escape(old)}(?=:[a-z)]|-(?:<stack>|(?:{stacks})\b))|(?<=localhost/){re.escape(old)}\b",
        new,
        text,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    main(lambda: rename(parser.parse_args().name))

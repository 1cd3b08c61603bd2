"""`make doctor`: what of a stack would make `make up` fail, or does not work now, each with its fix.

It changes nothing, and what it may not look at it says. `machine`, `account` and `cluster` look at one place each.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from scripts.aws_cli import Denied, NoCredentials
from scripts.console import Problem

OK, NOTE, WRONG, UNKNOWN = "ok", "note", "WRONG", "unknown"


class Note(Problem):
    """Not what one would want, but `make up` does not fail by it."""


class Unknown(Problem):
    """What could not be looked at, and what it would take."""


@dataclass(frozen=True)
class Check:
    """What was found of one thing."""

    about: str
    state: str
    found: str
    fix: str = ""


def check(about: str, look: Callable[[], str]) -> Check:
    """What `look` finds; a Problem that it raises makes it WRONG, the others are their own."""
    try:
        return Check(about, OK, look())
    except (Denied, NoCredentials, Unknown) as problem:
        state, why = UNKNOWN, problem
    except Note as problem:
        state, why = NOTE, problem
    except Problem as problem:
        state, why = WRONG, problem
    return Check(about, state, " ".join(why.what.split()), why.fix)


def unlooked(abouts: Iterable[str]) -> Iterator[Check]:
    """What was not looked at, because of the check before."""
    for about in abouts:
        yield Check(about, UNKNOWN, "not looked at: see above")

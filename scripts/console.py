"""How the commands behind the Makefile speak: steps with elapsed time, and problems with their fix."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


class Problem(Exception):
    """Something the user can mend: one sentence that says what is wrong, and what to do about it."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}\n  fix: {fix}")
        self.what = what
        self.fix = fix


def say(text: str) -> None:
    print(text, flush=True)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as aligned columns; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Announce a piece of work that takes a while, and say how long it took."""
    started = time.monotonic()
    say(f"… {what}")
    try:
        yield
    except BaseException:
        say(f"✗ {what} ({time.monotonic() - started:.1f} s)")
        raise
    say(f"✓ {what} ({time.monotonic() - started:.1f} s)")


def main(command: Callable[[], None]) -> None:
    """Run `command`; a Problem becomes one message on standard error and exit status 1."""
    try:
        command()
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)

"""Runs inside a Ray pod: print the log files whose path contains a text, each line behind its file's name.

Of a request all lines, else the end of each file.

Stands alone, since `make logs` hands it to the pod's Python as text. Unlike tail(1) it finds files that come later: a
replica that restarts has another one.
"""

import select
import sys
from pathlib import Path

KINDS = (".log", ".out", ".err")
BYTES = 64 << 10
"""How much of a file's end is shown at first."""


def main(directory: Path, what: str, follow: bool, request: str = "") -> None:
    """Until the files end or, to follow, until standard input does: whoever asked has gone.

    With the id of a request, only lines that have it.
    """
    read: dict[Path, int] = {}
    while True:
        for path in sorted(directory.rglob("*")):
            name = str(path.relative_to(directory))
            if what in name and path.suffix in KINDS:
                size = path.stat().st_size
                begin = read.get(path, 0 if request else max(size - BYTES, 0))
                with path.open("rb") as file:
                    file.seek(begin if begin <= size else 0)  # rotated
                    whole, _, rest = file.read().rpartition(b"\n")
                    read[path] = file.tell() - len(rest)
                for line in whole.decode(errors="replace").splitlines():
                    if request in line:
                        print(f"{name}\t{line}", flush=True)
        if not follow or select.select([sys.stdin], [], [], 1)[0]:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "follow", sys.argv[4])

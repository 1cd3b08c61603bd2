"""`make audit`: what is known against the Python packages of the locks, by OSV (https://osv.dev).

It ends with 0 when nothing is, with 1 when something is, and with 3 when the data cannot be had: then nothing is said
about the packages. What a team has looked at and accepts is in pyproject.toml, each with its reason:

    [tool.audit]
    accepted = { "GHSA-xxxx-xxxx-xxxx" = "only in the command line, which the image does not run" }
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from typing import Any

from infra.config import ROOT
from scripts.console import Problem, main, say, table

LOCKS = ("cpu", "gpu", "infra")
"""Two images, and what deploys them. dev.txt is cpu.txt, with what only tests use."""
NO_DATA = 3
_NO_ANSWER = re.compile(r"requests\.exceptions\.|pip_audit\._service\.|your network may be blocking")


class NoData(Exception):
    """The vulnerability service does not answer."""


def accepted() -> dict[str, str]:
    """The reason for each vulnerability that somebody has accepted."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = project["tool"].get("audit", {}).get("accepted", {})
    for name, reason in found.items():
        if not str(reason).strip():
            raise Problem(f"tool.audit.accepted.{name}: has no reason", "say in pyproject.toml why it may stay")
    return found


def known(lock: str, service: str | None) -> list[dict[str, Any]]:
    """Packages of a lock with vulnerabilities, as pip-audit tells them. Raises NoData.

    `service` is the address of another OSV than the public one, as in networks without a way out.
    """
    with tempfile.TemporaryDirectory() as private:
        # Not its cache, by which an address that does not answer would seem to.
        command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv", "--cache-dir", private]
        command += ["--osv-url", service] if service else []
        command += ["--disable-pip", "--require-hashes", "--strict", "--progress-spinner", "off", "--format", "json"]
        done = subprocess.run(
            [*command, "--requirement", str(ROOT / "requirements" / f"{lock}.txt")], capture_output=True, text=True
        )
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        (*_, said) = done.stderr.strip().splitlines() or [""]
        # It lets through what its HTTP client raises, as a traceback.
        if _NO_ANSWER.search(done.stderr):
            raise NoData(said) from None
        raise Problem(f"pip-audit failed: {said}", f"see whether requirements/{lock}.txt is a lock") from None
    return [package for package in packages if package["vulns"]]


def audit(service: str | None) -> None:
    may_stay = accepted()
    rows = [("lock", "package", "vulnerability", "fixed in")]
    for lock in LOCKS:
        for package in known(lock, service):
            for found in package["vulns"]:
                if not may_stay.keys() & {found["id"], *found["aliases"]}:
                    fixes = ", ".join(found["fix_versions"]) or "no version yet"
                    rows.append((lock, f"{package['name']} {package['version']}", found["id"], fixes))
    if len(rows) > 1:
        say(table(rows))
        raise Problem(
            f"{len(rows) - 1} known vulnerabilities in the locks",
            "`make lock UPGRADE='--upgrade-package NAME'`, or accept one with its reason: see scripts/audit.py",
        )
    say(
        f"nothing known against the packages of {', '.join(LOCKS)}.txt" + (", but what is accepted" if may_stay else "")
    )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()

    def run() -> None:
        try:
            audit(os.environ.get("OSV_URL"))
        except NoData as error:
            say(f"*** NOT AUDITED: the data of known vulnerabilities cannot be had here: {error} ***")
            say("  fix: run it where api.osv.dev answers, or name another OSV: OSV_URL=https://…/v1/query")
            sys.exit(NO_DATA)

    main(run)

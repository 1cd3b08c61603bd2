"""What `make doctor` runs."""

import argparse
from collections.abc import Iterator

from infra.aws.config import EksCluster
from infra.clusters import NativeCluster
from infra.config import StackConfig
from scripts import cluster, stack_file
from scripts.console import Problem, main, say, table
from scripts.doctor import NOTE, OK, UNKNOWN, WRONG, Check, account, machine
from scripts.doctor import cluster as kubernetes


def doctor(stack_name: str) -> None:
    """Raises Problem when something would make `up` fail, or does not work now."""
    stack = stack_file.read(stack_name)
    found = list(checks(stack_name, stack))
    say(f"stack {stack_name}\n")
    say(show(found))
    counted = {state: sum(check.state == state for check in found) for state in (OK, NOTE, WRONG, UNKNOWN)}
    say("\n" + ", ".join(f"{count} {state}" for state, count in counted.items() if count))
    if counted[WRONG]:
        wrong = ", ".join(check.about for check in found if check.state == WRONG)
        raise Problem(f"stack {stack_name} is not well: {wrong}", "each is told above, with what to do about it")


def checks(stack_name: str, stack: StackConfig) -> Iterator[Check]:
    yield Check("stack file", OK, f"Pulumi.{stack_name}.yaml is valid")
    yield from machine.checks(stack_name, stack)
    if isinstance(stack.cluster, EksCluster):
        yield from account.checks(stack_name, stack, stack.cluster)
    elif not isinstance(stack.cluster, NativeCluster) or cluster.running():
        yield from kubernetes.checks(stack_name, stack)


def show(found: list[Check]) -> str:
    """A table of all, with the fix under what has one."""
    header, *lines = table(
        [("CHECK", "STATE", "FOUND"), *((one.about, one.state, one.found) for one in found)]
    ).splitlines()
    shown = [header]
    for line, one in zip(lines, found, strict=True):
        shown.append(line)
        if one.fix:
            shown.append(f"  fix: {one.fix}")
    return "\n".join(shown)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack")
    main(lambda: doctor(parser.parse_args().stack))

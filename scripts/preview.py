"""`make preview`: what `up` would do, and nothing of it done."""

import argparse

from pulumi import automation

from scripts import engine, stack_file
from scripts.console import Problem, main, say, step


def preview(stack_name: str) -> None:
    """Say what would be created, changed and deleted. Only a stack that is new gets its place in the state."""
    stack = stack_file.read(stack_name)
    engine.require_state(stack_name, stack)
    with step(f"pulumi preview --stack {stack_name}"):
        try:
            opened = engine.open_stack(stack_name, stack)
            result = engine.policed(opened.preview, on_output=engine.progress())
        except automation.ConcurrentUpdateError as error:
            raise engine.in_use(stack_name, error) from None
        except automation.CommandError as error:
            raise Problem(
                engine.reason(error), "nothing was changed; correct the stack file or what it names"
            ) from None
    changes = {kind.value: count for kind, count in result.change_summary.items() if kind != automation.OpType.SAME}
    would = ", ".join(f"{kind} {count}" for kind, count in sorted(changes.items()))
    say(f"`make up STACK={stack_name}` would {would}" if would else "nothing would change")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack")
    main(lambda: preview(parser.parse_args().stack))

"""`make tools`: have every tool of the Kubernetes path at hand."""

import argparse
import sys

from scripts import tools
from scripts.console import main, say


def command() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.tools", description=__doc__)
    parser.add_argument("--built", nargs="+", choices=tools.TOOLS, help="build nothing; exit status 0 where these are")
    if asked := parser.parse_args().built:
        sys.exit(not tools.built(*asked))
    say(f"tools are in {tools.ensure(*(name for name in tools.TOOLS if name not in tools.SIMULATION))}")


main(command)

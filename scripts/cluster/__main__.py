"""`python -m scripts.cluster start|stop|status`."""

import argparse

from infra.clusters import native_kubeconfig
from scripts import cluster, tools
from scripts.cluster.layout import log_file
from scripts.console import main, say


def status() -> None:
    if cluster.running():
        say(f"running, kubeconfig {native_kubeconfig()}")
        return
    log = log_file("cluster")
    errors = [line for line in log.read_text().splitlines() if line.startswith("error: ")] if log.exists() else []
    say(f"not running; the last one ended with {errors[-1]}" if errors else "not running")


def command() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.cluster", description=__doc__)
    parser.add_argument("action", choices=["start", "stop", "status"])
    match parser.parse_args().action:
        case "start":
            cluster.start(tools.ensure("kubernetes", "coredns", "pause"))
        case "stop":
            cluster.stop()
        case _:
            status()


main(command)

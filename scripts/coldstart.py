"""`make coldstart`: how long each stage of their start has taken the Ray pods of a stack, and the replicas on them.

Kubernetes' objects and the logs that Ray and vLLM write anyway are all it reads.
"""

import argparse
import csv
import io
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

from scripts import kubectl, stack_file
from scripts.console import Problem, main, say, table
from scripts.kubectl import Kubectl
from scripts.logs import LOGS
from scripts.observe import Object, conditions, label, look

NONE = "–"
STAGES = {
    "node": "the pod is created → it has a node",
    "image": "→ its first container runs",
    "Ray": "→ its raylet runs; a worker waits for the head",
    "applications": "→ the replica is asked for: the head has built its application",
    "replica": "→ its constructor begins: a process, and what it imports",
    "weights": "vLLM reads them",
    "engine": "→ vLLM is up, without the weights",
    "first token": "→ the replica is ready: a language model has generated a token",
}
"""In order, each from the end of the one before it."""
REPLICA, INITIALIZING, ENGINE, READY = (
    *("Starting Replica(id=", "Started initializing replica", "Started vLLM engine", "Finished initializing replica"),
)
"""What Ray Serve's controller writes of a replica, and what the replica writes itself."""
RAYLET, WEIGHTS = "Setting cluster ID", "Loading weights took"
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}")
_ASKED_FOR = re.compile(r"Starting Replica\(id='(\w+)', deployment='([^']+)'")
_WEIGHTS = re.compile(r"(\d\d-\d\d \d\d:\d\d:\d\d) .*Loading weights took ([\d.]+) seconds")
_PID = re.compile(r'"process": (\d+)')
# Not a word about requests, which is what most of Serve's logs are.
_FIND = (
    f"cd {LOGS} && grep -sHF "
    + " ".join(f"-e '{text}'" for text in (REPLICA, INITIALIZING, ENGINE, READY, RAYLET, WEIGHTS))
    + " raylet.out* serve/*.log* worker-*.out; true"
)


class Line(NamedTuple):
    """Of a log."""

    file: str
    text: str

    @property
    def time(self) -> datetime | None:
        """Containers have UTC."""
        found = _TIME.search(self.text)
        return datetime.strptime(found[0], "%Y-%m-%d %H:%M:%S,%f").replace(tzinfo=UTC) if found else None


class Start(NamedTuple):
    """Of a pod, or of a replica on it, since the pod was created."""

    pod: Object
    replica: str
    seconds: dict[str, float]
    """Of the stages that are known. One that follows an unknown one has its time as well."""
    scheduled: datetime | None
    ready: datetime | None

    @property
    def generates(self) -> bool:
        return self.ready is not None and "engine" in self.seconds


def coldstart(stack_name: str) -> None:
    stack = stack_file.read(stack_name)
    kubernetes = kubectl.connect(stack.cluster)
    pods = [pod for pod in look(kubernetes, stack.namespace).pods if label(pod, "is-ray-node")]
    if not pods:
        raise Problem(f"there is no Ray pod of stack {stack_name}", f"make up STACK={stack_name}")
    found = starts(pods, {pod["metadata"]["name"]: logged(kubernetes, pod) for pod in pods})
    say(f"stack {stack_name}, seconds\n\n{table(list(rows(found)))}\n")
    say(table([("STAGE", "FROM THE END OF THE ONE BEFORE IT"), *STAGES.items()]))
    if claims := list(node_claims(kubernetes)):
        say("\nof the nodes, seconds after Karpenter wanted them\n" + table(claims))
    for line in first_tokens(found):
        say(f"\n{line}")
    if lines := stages_csv(stack_name, found):
        say(f"\nof the last pod's first model, for scripts/plan/stages.csv (docs/planning.md):\n{lines}")


def logged(kubernetes: Kubectl, pod: Object) -> list[Line]:
    """What a pod's logs have of its start; nothing of one that does not run, or where one may not exec."""
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    try:
        said = kubernetes("exec", "--namespace", namespace, name, "--", "sh", "-c", _FIND)
    except Problem:
        return []
    return [Line(*line.split(":", 1)) for line in said.splitlines() if ":" in line]


def starts(pods: list[Object], logs: dict[str, list[Line]]) -> list[Start]:
    """Of each pod and of each replica, as far as `logs`, by pod, tell; in the order of time."""
    asked = {
        match[1]: (match[2], line.time)
        for lines in logs.values()
        for line in lines
        if line.file.startswith("serve/controller") and (match := _ASKED_FOR.search(line.text))
    }
    found: list[Start] = []
    for pod in sorted(pods, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"])):
        lines = logs[pod["metadata"]["name"]]
        ends = {"node": _scheduled(pod), "image": _first_container(pod), "Ray": _time(lines, "raylet", RAYLET)}
        found.append(Start(pod, NONE, _seconds(pod, ends), ends["node"], None))
        # Without what a rotated one has behind it.
        replicas = dict.fromkeys(line.file.partition(".log")[0] for line in lines if "serve/replica_" in line.file)
        of_pod = [_replica(pod, lines, file, ends, asked) for file in replicas]
        found += sorted(of_pod, key=lambda one: str(one.ready))
    return found


def _replica(
    pod: Object,
    lines: list[Line],
    file: str,
    before: dict[str, datetime | None],
    asked: dict[str, tuple[str, datetime | None]],
) -> Start:
    """A replica by its log's file, serve/replica_<application>_<deployment>_<id>."""
    rest, _, identity = file.removeprefix("serve/replica_").rpartition("_")
    name, asked_for = asked.get(identity, (rest, None))
    begun, engine, ready = (_time(lines, file, text) for text in (INITIALIZING, ENGINE, READY))
    ends = {**before, "applications": asked_for, "replica": begun, "engine": engine, "first token": ready}
    seconds = _seconds(pod, ends)
    if begun and ready and "engine" in seconds:
        pid = next(
            (match[1] for line in lines if line.file.startswith(file) and (match := _PID.search(line.text))), None
        )
        weights = _weights(lines, begun, ready, pid)
        if weights is not None:
            seconds["weights"] = min(weights, seconds["engine"])
            seconds["engine"] -= seconds["weights"]
    return Start(pod, name, seconds, before["node"], ready)


def _weights(lines: list[Line], begun: datetime, ready: datetime, pid: str | None) -> float | None:
    """The slowest of the processes that have loaded them meanwhile; its own where it has.

    vLLM's lines are in the output of the replica or, with several GPUs, of the workers; their times have no year.
    """
    loaded = [(line.file, match) for line in lines if (match := _WEIGHTS.search(line.text))]
    meanwhile = [
        (file, float(match[2]))
        for file, match in loaded
        if begun.strftime("%m-%d %H:%M:%S") <= match[1] <= ready.strftime("%m-%d %H:%M:%S")
    ]
    own = [seconds for file, seconds in meanwhile if pid and file.endswith(f"-{pid}.out")]
    return max(own or [seconds for _, seconds in meanwhile], default=None)


def _seconds(pod: Object, ends: dict[str, datetime | None]) -> dict[str, float]:
    """Of the stages, in order, which end then. What was over before its turn has taken nothing."""
    begin, found = datetime.fromisoformat(pod["metadata"]["creationTimestamp"]), dict[str, float]()
    for stage, end in ends.items():
        if end:
            found[stage] = max((end - begin).total_seconds(), 0.0)
            begin = max(begin, end)
    return found


def _time(lines: list[Line], file: str, text: str) -> datetime | None:
    """When the logs whose file begins so first said so."""
    return min(
        (line.time for line in lines if line.file.startswith(file) and text in line.text and line.time), default=None
    )


def _scheduled(pod: Object) -> datetime | None:
    condition = conditions(pod).get("PodScheduled", {})
    return datetime.fromisoformat(condition["lastTransitionTime"]) if condition.get("status") == "True" else None


def _first_container(pod: Object) -> datetime | None:
    """When the first container began, which is an init container's on a worker; all of them have one image.

    Not by the kubelet's events, which are gone after an hour.
    """
    statuses = [*pod["status"].get("initContainerStatuses", []), *pod["status"].get("containerStatuses", [])]
    states = [state for one in statuses for state in one.get("state", {}).values()]
    begun = [state["startedAt"] for state in states if state.get("startedAt")]
    return datetime.fromisoformat(min(begun)) if begun else None


def rows(found: list[Start]) -> Iterator[tuple[str, ...]]:
    yield "POD", "REPLICA", *(stage.upper() for stage in STAGES), "TOTAL"
    for one in found:
        of_stages = (f"{one.seconds[stage]:.1f}" if stage in one.seconds else NONE for stage in STAGES)
        yield one.pod["metadata"]["name"], one.replica, *of_stages, f"{sum(one.seconds.values()):.1f}"


def node_claims(kubernetes: Kubectl) -> Iterator[tuple[str, ...]]:
    """What became of each node that Karpenter wanted; nothing without Karpenter."""
    items: list[Object] = []
    with suppress(Problem):
        items = kubernetes.get("nodeclaims.karpenter.sh")["items"]
    steps = ("Launched", "Registered", "Initialized")
    for place, claim in enumerate(items):
        if not place:
            yield "NODE", *(step.upper() for step in steps)
        known = conditions(claim)
        since = datetime.fromisoformat(claim["metadata"]["creationTimestamp"])
        taken = (
            f"{(datetime.fromisoformat(known[step]['lastTransitionTime']) - since).total_seconds():.0f}"
            if known.get(step, {}).get("status") == "True"
            else NONE
            for step in steps
        )
        yield claim.get("status", {}).get("nodeName") or claim["metadata"]["name"], *taken


def first_tokens(found: list[Start]) -> Iterator[str]:
    """Of each Ray cluster: from its first pod that had a node to its first model that answered."""
    for cluster in dict.fromkeys(label(one.pod, "cluster") for one in found):
        of_it = [one for one in found if label(one.pod, "cluster") == cluster]
        scheduled = min((one.scheduled for one in of_it if one.scheduled), default=None)
        ready = min((one.ready for one in of_it if one.generates and one.ready), default=None)
        if scheduled and ready:
            seconds = (ready - scheduled).total_seconds()
            yield f"{cluster}: the first token came {seconds:.0f} s after the first pod was scheduled"


def stages_csv(stack_name: str, found: list[Start]) -> str:
    """The lines of scripts/plan/stages.csv that the last pod with a language model would have there."""
    (*_, last) = [None, *(one.pod["metadata"]["name"] for one in found if one.generates)]
    if last is None:
        return ""
    first = next(one for one in found if one.generates and one.pod["metadata"]["name"] == last)
    assert first.ready
    # A replica that is added waits for these. Its application has been built before.
    parts = {"node": ["node"], "image": ["image", "Ray"], "weights": ["weights"], "engine": ["replica", "engine"]}
    source = f"make coldstart STACK={stack_name}, {first.ready:%Y-%m-%d}: {first.replica} on {last}"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for stage, summed in {**parts, "first token": ["first token"]}.items():
        known = [first.seconds[part] for part in summed if part in first.seconds]
        if known:
            writer.writerow([stage, f"{sum(known):.1f}", 0, "measured", source])
    return text.getvalue().rstrip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make coldstart")
    parser.add_argument("stack")
    given = parser.parse_args()
    main(lambda: coldstart(given.stack))

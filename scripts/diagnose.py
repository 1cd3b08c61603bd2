"""Why a deployment does not become ready: from the pods, from Kubernetes' events and from Ray Serve's own status."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from app.builtin import cache_dir
from infra.platform import kuberay
from scripts import logs
from scripts.console import Problem, say
from scripts.kubectl import Kubectl
from scripts.observe import Object, View, conditions, label, last_seen, look, target

_IMAGE = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError")
_NORMAL = ("ContainerCreating", "PodInitializing", "CrashLoopBackOff")
"""Reasons to wait that are none by themselves; what a crash loop comes from is in the container's last state."""
_POD_EVENTS = ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "FailedToRetrieveImagePullSecret")
_RECENT = timedelta(minutes=3)
"""KubeRay repeats what fails every few seconds, and an event of something mended stays for an hour."""
RESTARTS = 3
"""A container that has ended so often will do it again."""
LOOK_EVERY = 5.0
GIVE_UP_AFTER = 60.0
"""Seconds that a finding which waiting will not mend must have stood: a registry may be away for a moment."""
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_EXCEPTION = re.compile(r"^(?:\w+\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Timeout)\b(?:: |$)", re.MULTILINE)


@dataclass(frozen=True)
class Finding:
    """Something that keeps a stack from being ready."""

    about: str
    what: str
    final: bool = False
    """Whether waiting will not mend it."""
    usual: bool = False
    """Whether every start goes through it: for those who ask what is pending, not for those who wait."""

    def __str__(self) -> str:
        return f"{self.about}: {self.what}"


def findings(view: View, now: datetime) -> list[Finding]:
    """The most specific first: what a pod suffers from explains what Serve, and that what KubeRay says of it."""
    return _findings(view, view.pods, view.services, now)


def hopeless(view: View, now: datetime) -> list[Finding]:
    """The final ones, but for those of clusters that the RayService is about to leave: `up` may be mending them."""
    seen = [service for service in view.services if _is_seen(service)]
    pods = [pod for pod in view.pods if label(pod, "cluster") in {target(service) for service in seen}]
    return [finding for finding in _findings(view, pods, seen, now) if finding.final]


def _findings(view: View, pods: list[Object], services: list[Object], now: datetime) -> list[Finding]:
    pods = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    return [
        *(found for pod in pods for found in _containers(pod, view.events)),
        *(found for pod in pods for found in _pod(pod, view.events)),
        *(found for service in services for found in _applications(service, view)),
        *_refusals(view, now),
    ]


def _is_seen(service: Object) -> bool:
    """Whether KubeRay has taken up the newest specification."""
    return service.get("status", {}).get("observedGeneration") == service["metadata"]["generation"]


def _containers(pod: Object, events: list[Object]) -> Iterator[Finding]:
    status = pod["status"]
    for container in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
        about = f"{_name(pod)}, container {container['name']}"
        waiting = container.get("state", {}).get("waiting", {})
        reason = waiting.get("reason", "")
        ended = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated")
        if reason in _IMAGE:
            pulls = [event["message"] for event in _of(pod, events) if event["message"].startswith("Failed to pull")]
            yield Finding(about, f"{reason}: {_short(pulls[-1] if pulls else waiting.get('message', ''))}", final=True)
        elif reason and reason not in _NORMAL:
            yield Finding(about, f"{reason}: {_short(waiting.get('message', ''))}", final=True)
        elif ended and not container["ready"] and ended.get("exitCode"):
            yield Finding(about, _end(pod, container, ended), final=container["restartCount"] >= RESTARTS)


def _end(pod: Object, container: Object, ended: Object) -> str:
    specs = [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
    (spec,) = [spec for spec in specs if spec["name"] == container["name"]]
    how = f"ended with exit code {ended['exitCode']}"
    if ended.get("reason") == "OOMKilled":
        limit = spec.get("resources", {}).get("limits", {}).get("memory", "no limit")
        how = f"OOMKilled: it wanted more memory than its limit, {limit}"
    times = f", {container['restartCount']} restarts" if container["restartCount"] else ""
    said = f"; it said: {_short(ended['message'])}" if ended.get("message") else ""
    return f"{how}{times}{said}"


def _pod(pod: Object, events: list[Object]) -> Iterator[Finding]:
    status = pod["status"]
    scheduled = conditions(pod).get("PodScheduled", {})
    if scheduled.get("status") == "False":
        # Not final: another node may come.
        yield Finding(_name(pod), f"pending, {_short(scheduled.get('message', ''))}")
    if status.get("phase") == "Failed":
        yield Finding(_name(pod), f"{status.get('reason', 'Failed')}: {_short(status.get('message', ''))}")
    if status.get("phase") == "Pending":
        failed = {event["reason"]: event for event in _of(pod, events) if event["reason"] in _POD_EVENTS}
        for reason, event in failed.items():
            yield Finding(_name(pod), f"{reason}: {_short(event['message'])}")


def _applications(service: Object, view: View) -> Iterator[Finding]:
    for name, application in view.applications.get(target(service) or "", {}).items():
        failed = application["status"] == "DEPLOY_FAILED"
        guilty = {
            deployment: state
            for deployment, state in application["deployments"].items()
            if state["status"] != "HEALTHY" and state.get("message")
        }
        for deployment, state in guilty.items():
            what = f"{state['status']}: {cause(state['message'])}"
            # Ray tells of 30 s without a replica; engines take minutes.
            yield Finding(f"deployment {deployment}", what, final=failed, usual=state["status"] == "UPDATING")
        if not guilty and application["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
            why = cause(application.get("message", ""))
            yield Finding(f"application {name}", f"{application['status']}: {why}", final=failed)


def _refusals(view: View, now: datetime) -> Iterator[Finding]:
    """What KubeRay could not make, or does not take."""
    for service in view.services:
        ready = conditions(service).get("Ready", {})
        # The former stays until the service is ready for the first time, mended or not.
        refused = {"ValidationFailed": not _is_seen(service), "InitializingTimeout": True}
        if refused.get(ready.get("reason", "")):
            yield Finding(_name(service), f"{ready['reason']}: {_short(ready.get('message', ''))}", final=True)
    newest: dict[str, Finding] = {}
    for item in (*view.services, *view.clusters):
        since = max(now - _RECENT, _ready_since(item))
        for event in _of(item, view.events):
            seen = datetime.fromisoformat(last_seen(event))
            if event["reason"].startswith("FailedToCreate") and seen > since:
                what = f"{event['reason']}: {_short(event['message'])}"
                newest[f"{_name(item)} {event['reason']}"] = Finding(_name(item), what)
    yield from newest.values()


def _ready_since(item: Object) -> datetime:
    """What KubeRay had failed to make before is mended: it also asks for what it has made a moment ago."""
    ready = conditions(item).get("Ready", {})
    if ready.get("status") != "True":
        return datetime.min.replace(tzinfo=UTC)
    return datetime.fromisoformat(ready["lastTransitionTime"])


def _of(item: Object, events: list[Object]) -> list[Object]:
    return [event for event in events if event["involvedObject"].get("uid") == item["metadata"]["uid"]]


def _name(item: Object) -> str:
    return f"{item['kind']} {item['metadata']['name']}".replace("Pod ", "pod ")


def cause(message: str) -> str:
    """The exception at the end of what Ray Serve says, without its traceback; else its first line."""
    text = _ANSI.sub("", message).strip()
    exceptions = list(_EXCEPTION.finditer(text))
    return _short(text[exceptions[-1].start() :] if exceptions else text.partition("\n")[0])


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 400 else f"{line[:400]} …"


@contextmanager
def watching(
    kubernetes: Kubectl, namespace: str, show: Callable[[str], None], give_up: Callable[[], None]
) -> Iterator[Callable[[str], None]]:
    """While Pulumi waits for the RayService: say each finding once, and `give_up` when waiting will not mend one.

    Yields where Pulumi's output goes: to `show`, and its line on the RayService begins the watch.
    """
    begun, ended = threading.Event(), threading.Event()

    def see(line: str) -> None:
        show(line)
        if "ray.io/v1:RayService" in line:
            begun.set()

    def watch() -> None:
        said: set[str] = set()
        standing: dict[str, float] = {}
        begun.wait()
        while not ended.wait(LOOK_EVERY):
            try:
                view = look(kubernetes, namespace)
            except Problem:  # the API server is busy, or away; Pulumi says so in time
                continue
            now = datetime.now(UTC)
            for finding in findings(view, now):
                if not finding.usual and str(finding) not in said:
                    said.add(str(finding))
                    say(f"  → {finding}")
            standing = {found.about: standing.get(found.about, time.monotonic()) for found in hopeless(view, now)}
            if any(time.monotonic() - since > GIVE_UP_AFTER for since in standing.values()):
                say("  → waiting will not mend this: giving up")
                give_up()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield see
    finally:
        ended.set()
        begun.set()
        watcher.join()


def settle(kubernetes: Kubectl, namespace: str, seconds: float) -> None:
    """Wait until Ray Serve runs what was deployed; Problem with the reason when it will not.

    The RayService's conditions say nothing of that when only applications change: its cluster stays, and so does Ready.
    """
    deadline = time.monotonic() + seconds
    while True:
        view = look(kubernetes, namespace)
        targets = [view.applications.get(target(service) or "", {}) for service in view.services]
        states = {application["status"] for applications in targets for application in applications.values()}
        if all(map(_is_seen, view.services)) and states == {"RUNNING"}:
            return
        if hopeless(view, datetime.now(UTC)) or time.monotonic() > deadline:
            raise failure(kubernetes, namespace, "up to date; not all applications run")
        time.sleep(LOOK_EVERY)


def failure(kubernetes: Kubectl, namespace: str, reason: str) -> Problem:
    """What keeps the stack from being ready, after Pulumi has ended with `reason`. The report goes to a file."""
    try:
        found, report = explain(kubernetes, namespace)
    except Problem as problem:
        return Problem(f"pulumi up failed: {reason}\n  and {problem.what}", problem.fix)
    path = cache_dir() / f"report-{namespace}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report)
    lines = [*map(str, found), f"pulumi: {reason}"]
    return Problem(
        "the stack did not become ready:\n  " + "\n  ".join(lines),
        f"correct it and run `make up` again; all that the cluster says is in {path}",
    )


def explain(kubernetes: Kubectl, namespace: str) -> tuple[list[Finding], str]:
    """The findings as they are now, and a report of all there is to read; a part that cannot be had says why."""
    view = look(kubernetes, namespace)
    found = findings(view, datetime.now(UTC))
    here = ("--namespace", namespace)
    operator = ("--namespace", kuberay.NAMESPACE, "--selector", "app.kubernetes.io/component=kuberay-operator")
    parts = {
        "pods": ("get", "pods", "--all-namespaces", "--output", "wide"),
        "RayServices": ("get", "rayservices", *here, "--output", "yaml"),
        "events": ("get", "events", *here, "--sort-by", ".lastTimestamp"),
        "the operator's log": ("logs", *operator, "--tail", "100"),
    }
    sections = {"findings": "\n".join(map(str, found)) or "none"}
    sections |= {title: _try(kubernetes, *call) for title, call in parts.items()}
    for cluster, applications in view.applications.items():
        sections[f"Ray Serve on {cluster}"] = "\n".join(_statuses(applications))
    for pod in (pod for pod in view.pods if pod["metadata"]["namespace"] == namespace):
        name = pod["metadata"]["name"]
        for container in pod["status"].get("containerStatuses", []):
            if container["restartCount"]:
                call = ("logs", *here, name, "--container", container["name"], "--previous", "--tail", "100")
                sections[f"{name}, {container['name']}: before it restarted"] = _try(kubernetes, *call)
        tail = ("exec", *here, name, "--", "sh", "-c", "tail -n 100 /tmp/ray/session_latest/logs/serve/*.log")
        said = _try(kubernetes, *tail)
        sections[f"Ray Serve's logs on {name}"] = "\n".join(map(logs.readable, said.splitlines()))
    return found, "\n".join(f"── {title}\n{text}" for title, text in sections.items())


def _statuses(applications: dict[str, Object]) -> Iterator[str]:
    for name, application in applications.items():
        yield f"{name} {application['status']} {application.get('message', '')}"
        for deployment, state in application["deployments"].items():
            yield f"  {deployment} {state['status']} {state.get('message', '')}"


def _try(kubernetes: Kubectl, *call: str) -> str:
    try:
        return kubernetes(*call)
    except Problem as problem:
        return problem.what

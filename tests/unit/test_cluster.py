"""The native cluster's pure parts: certificates, configuration, who runs it, and what it says when it cannot start."""

import base64
import json
import os
import socket
import ssl
import stat
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from infra.clusters import native_kubeconfig
from scripts.cluster import config, images, layout, lifecycle, pki, preflight, traces
from scripts.console import Problem


@pytest.fixture(autouse=True)
def directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLUEPRINT_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("BLUEPRINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BLUEPRINT_API_PORT", raising=False)


@pytest.fixture
def written() -> Path:
    """The configuration directory of a cluster, written in full."""
    layout.home().mkdir(parents=True)
    pki.create(layout.home() / "pki")
    config.write(1)
    return layout.home() / "config"


def test_the_users_kubeconfig_stands_alone_and_points_to_loopback(written: Path) -> None:
    kubeconfig = yaml.safe_load(native_kubeconfig().read_text())
    assert kubeconfig["current-context"] == "ray-serve-blueprint"
    assert kubeconfig["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:16443"
    assert kubeconfig["users"][0]["user"].keys() == {"client-certificate-data", "client-key-data"}
    assert stat.S_IMODE(native_kubeconfig().stat().st_mode) == 0o600


def test_components_reach_the_api_server_inside(written: Path) -> None:
    for user in pki.USERS:
        cluster = yaml.safe_load((written / f"{user}.kubeconfig").read_text())["clusters"][0]["cluster"]
        assert cluster["server"] == f"https://{layout.NODE_IP}:6443"


def test_keys_are_roots_alone(written: Path) -> None:
    keys = layout.home() / "pki"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    modes = {key.name: stat.S_IMODE(key.stat().st_mode) for key in keys.glob("*.key")}
    assert modes
    assert set(modes.values()) == {0o600}
    assert {stat.S_IMODE(file.stat().st_mode) for file in written.glob("*.kubeconfig")} == {0o600}


def test_the_api_server_proves_itself_on_loopback_and_knows_its_client(written: Path) -> None:
    """A real TLS handshake, client certificate included, with what is in the kubeconfig."""
    keys = layout.home() / "pki"
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(keys / "apiserver.crt", keys / "apiserver.key")
    server.load_verify_locations(keys / "ca.crt")
    server.verify_mode = ssl.CERT_REQUIRED
    kubeconfig = yaml.safe_load(native_kubeconfig().read_text())
    authority = base64.b64decode(kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"])
    client = ssl.create_default_context(cadata=authority.decode())
    client.load_cert_chain(keys / "admin.crt", keys / "admin.key")
    near, far = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(near, far, server_hostname="127.0.0.1"),
        server.wrap_bio(far, near, server_side=True),
    ]
    for end in [*ends, *ends]:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    subject = dict(pair[0] for pair in (ends[1].getpeercert() or {})["subject"])  # type: ignore[misc]
    assert subject == {"organizationName": "system:masters", "commonName": "admin"}


def test_nothing_listens_without_authentication(written: Path) -> None:
    commands = config.commands(Path("/bin"))
    assert "--anonymous-auth=false" in commands["kube-apiserver"]
    kubelet = yaml.safe_load((written / "kubelet.yaml").read_text())
    assert kubelet["authentication"]["anonymous"] == {"enabled": False}
    assert kubelet["authorization"] == {"mode": "Webhook"}
    clients = [word for word in commands["etcd"] if word.startswith("--listen")]
    assert all("//127.0.0.1:" in word for word in clients)


def test_every_file_that_a_component_is_told_of_exists(written: Path) -> None:
    later = {layout.home() / "etcd"}
    for command in config.commands(Path("/bin")).values():
        for word in command:
            path = Path(word.rpartition("=")[2])
            if path.is_relative_to(layout.home()):
                assert path in later or path.exists(), word


@pytest.mark.parametrize(("major", "version"), [(1, 2), (2, 3)])
def test_containerd_is_configured_in_its_own_dialect(major: int, version: int) -> None:
    layout.home().mkdir(parents=True)
    pki.create(layout.home() / "pki")
    config.write(major)
    document = tomllib.loads((layout.home() / "config" / "containerd.toml").read_text())
    assert document["version"] == version
    assert layout.PAUSE_IMAGE in str(document)


@pytest.mark.parametrize(
    ("says", "major"),
    [
        ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", 1),
        ("containerd github.com/containerd/containerd v1.7.28 b98a3aa", 1),
        ("containerd github.com/containerd/containerd/v2 v2.3.0 deadbeef", 2),
        ("containerd github.com/containerd/containerd 1.4.13~ds1 1.4.13", None),
        ("containerd github.com/containerd/containerd/v3 v3.0.0 deadbeef", None),
    ],
)
def test_containerds_version(says: str, major: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout=says, stderr=""))
    if major:
        assert preflight.containerd_major() == major
    else:
        with pytest.raises(Problem, match=r"containerd 1\.6 to 2\.x is needed"):
            preflight.containerd_major()


def _record(pid: int, started: int) -> layout.Record:
    record = layout.Record(supervisor=pid, started=started, node=pid)
    layout.home().mkdir(parents=True)
    record.save()
    return record


def test_a_record_of_a_living_process_counts() -> None:
    started = layout.start_time(os.getpid())
    assert started
    assert layout.Record.load() is None
    record = _record(os.getpid(), started)
    assert layout.Record.load() == record
    assert not lifecycle.running(), "nobody has said yet that it is ready"
    layout.ready_file().touch()
    assert lifecycle.running()


def test_a_record_whose_process_id_is_somebody_elses_by_now_does_not_count() -> None:
    _record(os.getpid(), started=1)
    assert layout.Record.load() is None


@pytest.fixture
def zombie() -> Iterator[int]:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield process.pid


def test_a_process_that_has_ended_does_not_run(zombie: int) -> None:
    assert layout.start_time(zombie) is None


def test_without_a_cluster_images_cannot_be_asked_for() -> None:
    with pytest.raises(Problem, match="does not run"):
        images.has(layout.PAUSE_IMAGE)


def test_stopping_what_does_not_run_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    lifecycle.stop()
    assert capsys.readouterr().out == "the native cluster is not running\n"


def test_without_root_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Problem, match="sudo -E make up"):
        preflight.root()


def test_another_system_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.platform, "system", lambda: "Darwin")
    with pytest.raises(Problem, match="Linux, and this is Darwin"):
        preflight.root()


def test_a_port_in_use_is_named_with_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("BLUEPRINT_API_PORT", str(taken.getsockname()[1]))
        with pytest.raises(Problem, match="BLUEPRINT_API_PORT=26443 make up"):
            preflight.port()


@pytest.mark.parametrize("port", ["http", "0", "70000", "-1", ""])
def test_a_port_that_is_none_is_refused(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLUEPRINT_API_PORT", port)
    with pytest.raises(Problem, match="BLUEPRINT_API_PORT is"):
        layout.api_port()


def test_directories_that_the_cluster_covers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLUEPRINT_CACHE", "/var/lib/ci/cache")
    with pytest.raises(Problem, match="set BLUEPRINT_CACHE to a directory elsewhere"):
        preflight.directories()


def test_a_full_disk_is_named_with_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 2 << 30})
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(Problem, match=r"2\.0 GiB free.*need 15"):
        preflight.space()


def test_relative_directories_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLUEPRINT_STATE", "state")
    with pytest.raises(Problem, match="absolute path: BLUEPRINT_STATE=/"):
        preflight.directories()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the machine's own tools say, made up: the first word of a command → its output.

    And no cluster, though one may run here for other tests. Real ones are looked for in tests/e2e/down.
    """
    says: dict[str, str] = {}
    monkeypatch.setattr(traces, "processes", dict[int, str])
    monkeypatch.setattr(traces, "_cgroups", list[Path])
    monkeypatch.setattr(traces, "_output", lambda *command: says.get(command[0], ""))
    return says


@pytest.mark.usefixtures("machine")
def test_a_clean_machine_has_no_leftovers() -> None:
    assert traces.leftovers() == []


@pytest.mark.usefixtures("machine")
def test_leftovers_name_what_they_found() -> None:
    layout.home().mkdir(parents=True)
    assert f"directory {layout.home()}" in traces.leftovers()


def test_what_the_network_left_is_found_but_for_what_was_there_before(machine: dict[str, str]) -> None:
    links = [{}, {"ifname": "veth1f"}, {"ifname": "veth-docker", "master": "docker0"}]
    machine["ip"] = json.dumps(links)
    machine["iptables-save"] = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:DOCKER - [0:0]\n"
    layout.home().mkdir(parents=True)
    traces.remember_network()
    machine["ip6tables-save"] = ":CNI-HOSTPORT-DNAT - [0:0]\n"
    assert traces.network() == {
        "network interface veth1f",
        "iptables chain KUBE-SERVICES",
        "iptables chain CNI-HOSTPORT-DNAT",
    }
    found = traces.leftovers(traces.remembered_network())
    assert [line for line in found if not line.startswith("directory")] == ["iptables chain CNI-HOSTPORT-DNAT"]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    "left", ["io.containerd.grpc.v1.cri/sandboxes/1b63", "io.containerd.runtime.v2.task/k8s.io/71d4"]
)
def test_a_container_in_our_store_is_found(left: str) -> None:
    (layout.image_store() / left).mkdir(parents=True)
    assert traces.leftovers() == [f"container {layout.image_store() / left}"]


def test_another_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "wait_for_end", lambda _: False)
    monkeypatch.setattr(traces, "processes", lambda: {4711: "kubelet (/other/state)"})
    with pytest.raises(Problem, match=r"process 4711, kubelet \(/other/state\)") as raised:
        preflight.alone()
    assert "make down" in raised.value.fix


def test_too_little_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "Path", lambda *_: SimpleNamespace(read_text=lambda: "MemAvailable: 2097152 kB"))
    with pytest.raises(Problem, match=r"2\.0 GiB of memory are available, .* needs 4"):
        preflight.memory()


def test_a_machine_that_forbids_namespaces_is_told_where_else(monkeypatch: pytest.MonkeyPatch) -> None:
    layout.cache_dir().mkdir(parents=True)
    refused = subprocess.CompletedProcess([], 1, stdout="", stderr="unshare: Operation not permitted\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: refused)
    with pytest.raises(Problem, match="root cannot make namespaces here: unshare: Operation not permitted") as raised:
        preflight.kernel()
    assert raised.value.fix == preflight.ELSEWHERE


def test_missing_cgroup_controllers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    layout.cache_dir().mkdir(parents=True)
    fine = subprocess.CompletedProcess([], 0, stdout="", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: fine)
    monkeypatch.setattr(traces, "missing_controllers", lambda: ["memory", "pids"])
    with pytest.raises(Problem, match="the cgroup controllers memory, pids are not available"):
        preflight.kernel()


def test_no_obstacle_leaves_anything_half_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Problem):
        lifecycle.start(Path("/nowhere"))
    assert list(tmp_path.iterdir()) == []

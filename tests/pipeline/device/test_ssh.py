"""Devices behind SSH: a real sshd on this machine, its keys checked, its sessions killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgewise.device import bench, job, ssh
from edgewise.device import link as device_link
from edgewise.device.bench import Request
from edgewise.device.bundle import Bundle
from edgewise.device.job import Job
from edgewise.device.link import DeviceError, LinkLost
from edgewise.device.ssh import Ssh
from edgewise.errors import RequestError

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/sbin")


@dataclass(frozen=True)
class Server:
    """An sshd with a key, a port and a configuration of its own."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path

    def options(self, known: str = "known") -> tuple[str, ...]:
        """The client's: no configuration but this one."""
        files = {"IdentityFile": "user", "UserKnownHostsFile": known, "GlobalKnownHostsFile": "none"}
        chosen = [part for key, name in files.items() for part in ("-o", f"{key}={self.folder / name}")]
        return ("-F", "none", "-o", "IdentitiesOnly=yes", *chosen)

    def link(self, known: str = "known", folder: str = "/tmp") -> Ssh:
        return ssh.parse(f"ssh://root@127.0.0.1:{self.port}", self.options(known), folder)

    def sessions(self) -> list[int]:
        """Processes of open connections."""
        found = []
        for place in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = place.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == self.process.pid:
                found.append(int(place.parent.name))
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if SSHD is None or shutil.which("ssh") is None or os.geteuid() != 0:
        pytest.skip("needs the rights of root and an SSH server: sudo apt-get install openssh-server")
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "other", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nStrictModes no\n"
        "UsePAM no\nPasswordAuthentication no\nPidFile none\nPermitRootLogin prohibit-password\n"
    )
    for known, key in (("known", "host"), ("changed", "other")):
        kind, value = (folder / f"{key}.pub").read_text().split()[:2]
        (folder / known).write_text(f"[127.0.0.1]:{port} {kind} {value}\n")
    (folder / "unknown").touch()
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "config"], stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert b"listening" in process.stderr.readline()
    try:
        yield Server(process, port, folder)
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


@pytest.fixture
def reached(server: Server, tmp_path: Path) -> Iterator[Ssh]:
    found = server.link(folder=str(tmp_path))
    yield found
    found.close()


def test_a_command_runs_there_and_its_status_comes_back(reached: Ssh) -> None:
    assert device_link.run(reached, "cat; exit 3", b"a\0b") == device_link.Done(out=b"a\0b", err="", status=3)
    started = time.monotonic()
    device_link.run(reached, "true")
    assert time.monotonic() - started < 2, "the second command shares the first one's connection"


@pytest.mark.parametrize(("known", "words"), [("unknown", "not known here.*accept it"), ("changed", "has changed")])
def test_a_host_key_that_is_unknown_or_changed_is_refused(server: Server, known: str, words: str) -> None:
    found = server.link(known)
    with pytest.raises(DeviceError, match=words):
        device_link.run(found, "true")
    found.close()
    kept = (server.folder / known).read_text()
    assert known == "changed" or kept == "", "no key is taken without being asked"


def test_who_is_not_let_in_is_told(server: Server, tmp_path: Path) -> None:
    options = tuple(word.replace(f"{server.folder}/user", f"{server.folder}/other") for word in server.options())
    found = ssh.parse(f"ssh://root@127.0.0.1:{server.port}", options)
    with pytest.raises(DeviceError, match="ssh-copy-id"):
        device_link.run(found, "true")
    found.close()


def test_where_nothing_listens_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found = ssh.parse(f"ssh://127.0.0.1:{port}", ("-F", "none"))
    with pytest.raises(DeviceError, match="nothing listens there"):
        device_link.run(found, "true")
    found.close()


@pytest.mark.parametrize(
    "address", ["ssh://", "ssh://-oProxyCommand=x", "ssh://a b", "ssh://host:port", "ssh://u@-x", "ssh://h/path"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(RequestError, match="wanted ssh://"):
        ssh.parse(address)


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("ssh://board", ("", "board", "")),
        ("ssh://pi@10.0.0.7:8022", ("pi", "10.0.0.7", "8022")),
        ("ssh://u@[fe80::1]:22", ("u", "fe80::1", "22")),
    ],
)
def test_an_address_is_taken_apart(address: str, found: tuple[str, str, str]) -> None:
    reached = ssh.parse(address)
    assert (reached.user, reached.address, reached.port) == found


def _cut(server: Server, moments: list[float], stop: threading.Event) -> None:
    for moment in moments:
        if stop.wait(moment):
            return
        for pid in server.sessions():
            os.kill(pid, signal.SIGKILL)


def test_a_session_killed_while_it_sends_goes_on_with_the_rest(server: Server, reached: Ssh) -> None:
    content = random.Random(1).randbytes(12_000_000)
    work = Job(link=reached, digest="ef" * 32, digest_command="sha256sum", command=("true",))
    device_link.run(reached, "true")
    stop = threading.Event()
    thread = threading.Thread(target=_cut, args=(server, [0.05, 0.15, 0.25], stop))
    thread.start()
    lost: list[str] = []
    try:
        job.persist(lambda: job.put(work, content), lost.append, (0.05,) * 10)
    finally:
        stop.set()
        thread.join()
    assert (Path(work.folder) / "bundle.pyz").read_bytes() == content
    job.clean(work)
    assert lost, "a session was cut"


def test_a_bundle_is_measured_over_sessions_that_are_killed(
    server: Server, reached: Ssh, bundled: Bundle, tmp_path: Path
) -> None:
    import sys

    request = Request(mode=("--brief", "0.2"), python=sys.executable, pauses=(0.05,) * 10)
    stop, drawn = threading.Event(), random.Random(2)
    thread = threading.Thread(target=_cut, args=(server, [drawn.uniform(0.3, 1.5) for _ in range(4)], stop))
    thread.start()
    try:
        found = bench.measure(bundled, reached, request, lambda text: None, "board", every=0.1)
    finally:
        stop.set()
        thread.join()
    assert [row.verdict for row in found.rows] == ["pass", "pass"]
    assert all(row.accuracy and row.accuracy.vs_baseline.delta == 0 for row in found.rows)
    assert not any(tmp_path.iterdir())


def test_a_cut_that_never_ends_is_a_lost_link(server: Server, tmp_path: Path) -> None:
    found = server.link(folder=str(tmp_path))
    device_link.run(found, "true")
    stop = threading.Event()
    thread = threading.Thread(target=_cut, args=(server, [0.3], stop))
    thread.start()
    with pytest.raises(LinkLost, match="the link was lost"):
        device_link.run(found, "sleep 5")
    thread.join()
    found.close()

"""Devices behind SSH: a real sshd on this machine, its keys checked, its sessions killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgewise.device import bench, bundle, job, ssh
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


def test_a_command_runs_there_and_its_status_comes_back(server: Server, reached: Ssh) -> None:
    assert device_link.run(reached, "cat; exit 3", b"a\0b") == device_link.Done(out=b"a\0b", err="", status=3)
    before = server.sessions()
    device_link.run(reached, "true")
    assert before and set(server.sessions()) <= set(before), "the second command shares the first one's connection"


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


PAUSES = (0.05, 0.1, 0.2, 0.5, 1, 2, 4, 8)
"""Seconds between tries: on a busy machine the client of a broken connection takes its time to end."""


def _cut(server: Server, moments: list[float], stop: threading.Event) -> None:
    for moment in moments:
        if stop.wait(moment):
            return
        _kill_sessions(server)


def _kill_sessions(server: Server) -> None:
    for pid in server.sessions():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_session_killed_while_it_sends_goes_on_with_the_rest(server: Server, reached: Ssh) -> None:
    content = random.Random(1).randbytes(12_000_000)
    work = Job(link=reached, digest="ef" * 32, digest_command="sha256sum", command=("true",))
    drawn, lost = random.Random(2), list[str]()
    # Between two commands a killed session is not noticed, so that more than one round may be needed.
    for _ in range(40):
        device_link.run(reached, "true")
        stop = threading.Event()
        thread = threading.Thread(target=_cut, args=(server, [drawn.uniform(0, 0.3) for _ in range(3)], stop))
        thread.start()
        try:
            job.persist(lambda: job.put(work, content), lost.append, PAUSES)
        finally:
            stop.set()
            thread.join()
        assert (Path(work.folder) / "bundle.pyz").read_bytes() == content
        job.persist(lambda: job.clean(work), lost.append, PAUSES)
        if lost:
            return
    raise AssertionError("no session was cut in 40 rounds")


def test_a_bundle_is_measured_over_sessions_that_are_killed(
    server: Server, reached: Ssh, bundled: Bundle, tmp_path: Path
) -> None:
    request = Request(mode=("--brief", "0.2"), python=sys.executable, pauses=PAUSES)
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


def test_a_cut_within_a_command_is_a_lost_link(server: Server, tmp_path: Path) -> None:
    found = server.link(folder=str(tmp_path))
    begun = tmp_path / "begun"

    def cut() -> None:
        while not begun.exists():
            time.sleep(0.01)
        _kill_sessions(server)

    thread = threading.Thread(target=cut)
    thread.start()
    with pytest.raises(LinkLost, match="the link was lost"):
        device_link.run(found, f"touch {begun}; sleep 30")
    thread.join()
    found.close()


def test_a_device_that_has_gone_away_is_a_lost_link_and_one_that_never_was_is_not(tmp_path: Path) -> None:
    client = tmp_path / "bin/ssh"
    client.parent.mkdir()
    client.write_text("#!/bin/sh\necho 'ssh: connect to host x port 22: Connection refused' >&2; exit 255\n")
    client.chmod(0o755)
    found = ssh.parse("ssh://x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(client.parent))
        with pytest.raises(DeviceError, match="nothing listens there") as never:
            found.send("true", b"", 5)
        found._reached = True
        with pytest.raises(LinkLost, match="the link was lost: nothing listens there"):
            found.send("true", b"", 5)
    assert not isinstance(never.value, LinkLost)


@dataclass
class Command:
    """The public command line on one device, begun again as often as it takes."""

    words: list[str]
    folder: Path
    """On the device."""
    said: list[str] = field(default_factory=list)
    kills: int = 0

    def start(self) -> subprocess.Popen[str]:
        self.said.clear()
        process = subprocess.Popen(self.words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        return process

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr:
            self.said.extend(process.stderr)

    def wait_for(self, process: subprocess.Popen[str], words: str) -> None:
        until = time.monotonic() + 120
        while process.poll() is None and not any(words in line for line in self.said):
            assert time.monotonic() < until, self.said
            time.sleep(0.005)

    def finish(self) -> None:
        """The same command until it is through."""
        for _ in range(5):
            if self.start().wait(120) == 0:
                return
        raise AssertionError(self.said)


MOMENTS = (("sending", 0.4), ("on processor", 0.5), ("looking", 0.5), ("timing", 1.2))
"""What the command has said, and up to how many seconds later it is killed: while it sends, asks, fetches or clears away."""


def _answers(run: Path, name: str) -> list[Any]:
    """What a device answered, without what its clock said."""
    (place,) = (run / "devices" / name).glob("*.json")
    rows = json.loads(place.read_text())["rows"]
    return [[row[key] for key in ("file", "sha256", "answers", "golden_answers", "accuracy", "error")] for row in rows]


def _kill(kind: str, server: Server, command: Command, process: subprocess.Popen[str]) -> bool:
    """Kill the link, the runner or the command itself; whether there was something to kill."""
    if kind == "host":
        process.kill()
        return process.wait() == -signal.SIGKILL
    if kind == "link":
        open_sessions = bool(server.sessions())
        _kill_sessions(server)
        return open_sessions and process.poll() is None
    try:
        os.killpg(int((command.folder / "edgewise.lock/pid").read_text()), signal.SIGKILL)
    except (OSError, ValueError):
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "wanted"), [("link", 6), ("runner", 6), ("host", 6)])
def test_after_kills_at_random_moments_the_same_command_comes_to_an_equal_result(
    server: Server, run_folder: Path, tmp_path: Path, kind: str, wanted: int
) -> None:
    run, there = Path(shutil.copytree(run_folder, tmp_path / "run")), tmp_path / "there"
    shutil.rmtree(run / "devices", ignore_errors=True)
    file = bundle.write(run, images=540).path
    words = [sys.executable, "-m", "edgewise", "bench", str(file), "--device", f"ssh://root@127.0.0.1:{server.port}"]
    words += ["--ssh-options", shlex.join(server.options()), "--device-python", sys.executable, "--brief", "0.4"]
    whole = Command([*words, "--name", "whole", "--device-folder", str(tmp_path / "whole")], tmp_path / "whole")
    whole.finish()
    command = Command([*words, "--name", "killed", "--device-folder", str(there)], there)
    drawn = random.Random(f"{kind} {wanted}")
    for _ in range(20 * wanted):
        process, (phase, longest) = command.start(), drawn.choice(MOMENTS)
        command.wait_for(process, phase)
        moment = drawn.uniform(0, longest)
        time.sleep(moment)
        killed = _kill(kind, server, command, process)
        command.kills += killed
        print(f"{kind}, {moment:.2f} s after {phase!r}: {'killed' if killed else 'nothing there'}")
        process.wait(120)
        if command.kills == wanted:
            break
    assert command.kills == wanted
    command.finish()
    assert _answers(run, "killed") == _answers(run, "whole")
    assert not any(there.iterdir())

"""A bundle carried over a link: what a cut, a kill, a full disk and a second measurement do."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edgewise.device import bench, job, link
from edgewise.device.bench import Request
from edgewise.device.bundle import Bundle
from edgewise.device.job import Job
from edgewise.device.link import DeviceError, LinkLost, Raw
from edgewise.device.local import Local
from edgewise.device.probe import Probe, check_device, check_python, probe_device
from edgewise.device.result import ResultError
from edgewise.targets import MissingBackend

LONG = 90
"""Seconds that nothing takes, however busy the machine is."""


def silent(text: str) -> None:
    """Says nothing."""


@dataclass
class Faulty:
    """This machine behind a line with a fault."""

    folder: str
    cut_after: int = 0
    """Bytes of standard input after which the line breaks, each time."""
    shorten: bool = False
    """Whether every file it stores lacks its last byte."""
    name: str = "faulty"
    host: str = "faulty"
    given: list[int] = field(default_factory=list)

    def send(self, line: str, given: bytes, seconds: float) -> Raw:
        if given and self.shorten:
            given = given[:-1]
        if self.cut_after and len(given) > self.cut_after:
            Local().send(line, given[: self.cut_after], seconds)
            self.given.append(self.cut_after)
            return Raw(out=b"", err="", status=0)
        self.given.append(len(given))
        return Local().send(line, given, seconds)

    def close(self) -> None: ...


def made(place: Path | link.Link, *command: str, digest: str = "ab" * 32) -> Job:
    way = Local(folder=str(place)) if isinstance(place, Path) else place
    return Job(link=way, digest=digest, digest_command="sha256sum", command=command or ("true",))


@contextlib.contextmanager
def started(work: Job) -> Iterator[Job]:
    """A job that is ended afterwards whatever happens."""
    job.put(work, b"x")
    assert job.start(work) == "started"
    try:
        yield work
    finally:
        job.end(work)


CONTENT = bytes(range(256)) * 40


def test_what_arrives_is_what_was_sent_and_is_not_sent_again(tmp_path: Path) -> None:
    work = made(tmp_path)
    assert job.put(work, CONTENT) == len(CONTENT)
    assert (Path(work.folder) / "bundle.pyz").read_bytes() == CONTENT
    assert job.put(work, CONTENT) == 0
    assert Path(work.folder).stat().st_mode & 0o077 == 0, "nobody else on the device may change what is run there"


@pytest.mark.parametrize("after", [1000, 4097, 10_239])
def test_after_a_cut_the_rest_is_sent_and_no_more(tmp_path: Path, after: int) -> None:
    work = made(Faulty(str(tmp_path), cut_after=after))
    tries = 0
    while True:
        tries += 1
        with contextlib.suppress(LinkLost):
            job.put(work, CONTENT)
            break
        assert tries < 20
    assert (Path(work.folder) / "bundle.pyz").read_bytes() == CONTENT
    assert isinstance(work.link, Faulty) and sum(work.link.given) == len(CONTENT)
    assert tries == -(-len(CONTENT) // after)


def test_storage_that_loses_a_byte_is_told(tmp_path: Path) -> None:
    work = made(Faulty(str(tmp_path), shorten=True))
    with pytest.raises(DeviceError, match="differs from what was sent, twice"):
        job.put(work, CONTENT)
    assert not (Path(work.folder) / "bundle.pyz").exists()


def test_what_was_left_of_something_else_is_replaced(tmp_path: Path) -> None:
    work = made(tmp_path)
    Path(work.folder).mkdir(mode=0o700)
    (Path(work.folder) / "bundle.pyz.part").write_bytes(b"garbage")
    job.put(work, CONTENT)
    assert (Path(work.folder) / "bundle.pyz").read_bytes() == CONTENT


def test_a_folder_that_is_a_link_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    work = made(tmp_path)
    Path(work.folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeviceError, match="belongs to somebody else"):
        job.put(work, CONTENT)
    assert not any((tmp_path / "elsewhere").iterdir())


def test_a_full_disk_is_told_and_freed(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs the rights of root")
    try:
        work = made(tmp_path)
        with pytest.raises(DeviceError, match=r"no room left.*the bundle has 200,000 bytes"):
            job.put(work, bytes(200_000))
        assert not any(tmp_path.iterdir())
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_status_that_did_not_come_back_is_a_lost_link() -> None:
    for out in (b"", b"all is well\n", b"\n0123456789abcdef 0\n"):
        way = Faulty("/tmp")
        way.send = lambda *_, out=out: Raw(out=out, err="", status=0)  # type: ignore[method-assign]
        with pytest.raises(LinkLost, match="the link was lost"):
            link.run(way, "true")


def test_status_and_bytes_come_back_as_they_were() -> None:
    done = link.run(Local(), "printf 'a\\000\\377\\n\\n'; exit 7")
    assert (done.status, done.out) == (7, b"a\0\xff\n\n")
    with pytest.raises(LinkLost, match="no answer within 0 s"):
        link.run(Local(), "sleep 5", seconds=0.1)


def test_a_measurement_runs_apart_and_its_end_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    line = "echo edgewise: half >&2; while [ ! -f ../go ]; do sleep 0.05; done; echo done > result.json"
    with started(made(tmp_path, "sh", "-c", line)) as work:
        assert job.start(work) == "running", "asked again, the same measurement is waited for"
        (tmp_path / "go").touch()
        job.wait(work, LONG, said.append, every=0.1)
        assert said == ["local: half"]
        assert job.fetch(work) == b"done\n"
        assert job.start(work) == "finished"
    job.clean(work)
    (tmp_path / "go").unlink()
    assert not any(tmp_path.iterdir())


def test_another_measurement_there_is_told(tmp_path: Path) -> None:
    with started(made(tmp_path, "sleep", "30")):
        other = made(tmp_path, "true", digest="cd" * 32)
        job.put(other, b"y")
        with pytest.raises(DeviceError, match="another measurement runs there"):
            job.start(other)


def test_a_lock_of_a_process_that_is_gone_is_taken(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    lock = tmp_path / "edgewise.lock"
    for pid in (gone.pid, os.getpid()):  # a process that took the number is none of ours, either
        lock.mkdir()
        (lock / "pid").write_text(str(pid))
        (lock / "job").write_text("another")
        with started(made(tmp_path, "sleep", "0", digest=f"{pid:064x}")) as work:
            job.wait(work, LONG, silent, every=0.1)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _process(tmp_path: Path) -> int:
    return int((tmp_path / "edgewise.lock/pid").read_text())


def test_a_measurement_that_was_killed_is_told_and_starts_again(tmp_path: Path) -> None:
    with started(made(tmp_path, "sleep", "30")) as work:
        os.killpg(_process(tmp_path), signal.SIGKILL)
        with pytest.raises(DeviceError, match=r"was killed .*goes on from the files that are finished"):
            job.wait(work, LONG, silent, every=0.1)
        assert job.start(work) == "started"


def test_a_program_that_was_killed_is_told(tmp_path: Path) -> None:
    work = made(tmp_path, "sh", "-c", "kill -9 $$")
    with started(work), pytest.raises(DeviceError, match="killed by signal 9"):
        job.wait(work, LONG, silent, every=0.1)


def test_what_takes_too_long_is_ended_by_its_own_process(tmp_path: Path) -> None:
    with started(made(tmp_path, "sleep", "61.25")) as work:
        pid = _process(tmp_path)
        with pytest.raises(DeviceError, match="not done after 0 s, and ended"):
            job.wait(work, 0.2, silent, every=0.1)
        until = time.monotonic() + LONG
        while _runs(pid):
            assert time.monotonic() < until
            time.sleep(0.02)
        assert not (tmp_path / "edgewise.lock").exists()


def test_a_missing_runtime_is_the_devices_own_sentence(tmp_path: Path) -> None:
    line = "echo 'edgewise: error: wanted onnxruntime: pip install it' >&2; exit 3"
    work = made(tmp_path, "sh", "-c", line)
    with started(work), pytest.raises(MissingBackend, match="local: wanted onnxruntime: pip install it"):
        job.wait(work, LONG, silent, every=0.1)


def test_without_a_result_what_it_said_is_told(tmp_path: Path) -> None:
    with started(made(tmp_path, "sh", "-c", "echo strange >&2")) as work:
        job.wait(work, LONG, silent, every=0.1)
        with pytest.raises(DeviceError, match=r"left no result.json: strange"):
            job.fetch(work)


def test_a_lost_link_is_tried_again_so_many_times() -> None:
    left = [LinkLost("gone"), LinkLost("gone")]

    def work() -> None:
        if left:
            raise left.pop()

    job.persist(work, silent, pauses=(0, 0))
    left += [LinkLost("gone")] * 3
    with pytest.raises(LinkLost):
        job.persist(work, silent, pauses=(0, 0))


def test_a_probe_tells_python_packages_and_room(tmp_path: Path) -> None:
    import sys

    found = probe_device(Local(folder=str(tmp_path)), sys.executable)
    assert found.python == sys.version_info[:3] and found.packages["numpy"] and found.room and found.room > 1_000_000
    assert (found.machine, found.digest) == (os.uname().machine, "sha256sum")
    assert probe_device(Local(folder=str(tmp_path)), "no-such-python").python == ()


def _probe(**fields: object) -> Probe:
    whole = {"system": "Linux", "machine": "aarch64", "room": 10_000_000, "digest": "sha256sum", "python": (3, 11, 2),
             "packages": {"numpy": "2.0", "onnxruntime": "1.32.0"}}  # fmt: skip
    return Probe(**{**whole, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "kind", "words"),
    [
        (_probe(digest=""), DeviceError, "sha256sum or shasum"),
        (_probe(python=()), MissingBackend, "apt-get install python3"),
        (_probe(python=(3, 8, 1)), MissingBackend, r"Python 3.9 or newer .*found 3.8.1"),
        (_probe(packages={"numpy": None, "onnxruntime": "1"}), MissingBackend, "pip install numpy"),
        (_probe(packages={"numpy": "2"}), MissingBackend, "pip install 'onnxruntime==1.32.0'"),
        (_probe(room=1000), DeviceError, "wanted 2,000 free bytes in .*found 1,000"),
    ],
)
def test_what_a_device_lacks_is_told_before_anything_is_sent(found: Probe, kind: type[Exception], words: str) -> None:
    def check(probe: Probe) -> None:
        check_python(probe, Local(), "python3", {"onnxruntime": "1.32.0"})
        check_device(probe, Local(), 1000)

    with pytest.raises(kind, match=words):
        check(found)
    check(_probe(room=None))


BRIEF = Request(mode=("--brief", "0.2"))


def test_a_bundle_is_measured_here_and_nothing_is_left(bundled: Bundle, tmp_path: Path) -> None:
    found = bench.measure(bundled, Local(folder=str(tmp_path)), BRIEF, silent, "here", every=0.1)
    assert [row.verdict for row in found.rows] == ["pass", "pass"] and not bench.has_failures(found.rows)
    assert found.path == bundled.path.parent / f"devices/here/{bundled.sha256[:16]}-brief.json"
    assert json.loads(found.path.read_text())["bundle_sha256"] == bundled.sha256
    assert not any(tmp_path.iterdir())


def test_a_stale_bundles_result_is_refused_and_not_kept(bundled: Bundle, tmp_path: Path, sent: bytes) -> None:
    other = Bundle(path=tmp_path / "b.pyz", sha256="0" * 64, bytes=1, manifest=bundled.manifest)
    with pytest.raises(ResultError, match="measure this bundle again"):
        bench.take_in(other, sent, "board", "quick")
    assert not any(tmp_path.iterdir())


def _kill_at(moment: float, tmp_path: Path, stop: threading.Event) -> None:
    """Kill the measurement and everything it started, so many seconds after it began."""
    pid = tmp_path / "edgewise.lock/pid"
    while not stop.is_set() and not (pid.exists() and pid.read_text().strip()):
        time.sleep(0.01)
    if not stop.wait(moment):
        with contextlib.suppress(OSError, ValueError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)


def _measured_despite(kill: Callable[[int], float], bundled: Bundle, tmp_path: Path) -> tuple[bench.Measurement, int]:
    """The same command again until it is through; and how often it was killed."""
    for tries in range(6):
        stop = threading.Event()
        thread = threading.Thread(target=_kill_at, args=(kill(tries), tmp_path, stop))
        thread.start()
        try:
            return bench.measure(bundled, Local(folder=str(tmp_path)), BRIEF, silent, "killed", every=0.05), tries
        except DeviceError as error:
            assert "goes on" in str(error)
        finally:
            stop.set()
            thread.join()
    raise AssertionError("six kills, and never through")


def test_killed_at_random_moments_the_same_command_comes_to_an_equal_result(bundled: Bundle, tmp_path: Path) -> None:
    drawn = random.Random(0)
    # The first comes while the runner starts, on however fast a machine; the others when they come.
    moments = [0.05, drawn.uniform(0.05, 0.5), drawn.uniform(0.05, 1.0)]
    found, kills = _measured_despite(lambda tries: moments[tries] if tries < 3 else 1e6, bundled, tmp_path)
    assert kills >= 1
    whole = bench.measure(bundled, Local(folder=str(tmp_path / "whole")), BRIEF, silent, "whole", every=0.05)
    assert [row.accuracy for row in found.rows] == [row.accuracy for row in whole.rows]
    assert [row.golden for row in found.rows] == [row.golden for row in whole.rows]
    assert [row.verdict for row in found.rows] == ["pass", "pass"]


def test_finished_files_are_not_measured_again(bundled: Bundle, tmp_path: Path) -> None:
    work = [str(bundled.path), "--brief", "0.1", "--progress", "p.jsonl"]
    import sys

    subprocess.run([sys.executable, *work], cwd=tmp_path, check=True, capture_output=True)
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    entry = json.loads(lines[1])
    assert entry["step"] == "look wide.onnx"
    entry["found"]["first_call_ms"] = 12345.0
    # Half a line at the end, as a kill leaves it.
    (tmp_path / "p.jsonl").write_text("\n".join([lines[0], json.dumps(entry), lines[2][:30]]))
    subprocess.run([sys.executable, *work], cwd=tmp_path, check=True, capture_output=True)
    assert json.loads((tmp_path / "result.json").read_text())["rows"][0]["first_call_ms"] == 12345.0
    subprocess.run([sys.executable, *work, "--threads", "2"], cwd=tmp_path, check=True, capture_output=True)
    assert json.loads((tmp_path / "result.json").read_text())["rows"][0]["first_call_ms"] != 12345.0

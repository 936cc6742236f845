"""Android devices: the real adb client and server against a stand-in device with faults."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgewise.device import adb, bench, job, link
from edgewise.device.adb import Adb
from edgewise.device.bench import Request
from edgewise.device.bundle import Bundle
from edgewise.device.job import Job
from edgewise.device.link import DeviceError, LinkLost
from edgewise.errors import RequestError

_spec = importlib.util.spec_from_file_location("edgewise_stand_in", Path(__file__).with_name("android.py"))
assert _spec is not None and _spec.loader is not None
android: Any = importlib.util.module_from_spec(_spec)
sys.modules["edgewise_stand_in"] = android
_spec.loader.exec_module(android)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An adb server of its own, so that nobody's is disturbed."""
    if shutil.which("adb") is None:
        pytest.skip("needs the adb client: sudo apt-get install adb")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    before = dict(os.environ)
    os.environ.update(ANDROID_ADB_SERVER_PORT=str(port), HOME=str(tmp_path_factory.mktemp("home")))
    subprocess.run(["adb", "start-server"], check=True, capture_output=True)
    yield
    subprocess.run(["adb", "kill-server"], check=True, capture_output=True)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def device(server: None) -> Iterator[Any]:
    found = android.Device()
    yield found
    subprocess.run(["adb", "disconnect", found.serial], check=False, capture_output=True)
    found.close()


@pytest.fixture
def reached(device: Any, tmp_path: Path) -> Adb:
    return adb.parse(f"adb://{device.serial}", str(tmp_path))


def made(way: Adb, *command: str) -> Job:
    return Job(link=way, digest="ab" * 32, digest_command="sha256sum", command=command or ("true",))


def test_a_command_runs_there_and_its_status_comes_back(reached: Adb) -> None:
    assert link.run(reached, "cat; echo bad >&2; exit 3", b"a\0b\r\n") == link.Done(
        out=b"a\0b\r\n", err="bad\n", status=3
    )


def test_a_device_that_lies_about_its_status_is_not_believed(reached: Adb, device: Any) -> None:
    device.faults.lie = True
    assert link.run(reached, "exit 5").status == 5


PAUSES = (0.05, 0.1, 0.2, 0.5, 1, 2, 4, 8)
CONTENT = random.Random(3).randbytes(150_000)


@pytest.mark.parametrize("after", [5_000, 60_000])
def test_a_line_that_is_cut_again_and_again_goes_on_with_the_rest(reached: Adb, device: Any, after: int) -> None:
    link.run(reached, "true")
    device.faults.cut_after = [after, after, 700]
    lost: list[str] = []
    work = made(reached)
    job.persist(lambda: job.put(work, CONTENT), lost.append, PAUSES)
    assert (Path(work.folder) / "bundle.pyz").read_bytes() == CONTENT
    assert device.cuts >= 2 and lost


def test_a_line_that_is_cut_while_a_command_runs_is_a_lost_link_though_adb_says_0(reached: Adb, device: Any) -> None:
    link.run(reached, "true")
    # Later than what opens the command: one that was not begun is given again.
    device.faults.cut_after = [50_000]
    with pytest.raises(LinkLost, match="the link was lost"):
        link.run(reached, "cat > /dev/null; sleep 1", bytes(200_000))


def test_storage_that_loses_a_byte_is_told(reached: Adb, device: Any) -> None:
    device.faults.shorten = True
    with pytest.raises(DeviceError, match="differs from what was sent, twice"):
        job.put(made(reached), CONTENT)


def test_a_full_device_is_told(reached: Adb, tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs the rights of root")
    try:
        with pytest.raises(DeviceError, match="no room left"):
            job.put(made(reached), CONTENT)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_device_that_has_not_authorized_is_told(reached: Adb, device: Any) -> None:
    device.faults.unauthorized = True
    with pytest.raises(DeviceError, match="accept the question it shows"):
        link.run(reached, "true")


def test_a_device_that_is_not_there_is_told_with_those_that_are(server: None) -> None:
    with pytest.raises(DeviceError, match="no such device; none is connected"):
        link.run(adb.parse("adb://emulator-5554"), "true")


@pytest.mark.parametrize("address", ["adb://", "adb://-s", "adb://a b", "adb://a;rm"])
def test_what_is_no_serial_is_refused(address: str) -> None:
    with pytest.raises(RequestError, match="wanted adb://SERIAL"):
        adb.parse(address)


def test_a_bundle_is_measured_over_a_line_that_is_cut(
    reached: Adb, device: Any, bundled: Bundle, tmp_path: Path
) -> None:
    link.run(reached, "true")
    device.faults.cut_after = [90_000, 500, 3_000]
    request = Request(mode=("--brief", "0.2"), python=sys.executable, pauses=PAUSES)
    found = bench.measure(bundled, reached, request, lambda text: None, "phone", every=0.1)
    assert [row.verdict for row in found.rows] == ["pass", "pass"] and device.cuts >= 2
    assert not any(tmp_path.iterdir())

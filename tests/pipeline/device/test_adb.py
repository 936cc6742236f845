"""Android devices: the real adb client and server against a stand-in device with faults."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgewise.device import adb, bench, bundle, job, link
from edgewise.device.adb import Adb
from edgewise.device.bench import Request
from edgewise.device.bundle import Bundle
from edgewise.device.job import Job
from edgewise.device.link import DeviceError, LinkLost
from edgewise.errors import RequestError


def made(way: Adb, *command: str) -> Job:
    return Job(link=way, digest="ab" * 32, digest_command="sha256sum", command=command or ("true",))


def test_a_command_runs_there_and_its_status_comes_back(phone_link: Adb) -> None:
    assert link.run(phone_link, "cat; echo bad >&2; exit 3", b"a\0b\r\n") == link.Done(
        out=b"a\0b\r\n", err="bad\n", status=3
    )


def test_a_device_that_lies_about_its_status_is_not_believed(phone_link: Adb, phone: Any) -> None:
    phone.faults.lie = True
    assert link.run(phone_link, "exit 5").status == 5


PAUSES = (0.05, 0.1, 0.2, 0.5, 1, 2, 4, 8)
CONTENT = random.Random(3).randbytes(150_000)


@pytest.mark.parametrize("after", [5_000, 60_000])
def test_a_line_that_is_cut_again_and_again_goes_on_with_the_rest(phone_link: Adb, phone: Any, after: int) -> None:
    link.run(phone_link, "true")
    phone.faults.cut_after = [after, after, 700]
    lost: list[str] = []
    work = made(phone_link)
    job.persist(lambda: job.put(work, CONTENT), lost.append, PAUSES)
    assert (Path(work.folder) / "bundle.pyz").read_bytes() == CONTENT
    assert phone.cuts >= 2 and lost


def test_a_line_that_is_cut_while_a_command_runs_is_a_lost_link_though_adb_says_0(phone_link: Adb, phone: Any) -> None:
    link.run(phone_link, "true")
    # Later than what opens the command: one that was not begun is given again.
    phone.faults.cut_after = [50_000]
    with pytest.raises(LinkLost, match="the link was lost"):
        link.run(phone_link, "cat > /dev/null; sleep 1", bytes(200_000))


def test_storage_that_loses_a_byte_is_told(phone_link: Adb, phone: Any) -> None:
    phone.faults.shorten = True
    with pytest.raises(DeviceError, match="differs from what was sent, twice"):
        job.put(made(phone_link), CONTENT)


def test_a_full_device_is_told(phone_link: Adb, tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs the rights of root")
    try:
        with pytest.raises(DeviceError, match="no room left"):
            job.put(made(phone_link), CONTENT)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_device_that_has_not_authorized_is_told(phone_link: Adb, phone: Any) -> None:
    phone.faults.unauthorized = True
    with pytest.raises(DeviceError, match="accept the question it shows"):
        link.run(phone_link, "true")


def test_a_device_that_is_not_there_is_told_with_those_that_are(adb_server: None) -> None:
    with pytest.raises(DeviceError, match="no such device; none is connected"):
        link.run(adb.parse("adb://emulator-5554"), "true")


@pytest.mark.parametrize("address", ["adb://", "adb://-s", "adb://a b", "adb://a;rm"])
def test_what_is_no_serial_is_refused(address: str) -> None:
    with pytest.raises(RequestError, match="wanted adb://SERIAL"):
        adb.parse(address)


def test_a_bundle_is_measured_over_a_line_that_is_cut(
    phone_link: Adb, phone: Any, bundled: Bundle, tmp_path: Path
) -> None:
    link.run(phone_link, "true")
    phone.faults.cut_after = [90_000, 500, 3_000]
    request = Request(mode=("--brief", "0.2"), python=sys.executable, pauses=PAUSES)
    found = bench.measure(bundled, phone_link, request, lambda text: None, "phone", every=0.1)
    assert [row.verdict for row in found.rows] == ["pass", "pass"] and phone.cuts >= 2
    assert not any(tmp_path.iterdir())


def test_a_phone_without_python_is_measured_by_a_program(
    phone_link: Adb, phone: Any, altered: Callable[[Callable[[Any], None]], Path], tmp_path: Path
) -> None:
    # The runner in Python, started by a script: what is sent, and how it is started, is the same.
    script = tmp_path / "runner"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    file = bundle.read(altered(lambda document: None))
    link.run(phone_link, "true")
    phone.faults.cut_after = [90_000, 500, 3_000]
    request = Request(
        mode=("--brief", "0.2"), python="no-such-python", native=script, only=("wide.onnx",), pauses=PAUSES
    )
    there = adb.parse(phone_link.name, str(tmp_path / "there"))
    found = bench.measure(file, there, request, lambda text: None, "phone", every=0.1)
    assert [row.verdict for row in found.rows] == ["pass"] and phone.cuts >= 2
    assert not any((tmp_path / "there").iterdir())


@pytest.mark.slow
def test_a_compiled_program_measures_on_a_phone_without_python(
    phone_link: Adb, phone: Any, pte_bundled: Bundle, native_program: Path, tmp_path: Path
) -> None:
    link.run(phone_link, "true")
    phone.faults.cut_after = [90_000, 500, 3_000]
    request = Request(mode=("--brief", "0.2"), python="no-such-python", native=native_program, pauses=PAUSES)
    found = bench.measure(pte_bundled, phone_link, request, lambda text: None, "phone", every=0.1)
    rows = {row.file: row for row in found.rows}
    assert rows["narrow.pte"].verdict == "pass" and rows["narrow.pte"].time and phone.cuts >= 2
    assert rows["narrow.onnx"].verdict == "not-checked"
    assert not any(tmp_path.iterdir())

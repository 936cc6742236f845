"""Many devices: read from TOML, one failing without stopping the others, never two at once on one machine."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edgewise.device import bench, fleet, intake
from edgewise.device.bench import Measurement, Request
from edgewise.device.bundle import Bundle
from edgewise.device.fleet import Entry
from edgewise.device.link import DeviceError
from edgewise.errors import RequestError
from edgewise.report.document import Report
from edgewise.report.page import write_html
from edgewise.report.terminal import terminal_table
from edgewise.targets import MissingBackend


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "devices.toml"
    path.write_text(text)
    return path


def test_a_file_of_devices_is_read(tmp_path: Path) -> None:
    found = fleet.read(
        file(
            tmp_path,
            '[devices.pi]\naddress = "ssh://pi@board"\nthreads = 4\n[devices.here]\naddress = "local"\nonly = ["a"]',
        )
    )
    assert list(found) == ["pi", "here"] and found["pi"].threads == 4
    usual = Request(threads=1, pin="big", mode=("--normal",))
    assert found["pi"].request(usual) == Request(threads=4, pin="big", mode=("--normal",))
    assert found["here"].request(usual) == Request(threads=1, pin="big", mode=("--normal",), only=("a",))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "wanted tables"),
        ("devices = 3", "wanted tables"),
        ('[devices.a]\nadress = "local"', "unknown key 'adress'; known keys: address"),
        ("[devices.a]\nthreads = 1", "missing key 'address'"),
        ('[devices.a]\naddress = "local"\nthreads = "4"', r"devices.a.threads: wanted a whole number"),
        ('[device.a]\naddress = "local"', "wanted tables"),
        ('[devices.a\naddress = "local"', "is no TOML"),
        ('[devices."a b"]\naddress = "local"\n[devices."a/b"]\naddress = "local"', "same name for a folder"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        fleet.read(file(tmp_path, text))


def test_an_address_that_is_none_is_refused_before_anything_is_sent(bundled: Bundle) -> None:
    entries = {"here": Entry(address="local"), "there": Entry(address="telnet://board")}
    with pytest.raises(RequestError, match="telnet"):
        fleet.measure(bundled, entries, Request(), 2, print)


def test_one_that_fails_stops_no_other_and_one_machine_is_used_once_at_a_time(
    bundled: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy: dict[str, int] = {}
    most: dict[str, int] = {}
    guard, both = threading.Lock(), threading.Event()

    def measured(bundle: Bundle, link: Any, request: Request, say: Any, name: str) -> Measurement:
        host = "one" if name in ("a", "b") else link.host
        with guard:
            busy[host] = busy.get(host, 0) + 1
            busy["all"] = busy.get("all", 0) + 1
            for key in (host, "all"):
                most[key] = max(most.get(key, 0), busy[key])
            if busy["all"] == 2:
                both.set()
        # Until two are measured at once; a moment longer, in which a third would show.
        both.wait(60)
        time.sleep(0.1)
        with guard:
            busy[host] -= 1
            busy["all"] -= 1
        if name == "b":
            raise DeviceError("b is away")
        if name == "c":
            raise MissingBackend("c lacks it")
        return Measurement(device=name, path=Path(name), rows=())

    monkeypatch.setattr(bench, "measure", measured)
    addresses = {"a": "ssh://x", "b": "ssh://y", "c": "ssh://z", "d": "ssh://z"}
    entries = {name: Entry(address=at, host="one" if name in "ab" else None) for name, at in addresses.items()}
    found = fleet.measure(bundled, entries, Request(), 4, lambda text: None)
    assert [(o.device, o.measurement is not None, o.error, o.missing) for o in found] == [
        ("a", True, "", False), ("b", False, "b is away", False), ("c", False, "c lacks it", True), ("d", True, "", False),
    ]  # fmt: skip
    assert most["one"] == 1 and most["ssh z"] == 1 and most["all"] == 2


def test_results_join_the_report_and_changed_ones_are_refused(
    bundled: Bundle, run_folder: Path, tmp_path: Path, sent: bytes
) -> None:
    import shutil

    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    shutil.rmtree(run / "devices", ignore_errors=True)
    for name in ("board", "<script>alert(1)<!script>", "liar"):
        bench.take_in(
            Bundle(path=run / "bundle.pyz", sha256=bundled.sha256, bytes=1, manifest=bundled.manifest),
            sent,
            name,
            "quick",
        )
    document = json.loads(sent)
    document["rows"][0]["accuracy"]["top1"] = 1.0
    (run / "devices/liar" / f"{bundled.sha256[:16]}-quick.json").write_text(json.dumps(document))
    found = intake.take_in(run)
    assert {row.device for row in found.rows} == {"board", "script-alert-1-script"} and len(found.rows) == 4
    assert len(found.refused) == 1 and "liar" in found.refused[0] and "says top-1 1" in found.refused[0]
    report = Report.read(run)
    report.devices = list(found.rows)
    report.write(run)
    again = Report.read(run)
    assert again.devices == report.devices
    page = write_html(again, run).read_text()
    assert "On devices" in page and "narrow.onnx" in page and "<script>alert" not in page
    from rich.console import Console

    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(terminal_table(again))
    said = console.export_text()
    assert "board" in said and "narrow.onnx" in said and "never rank" in said


def test_a_result_of_a_bundle_of_another_run_is_refused(tmp_path: Path, sent: bytes) -> None:
    (tmp_path / "devices/board").mkdir(parents=True)
    (tmp_path / "devices/board/r.json").write_bytes(sent)
    found = intake.take_in(tmp_path)
    assert not found.rows and "was not written from" in found.refused[0]

"""ExecuTorch's runtime as a library: compiled against the installed wheel, called as a bundle's runner calls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgewise.device import bench, result
from edgewise.device import program as device_program
from edgewise.device.bench import Request
from edgewise.device.bundle import Bundle
from edgewise.device.link import DeviceError
from edgewise.device.local import Local
from edgewise.device.runner import native
from edgewise.device.runner.runtimes import MissingRuntime, need
from edgewise.errors import RequestError
from edgewise.studies.arm64 import native as arm64

_CALL = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from runner import native
from pathlib import Path
run = native.load(native.folder(), Path(sys.argv[2]), 1)
for image in np.load(sys.argv[3]):
    print(*run(image[None])[0].tolist())
assert "torch" not in sys.modules and "executorch" not in sys.modules
"""


def call(libraries: Path, file: Path, images: Path) -> subprocess.CompletedProcess[str]:
    runner = Path(native.__file__).parents[1]
    command = [sys.executable, "-c", _CALL, str(runner), str(file), str(images)]
    env = {**os.environ, native.VARIABLE: str(libraries)}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("content", [b"", b"no program", bytes(5000)])
def test_what_is_no_program_is_refused_and_nothing_crashes(libraries: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.pte").write_bytes(content)
    done = call(libraries, tmp_path / "net.pte", tmp_path / "none.npy")
    assert done.returncode == 1 and "ValueError: the file is refused: ExecuTorch's error 0x" in done.stderr


@pytest.mark.slow
def test_a_files_answers_are_those_of_the_bindings(libraries: Path, tmp_path: Path) -> None:
    import numpy as np
    import torch

    from edgewise import targets

    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 10))
    images = torch.randn(5, 1, 8, 8)
    target = targets.get("xnnpack")
    written = target.export(torch.export.export(net.eval(), (images[:1],)), tmp_path / "net.pte")
    np.save(tmp_path / "images.npy", images.numpy())
    done = call(libraries, written.path, tmp_path / "images.npy")
    assert done.returncode == 0, done.stderr
    found = np.array([line.split() for line in done.stdout.splitlines()], np.float32)
    assert target.load is not None
    wanted = np.concatenate([target.load(written.path, 1)(image[None]).numpy() for image in images])
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_the_folder_that_the_device_names_is_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.VARIABLE, str(tmp_path))
    with pytest.raises(MissingRuntime, match="found none on this device"):
        need("xnnpack", {"executorch": "1.4.1"}, False)
    (tmp_path / "version").write_text("1.3.0\n")
    with pytest.raises(MissingRuntime, match=r"wanted executorch 1.4.1 or newer.*found 1.3.0"):
        need("xnnpack", {"executorch": "1.4.1"}, False)
    (tmp_path / "version").write_text("1.4.1\n")
    assert need("xnnpack", {"executorch": "1.4.1"}, False)[1] == "1.4.1"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("executorch/extension/pybindings/_portable_lib.cpython-311-aarch64-linux-gnu.so", True),
        ("torch/lib/libtorch_cpu.so", True),
        ("torch/lib/libgomp.so.1", True),
        ("torch/lib/libnvpl_blas_core.so.0", True),
        ("torch/lib/libtorch_cuda.so", False),
        ("torch/lib/libc10_cuda.so", False),
        ("torch/lib/libtorch_python.so", False),
        ("torch/lib/sub/libother.so", False),
        ("torch/__init__.py", False),
    ],
)
def test_of_the_wheels_only_what_a_processor_needs_is_taken(name: str, wanted: bool) -> None:
    assert arm64._is_wanted(name) is wanted


Alter = Callable[[Callable[[dict[str, Any]], None]], Path]


def measured(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [program, *map(str, arguments), "--brief", "0.2"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _newer(document: dict[str, Any]) -> None:
    document["wanted"] = {"executorch": "1.10.0"}


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((), 3, "files for onnx have no runtime in this program"),
        (("--only", "none.pte"), 2, "--only none.pte: wanted one of wide.onnx, narrow.onnx"),
        (("--pin", "4095"), 2, "--pin 4095: wanted some of this device's processors"),
        (("--threads", "0"), 2, "--threads: wanted at least 1, found 0"),
        (("--sustained", "x"), 2, "--sustained: wanted more than 0, found x"),
        (("--normaly",), 2, "unknown argument --normaly"),
        (("--out",), 2, "--out: wanted a value behind it"),
    ],
)
def test_the_program_refuses_as_the_runner_does(
    native_program: Path, bundled: Bundle, tmp_path: Path, arguments: tuple[str, ...], status: int, words: str
) -> None:
    done = subprocess.run(
        [native_program, bundled.path, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == status and f"edgewise: error: {words}" in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("place", [0.01, 0.9])
def test_the_program_refuses_a_flipped_byte(
    native_program: Path, bundled: Bundle, tmp_path: Path, place: float
) -> None:
    content = bytearray(bundled.path.read_bytes())
    content[int(len(content) * place)] ^= 1
    (tmp_path / "b.pyz").write_bytes(content)
    done = measured(native_program, tmp_path / "b.pyz", "--out", tmp_path / "r.json")
    assert done.returncode == 2 and "is not a whole bundle" in done.stderr and not (tmp_path / "r.json").exists()


@pytest.mark.slow
def test_the_program_refuses_half_a_bundle(native_program: Path, bundled: Bundle, tmp_path: Path) -> None:
    content = bundled.path.read_bytes()
    for size in (0, 1, 21, len(content) // 2, len(content) - 1):
        (tmp_path / "b.pyz").write_bytes(content[:size])
        assert measured(native_program, tmp_path / "b.pyz").returncode == 2
    assert "cannot read" in measured(native_program, tmp_path / "none.pyz").stderr


def test_a_file_that_the_runtime_refuses_costs_its_row(native_program: Path, altered: Alter, tmp_path: Path) -> None:
    file = altered(lambda document: None)
    done = measured(native_program, file, "--out", tmp_path / "r.json")
    assert done.returncode == 1
    found = result.read(tmp_path / "r.json")
    assert [row.missing for row in found.rows] == [True, False]
    assert "its runtime refused it: the file is refused: ExecuTorch's error 0x" in str(found.rows[1].error)


def test_the_program_tells_a_runtime_that_is_too_old(native_program: Path, altered: Alter, tmp_path: Path) -> None:
    file = altered(_newer)
    done = measured(native_program, file, "--out", tmp_path / "r.json")
    assert done.returncode == 3 and "wanted executorch 1.10.0 or newer" in done.stderr and "found 1.4.1" in done.stderr
    assert measured(native_program, file, "--any-version", "--out", tmp_path / "r.json").returncode == 1


def test_names_in_any_script_come_through_the_program(native_program: Path, altered: Alter, tmp_path: Path) -> None:
    name = 'Straße "Größe", 🙂\\n.pte'

    def renamed(document: dict[str, Any]) -> None:
        document["files"][0]["name"] = name

    # As escapes, of which one letter needs a pair.
    file = altered(renamed)
    assert b"\\ud83d" in file.read_bytes()
    assert measured(native_program, file, "--out", tmp_path / "r.json").returncode == 1
    assert result.read(tmp_path / "r.json").rows[0].file == name


@pytest.mark.slow
def test_the_program_measures_as_the_runner_in_python_does(
    native_program: Path, pte_bundled: Bundle, tmp_path: Path
) -> None:
    request = Request(mode=("--brief", "0.3"), native=native_program)
    rows = {}
    for name, chosen in (("program", request), ("python", replace(request, native=None))):
        link = Local(folder=str(tmp_path / "there"))
        for row in bench.measure(pte_bundled, link, chosen, lambda text: None, name, every=0.1).rows:
            rows[name, row.file] = row
    ours, theirs = rows["program", "narrow.pte"], rows["python", "narrow.pte"]
    assert (ours.verdict, ours.accuracy, ours.golden) == ("pass", theirs.accuracy, theirs.golden)
    assert (ours.system, ours.runtime, ours.kind) == (theirs.system, theirs.runtime, "real")
    assert ours.time and ours.time.calls > 100 and ours.time.p50_ms > 0 and ours.peak_bytes
    missing = rows["program", "narrow.onnx"]
    assert missing.verdict == "not-checked" and "no runtime in this program" in missing.reason
    assert not any((tmp_path / "there").iterdir())


@pytest.mark.slow
def test_the_program_feeds_files_as_their_cards_say(native_program: Path, fed_bundled: Bundle, tmp_path: Path) -> None:
    link, request = Local(folder=str(tmp_path / "there")), Request(mode=("--brief", "0.1"), native=native_program)
    rows = bench.measure(fed_bundled, link, request, lambda text: None, "program", every=0.1).rows
    told = {row.file: row.golden for row in rows if row.file.endswith(".pte")}
    assert set(told) == {"normalised.pte", "channels-last.pte", "bytes.pte"}
    assert all("0 of 16 in another class" in words for words in told.values()), told


@pytest.mark.slow
def test_a_killed_program_goes_on_from_what_is_finished(
    native_program: Path, pte_bundled: Bundle, tmp_path: Path
) -> None:
    out, progress = tmp_path / "r.json", tmp_path / "p.jsonl"
    command = [native_program, pte_bundled.path, "--brief", "60", "--progress", progress, "--out", out]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("edgewise: timing"):
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    lines = progress.read_text().splitlines()
    entry = json.loads(lines[1])
    assert entry["step"] == "look narrow.pte" and not out.exists()
    entry["found"]["first_call_ms"] = 12345.0
    command[3] = "0.2"
    # The same measurement but for its length, half a line behind it as a kill leaves one.
    key = lines[0].replace('"seconds": 60', '"seconds": 0.20000000000000001')
    progress.write_text("\n".join([key, json.dumps(entry), lines[1][:20]]))
    assert subprocess.run(command, check=False, capture_output=True).returncode == 1
    measured_row = result.read(out).rows[0]
    assert measured_row.first_call_ms == 12345.0 and measured_row.latency


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot read"), (b"MZ\x90", "wanted a program for Linux"), (b"", "wanted a program")]
)
def test_what_is_no_program_is_refused_before_anything_is_sent(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "p").write_bytes(content)
    with pytest.raises(RequestError, match=words):
        device_program.read(tmp_path / "p")


def _elf(number: int) -> bytes:
    return b"\x7fELF\2\1" + bytes(12) + number.to_bytes(2, "little") + bytes(40)


@pytest.mark.parametrize(
    ("number", "machine", "fits"),
    [
        (183, "aarch64", True), (183, "x86_64", False), (62, "aarch64", False), (62, "AMD64", True), (40, "aarch64", True),
        (40, "x86_64", False), (999, "aarch64", True), (183, "", True),
    ],
)  # fmt: skip
def test_a_program_for_another_processor_is_refused(tmp_path: Path, number: int, machine: str, fits: bool) -> None:
    (tmp_path / "p").write_bytes(_elf(number))
    program = device_program.read(tmp_path / "p")
    if fits:
        program.check(machine, "adb://X", ["onnx", "xnnpack"])
    else:
        with pytest.raises(DeviceError, match=f"was compiled for .*, and adb://X is {machine}: compile it for that"):
            program.check(machine, "adb://X", ["onnx", "xnnpack"])


def test_a_bundle_without_files_for_the_program_is_refused(bundled: Bundle, tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(_elf(62))
    with pytest.raises(RequestError, match="the bundle has none: run the recipe with --target xnnpack"):
        bench.measure(bundled, Local(), Request(native=tmp_path / "p"), lambda text: None, "x")


def test_files_for_core_ml_have_no_runtime_elsewhere_though_its_package_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(MissingRuntime, match="run on macOS and iOS alone"):
        need("coreml", {}, True)

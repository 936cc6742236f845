"""ExecuTorch's runtime as a library: compiled against the installed wheel, called as a bundle's runner calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgewise.device.runner import native
from edgewise.device.runner.runtimes import MissingRuntime, need
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

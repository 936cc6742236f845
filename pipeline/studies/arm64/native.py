"""ExecuTorch's own runtime in the Arm system, without PyTorch's Python and without CUDA.

The aarch64 wheel's library needs PyTorch's, whose aarch64 wheel in turn wants CUDA's; of these a CPU calls nothing, so that
each missing function may stand there as one that fails. A small library (``pte.cpp``) is compiled against the wheel's
headers and is what a bundle's runner calls.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from edgewise import device
from edgewise.studies.arm64.root import PYTHON, EmulationError, Root
from edgewise.targets import MissingBackend

SOURCE = Path(device.__file__).parent / "native" / "pte.cpp"
_COMPILER, _LISTER = "aarch64-linux-gnu-g++", "aarch64-linux-gnu-nm"
_PLATFORM = "manylinux_2_28_aarch64"
_CUDA = re.compile(r"cuda|cupti|nvrtc|nvshmem|nccl|cudnn|cublas|cusparse|cusolver|cufft|curand|nvToolsExt|c10d", re.I)
_NEEDED_AT_LINK = "-Wl,--unresolved-symbols=ignore-all"


def versions() -> dict[str, str]:
    """The wheels whose libraries are taken: as installed here."""
    return {name: importlib.metadata.version(name).partition("+")[0] for name in ("executorch", "torch")}


def check() -> None:
    """Raise MissingBackend, with the line that installs them, where the compiler or ExecuTorch here is missing."""
    if shutil.which(_COMPILER) is None or shutil.which(_LISTER) is None:
        raise MissingBackend("ExecuTorch on emulated Arm needs a compiler: sudo apt-get install g++-aarch64-linux-gnu")
    try:
        versions()
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingBackend(
            f"files for xnnpack need {error.name}: python -m pip install 'edgewise[xnnpack]'"
        ) from error


def build(system: Root, say: Callable[[str], None]) -> str:
    """Make the folder of the runtime in the system, whole or not at all, where it is not yet; returns its path there.

    Raises EmulationError where a wheel cannot be fetched or the library cannot be compiled.
    """
    packages = versions()
    key = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:8]
    inside = f"opt/executorch-{packages['executorch']}-{key}"
    place = system.path / inside
    if not place.is_dir():
        say(f"fetching {', '.join(f'{name} {version}' for name, version in packages.items())} for arm64 (450 MB)")
        partial = place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with tempfile.TemporaryDirectory(prefix="edgewise-") as folder:
            _fetch(packages, Path(folder))
            _fill(partial, Path(folder), packages["executorch"])
        partial.rename(place)
    return f"/{inside}"


def _fetch(packages: dict[str, str], folder: Path) -> None:
    exact = [f"{name}=={version}" for name, version in packages.items()]
    kind = ("--platform", _PLATFORM, "--python-version", PYTHON, "--only-binary=:all:", "--no-deps", "--quiet")
    _do(sys.executable, "-m", "pip", "download", *kind, "--dest", str(folder), *exact)


def _fill(place: Path, wheels: Path, version: str) -> None:
    """Libraries of both wheels, stand-ins for CUDA's, the compiled one, and the two lists that the runner reads."""
    headers = wheels / "headers"
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith("executorch/include/"):
                    archive.extract(name, headers)
                elif _is_wanted(name):
                    (place / Path(name).name).write_bytes(archive.read(name))
    runtime = next(place.glob("_portable_lib*.so"))
    _stand_in(place, runtime)
    include = headers / "executorch/include"
    include_options = (f"-I{include}", f"-I{include}/executorch/runtime/core/portable_type/c10")
    flags = ("-std=c++20", "-O2", "-shared", "-fPIC", "-DC10_USING_CUSTOM_GENERATED_MACROS", _NEEDED_AT_LINK)
    _do(_COMPILER, *flags, *include_options, str(SOURCE), "-o", str(place / "libedgewise_pte.so"))
    (place / "libraries").write_text(f"{runtime.name}\nlibedgewise_pte.so\n", encoding="ascii")
    (place / "version").write_text(f"{version}\n", encoding="ascii")


def _is_wanted(name: str) -> bool:
    if re.fullmatch(r"executorch/extension/pybindings/_portable_lib.*\.so", name):
        return True
    if not re.fullmatch(r"torch/lib/lib[^/]*\.so[.0-9]*", name):
        return False
    return not _CUDA.search(name) and Path(name).name not in ("libtorch.so", "libtorch_python.so")


def _stand_in(place: Path, runtime: Path) -> None:
    """Libraries of the names that are wanted and missing, each with functions that fail, by the version they are asked in."""
    missing: dict[str, set[str]] = {"libtorch.so": set(), "libtorch_python.so": set()}
    for symbol, library in _undefined(place / "libtorch_cpu.so"):
        if library and _CUDA.search(library):
            missing.setdefault(library, set()).add(symbol)
    # Of PyTorch's Python the runtime's bindings ask for the conversion of tensors alone, which nobody calls here.
    missing["libtorch_python.so"] |= {name for name, _ in _undefined(runtime) if "pybind116detail11type_caster" in name}
    for library, symbols in missing.items():
        _compile_stand_in(place / library, symbols, versioned=library.startswith("libcu"))


def _undefined(library: Path) -> list[tuple[str, str]]:
    """Names that a library asks of others, each with the version, which is the library's name where it has one."""
    output = subprocess.run(
        [_LISTER, "-D", "--undefined-only", library], capture_output=True, text=True, check=True
    ).stdout
    symbols = [line.split()[-1].partition("@") for line in output.splitlines() if line.strip()]
    return [(name, version.lstrip("@")) for name, _, version in symbols]


def _compile_stand_in(path: Path, symbols: set[str], versioned: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="edgewise-") as name:
        folder = Path(name)
        lines = [f'extern "C" int {symbol}() {{ return 100; }}' for symbol in sorted(symbols)]
        (folder / "stand_in.cpp").write_text("\n".join([*lines, ""]), encoding="ascii")
        (folder / "versions").write_text(f"{path.name} {{ global: *; }};\n", encoding="ascii")
        script = (f"-Wl,--version-script={folder}/versions",) if versioned else ()
        flags = ("-shared", "-fPIC", f"-Wl,-soname,{path.name}", *script)
        _do(_COMPILER, *flags, str(folder / "stand_in.cpp"), "-o", str(path))


def _do(*command: str) -> None:
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if process.returncode:
        tail = "\n".join(process.stdout.strip().splitlines()[-8:])
        raise EmulationError(f"{command[0]} ended with status {process.returncode}: {tail}")

"""ExecuTorch's own runtime in the Arm system, without PyTorch's Python and without CUDA.

The aarch64 wheel's library needs PyTorch's, whose aarch64 wheel in turn wants CUDA's; of these a CPU calls nothing, so that
each missing function may stand there as one that fails. A small library (``pte.cpp``) is compiled against the wheel's
headers and is what a bundle's runner calls; with ``program.cpp`` it is a program that needs no Python.
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
from collections.abc import Callable, Sequence
from pathlib import Path

from edgewise import device
from edgewise.studies.arm64.root import PYTHON, EmulationError, Root
from edgewise.targets import MissingBackend

SOURCE = Path(device.__file__).parent / "native" / "pte.cpp"
PROGRAM = "edgewise_native"
"""The program's name in the folder."""
_COMPILER, _LISTER = "aarch64-linux-gnu-g++", "aarch64-linux-gnu-nm"
_PLATFORM = "manylinux_2_28_aarch64"
_CUDA = re.compile(r"cuda|cupti|nvrtc|nvshmem|nccl|cudnn|cublas|cusparse|cusolver|cufft|curand|nvToolsExt|c10d", re.I)
_NEEDED_AT_LINK = "-Wl,--unresolved-symbols=ignore-all"
_NO_PYTHON = "libedgewise_no_python.so"
_CONVERSION = "pybind116detail11type_caster"
"""Of PyTorch's Python the library asks for the conversion of tensors alone, which nobody calls here."""
_LIBRARY = "libedgewise_pte.so"
_FLAGS = ("-std=c++20", "-O2")


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
    sources = b"".join(path.read_bytes() for path in sorted(SOURCE.parent.iterdir()))
    key = hashlib.sha256(sources).hexdigest()[:8]
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
    where = (f"-I{include}", f"-I{include}/executorch/runtime/core/portable_type/c10")
    library = ("-shared", "-fPIC", "-DC10_USING_CUSTOM_GENERATED_MACROS", _NEEDED_AT_LINK)
    _do(_COMPILER, *_FLAGS, *library, *where, str(SOURCE), "-o", str(place / _LIBRARY))
    compile_program(place, runtime, version)
    (place / "libraries").write_text(f"{runtime.name}\n{_LIBRARY}\n", encoding="ascii")
    (place / "version").write_text(f"{version}\n", encoding="ascii")


def compile_program(
    place: Path,
    runtime: Path,
    version: str,
    tools: tuple[str, str] = (_COMPILER, _LISTER),
    elsewhere: Sequence[Path] = (),
) -> Path:
    """The program that needs no Python, in ``place``, where the compiled library lies; those of both wheels do, too, or
    ``elsewhere``.

    Of Python, for which that library is made, it calls nothing: its functions stand in ``place`` as ones that fail, as do
    those of PyTorch's Python. ``runtime``: ExecuTorch's library, of this ``version``; ``tools``: the compiler, and the
    program that lists a library's names.
    """
    compiler, lister = tools
    undefined = {name for name, _ in _undefined(runtime, lister)}
    _compile_stand_in(place / _NO_PYTHON, {name for name in undefined if re.match("_?Py", name)}, False, compiler)
    conversions = {name for name in undefined if _CONVERSION in name}
    _compile_stand_in(place / "libtorch_python.so", conversions, False, compiler)
    source = (f"-DEDGEWISE_EXECUTORCH={version}", str(SOURCE.with_name("program.cpp")))
    names = (_LIBRARY, _NO_PYTHON, "libtorch_python.so", runtime.name)
    where = [option for folder in (place, *elsewhere) for option in (f"-L{folder}", f"-Wl,-rpath-link,{folder}")]
    where += [f"-Wl,--disable-new-dtags,-rpath,{':'.join(['$ORIGIN', *map(str, elsewhere)])}"]
    # Of what the libraries need of each other much is never called and not there.
    libraries = ("-Wl,--no-as-needed,--unresolved-symbols=ignore-in-shared-libs", *(f"-l:{name}" for name in names))
    program = place / PROGRAM
    _do(compiler, *_FLAGS, *source, "-o", str(program), *where, *libraries)
    return program


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
    missing["libtorch_python.so"] |= {name for name, _ in _undefined(runtime) if _CONVERSION in name}
    for library, symbols in missing.items():
        _compile_stand_in(place / library, symbols, versioned=library.startswith("libcu"))


def _undefined(library: Path, lister: str = _LISTER) -> list[tuple[str, str]]:
    """Names that a library asks of others, each with the version, which is the library's name where it has one."""
    output = subprocess.run(
        [lister, "-D", "--undefined-only", library], capture_output=True, text=True, check=True
    ).stdout
    symbols = [line.split()[-1].partition("@") for line in output.splitlines() if line.strip()]
    return [(name, version.lstrip("@")) for name, _, version in symbols]


def _compile_stand_in(path: Path, symbols: set[str], versioned: bool, compiler: str = _COMPILER) -> None:
    with tempfile.TemporaryDirectory(prefix="edgewise-") as name:
        folder = Path(name)
        lines = [f'extern "C" int {symbol}() {{ return 100; }}' for symbol in sorted(symbols)]
        (folder / "stand_in.cpp").write_text("\n".join([*lines, ""]), encoding="ascii")
        (folder / "versions").write_text(f"{path.name} {{ global: *; }};\n", encoding="ascii")
        script = (f"-Wl,--version-script={folder}/versions",) if versioned else ()
        flags = ("-shared", "-fPIC", f"-Wl,-soname,{path.name}", *script)
        _do(compiler, *flags, str(folder / "stand_in.cpp"), "-o", str(path))


def _do(*command: str) -> None:
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if process.returncode:
        tail = "\n".join(process.stdout.strip().splitlines()[-8:])
        raise EmulationError(f"{command[0]} ended with status {process.returncode}: {tail}")

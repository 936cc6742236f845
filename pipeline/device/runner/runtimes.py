"""The runtimes a file can be run in: how each loads a file, which version it is, and the line that installs it."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import native

Run = Callable[["np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"]
"""One image as the file is fed, [1, ...] -> float32 [1, classes]."""


class MissingRuntime(Exception):
    """The runtime is not installed here, or too old; the message holds the line that installs it."""


def _load_onnx(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: np.asarray(session.run(None, {name: image})[0], np.float32)


def _load_executorch(path: Path, threads: int) -> Run:
    place = native.folder()
    if place is not None:
        return native.load(place, path, threads)
    import torch
    from executorch.extension.pybindings import portable_lib

    torch.set_num_threads(threads)
    if portable_lib._threadpool_get_thread_count() != threads:
        portable_lib._unsafe_reset_threadpool(threads)
    content = path.read_bytes()
    module = portable_lib._load_for_executorch_from_buffer(content)
    # The program points into the bytes, which live as long as what is kept with them.
    references = (content, module)
    return lambda image: np.asarray(references[1].forward([torch.from_numpy(image)])[0].numpy(), np.float32)


def _load_coreml(path: Path, threads: int) -> Run:
    import coremltools

    model = coremltools.models.MLModel(str(path), compute_units=coremltools.ComputeUnit.ALL)
    inputs = model.get_spec().description.input[0]
    convert = _picture if inputs.type.WhichOneof("Type") == "imageType" else np.asarray

    def run(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        answers = model.predict({inputs.name: convert(image)})
        # A classifier also answers with the class's name; the numbers are what is compared.
        values = next(value for value in answers.values() if not isinstance(value, str))
        if isinstance(values, dict):
            values = [list(values.values())]
        return np.asarray(values, np.float32).reshape(1, -1)

    return run


def _picture(image: np.ndarray[Any, Any]) -> Any:
    from PIL import Image

    return Image.fromarray(image[0, :, :, 0] if image.shape[3] == 1 else image[0])


class Runtime:
    """A runtime by its package."""

    def __init__(self, package: str, provider: str, load: Callable[[Path, int], Run]) -> None:
        self.package, self.provider, self.load = package, provider, load

    def version(self) -> str | None:
        """Which is installed; None where none is. A runtime that is there and cannot be imported counts as none."""
        place = native.folder()
        if self.package == "executorch" and place is not None:
            try:
                return native.version(place)
            except OSError:
                return None
        try:
            module = importlib.import_module(self.package)
        except ImportError:
            return None
        version = getattr(module, "__version__", None)
        return str(version) if version else _installed(self.package)


def _installed(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


RUNTIMES = {
    "onnx": Runtime("onnxruntime", "CPUExecutionProvider", _load_onnx),
    "ort": Runtime("onnxruntime", "CPUExecutionProvider", _load_onnx),
    "xnnpack": Runtime("executorch", "XNNPACK", _load_executorch),
    "coreml": Runtime("coremltools", "Core ML", _load_coreml),
}
"""Target -> the runtime of its files."""


def need(target: str, wanted: dict[str, str], any_version: bool) -> tuple[Runtime, str]:
    """The runtime of a target and its version. Raises MissingRuntime where it is missing or older than ``wanted``.

    ``wanted``: package -> the version that the files were verified in.
    """
    runtime = RUNTIMES.get(target)
    if runtime is None:
        raise MissingRuntime(f"files for {target} have no runtime for Python; runs: {', '.join(RUNTIMES)}")
    if target == "coreml" and sys.platform != "darwin":
        raise MissingRuntime(
            f"files for coreml run on macOS and iOS alone, and this is {platform.system()}: measure them on a Mac, or in the app"
        )
    version, least = runtime.version(), wanted.get(runtime.package)
    line = (
        f"python3 -m pip install '{runtime.package}=={least}'" if least else f"python3 -m pip install {runtime.package}"
    )
    if runtime.package == "executorch":
        line += " torch --extra-index-url of PyTorch's CPU builds where pip would fetch CUDA packages"
    if version is None:
        raise MissingRuntime(f"wanted {runtime.package} for {target} files, found none on this device: {line}")
    if least and not any_version and _order(version) < _order(least):
        raise MissingRuntime(
            f"wanted {runtime.package} {least} or newer, in which the files were verified, found {version}: {line}, "
            "or measure in the older one with --any-version"
        )
    return runtime, version


def _order(version: str) -> tuple[int, ...]:
    """Major and minor number; what is no number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split(".")[:2])

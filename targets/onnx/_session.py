"""Sessions of ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgewise.targets import TargetError


def open_session(
    path: Path,
    threads: int,
    *,
    optimised: Path | None = None,
    layouts: bool = True,
    own_format: bool = False,
    profile: Path | None = None,
) -> Any:
    """The file at ``path`` loaded for ``threads`` threads of the CPU, as it is run, timed and looked into.

    ``optimised``: also write the graph that is executed there, in ONNX Runtime's ``own_format`` if so asked, without
    the rearrangements for this processor where ``layouts`` is False. ``profile``: prefix of the file that its profiler
    writes. Raises TargetError for a file that ONNX Runtime cannot read.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    if not layouts:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if own_format:
        options.add_session_config_entry("session.save_model_format", "ORT")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    unreadable = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NoSuchFile)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (*unreadable, state.NotImplemented, state.RuntimeException) as error:
        size = path.stat().st_size if path.exists() else None
        condition = "no such file" if size is None else f"{size} bytes that ONNX Runtime refuses"
        raise TargetError(f"wanted an ONNX model at {path}, found {condition} ({error}); export it again") from error

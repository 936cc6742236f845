"""Where the time of an ONNX file goes, by ONNX Runtime's own profiler."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from edgewise.targets.onnx._session import open_session


def profile(path: Path, image: Tensor, threads: int, runs: int = 50) -> Mapping[str, float]:
    """Operator -> milliseconds of one call, the mean of ``runs`` after a first one. Raises TargetError for a file it cannot read.

    ``image``: as the file takes it, [1, ...]. The profiler's own work makes the sum a little more than an unwatched call.
    """
    with tempfile.TemporaryDirectory() as folder:
        watched_session = open_session(path, threads, profile=Path(folder) / "profile")
        name = watched_session.get_inputs()[0].name
        for _ in range(runs + 1):
            watched_session.run(None, {name: image.numpy()})
        events = json.loads(Path(watched_session.end_profiling()).read_text(encoding="utf-8"))
    return _by_operator(events, runs)


def _by_operator(events: list[dict[str, object]], runs: int) -> dict[str, float]:
    """The profiler's events, microseconds each in the order of the calls, without those of the first call."""
    nodes: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for event in events:
        arguments = event.get("args")
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time") and isinstance(arguments, dict):
            nodes[str(event["name"])].append((str(arguments["op_name"]), float(str(event["dur"]))))
    sums: dict[str, float] = defaultdict(float)
    for times in nodes.values():
        for operator, duration in times[-runs:]:
            sums[operator] += duration / runs / 1000
    return dict(sorted(sums.items(), key=lambda item: -item[1]))

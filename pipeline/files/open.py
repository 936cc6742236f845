"""The best evaluator of a written file on this machine, and the grade of what it tells."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgewise.errors import RequestError
from edgewise.targets import Runner, Target, TargetError

if TYPE_CHECKING:
    from torch import Tensor

Grade = Literal["runtime", "reference", "written"]
"""How a file was verified: in its runtime, by a reference evaluation of its instructions, or not at all."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A written file with what evaluates it here."""

    grade: Grade
    runner: Runner | None = None
    """None where nothing here can evaluate the file; ``reason`` then says why."""
    load_ms: float = 0.0
    """Milliseconds that opening took."""
    reason: str = ""
    refused: bool = False
    """Whether there is an evaluator and it would not take this file."""

    def answer(self, images: Tensor) -> Tensor:
        """As ``targets.Runner``; there has to be a runner."""
        assert self.runner is not None, self.reason
        return self.runner(images)


def open_file(target: Target, path: Path, threads: int = 1) -> Opened:
    """The file in its runtime on ``threads`` threads, else in its reference evaluator, else why in neither."""
    if target.load is None and target.reference is None:
        reason = f"{target.name} has no runtime on {platform.system()} and no reference evaluator"
        return Opened(grade="written", reason=reason)
    grade: Grade = "reference" if target.load is None else "runtime"
    start = time.perf_counter()
    try:
        runner = _load_evaluator(target, path, threads)
    except TargetError as error:
        return Opened(grade="written", reason=str(error), refused=True)
    return Opened(grade=grade, runner=runner, load_ms=1000 * (time.perf_counter() - start))


def _load_evaluator(target: Target, path: Path, threads: int) -> Runner:
    if target.load is not None:
        return target.load(path, threads)
    assert target.reference is not None
    return target.reference(path)


def open_runtime(target: Target, path: Path, threads: int = 1) -> Runner:
    """The file in its runtime, for what only a runtime can tell. Raises RequestError where this machine has none."""
    refuse_without_runtime(target, path)
    assert target.load is not None
    return target.load(path, threads)


def refuse_without_runtime(target: Target, path: Path) -> None:
    """Raise RequestError where this machine has no runtime for a file."""
    if target.load is None:
        raise RequestError(
            f"{path}: the runtime of {target.name} does not exist on this machine, so it has no time here"
        )

"""One way to open a file: the runtime where it is here, else the reference, else the reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgewise import targets
from edgewise.errors import RequestError
from edgewise.files.open import open_file, open_runtime
from edgewise.targets import Runner, Target, TargetError

ONNX = targets.get("onnx")
SEEN: list[object] = []


def runtime(path: Path, threads: int) -> Runner:
    SEEN.append((path, threads))
    return double


def reference(path: Path) -> Runner:
    return double


def double(images: Tensor) -> Tensor:
    return 2 * images


def refuse(path: Path, threads: int = 1) -> Runner:
    raise TargetError("not a file of mine")


def with_evaluators(load: object, evaluate: object) -> Target:
    return replace(ONNX, load=load, reference=evaluate)  # type: ignore[arg-type]


def test_the_runtime_comes_first_and_gets_the_threads() -> None:
    opened = open_file(with_evaluators(runtime, reference), Path("net"), 3)
    assert opened.grade == "runtime" and not opened.refused and opened.load_ms >= 0
    assert SEEN[-1] == (Path("net"), 3)
    assert opened.answer(torch.ones(2)).tolist() == [2, 2]


def test_the_reference_where_there_is_no_runtime() -> None:
    opened = open_file(with_evaluators(None, reference), Path("net"))
    assert opened.grade == "reference" and opened.runner is double


@pytest.mark.parametrize("evaluators", [(refuse, None), (None, refuse)])
def test_a_file_that_its_evaluator_refuses_is_only_written(evaluators: tuple[object, object]) -> None:
    opened = open_file(with_evaluators(*evaluators), Path("net"))
    assert (opened.grade, opened.runner, opened.refused) == ("written", None, True)
    assert opened.reason == "not a file of mine"


def test_no_evaluator_at_all_says_so() -> None:
    opened = open_file(with_evaluators(None, None), Path("net"))
    assert (opened.grade, opened.refused) == ("written", False)
    assert opened.reason.startswith("onnx has no runtime on ") and opened.reason.endswith("no reference evaluator")


def test_what_only_a_runtime_can_tell_wants_one() -> None:
    assert open_runtime(with_evaluators(runtime, None), Path("net"), 2) is double and SEEN[-1] == (Path("net"), 2)
    with pytest.raises(RequestError, match="the runtime of onnx does not exist on this machine"):
        open_runtime(with_evaluators(None, reference), Path("net"))

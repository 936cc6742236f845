"""The registry of targets: the folder is the list, and nothing is imported before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgewise import targets
from edgewise.targets import COMMON_OPERATORS, Grid, MissingBackend, Target, TargetError, common_grid

BACKENDS = (
    "executorch",
    "coremltools",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "torchao",
    "litert_torch",
    "ai_edge_litert",
)


def target(name: str, *grids: Grid) -> Target:
    def nothing(*_: object) -> None:
        return None

    return Target(
        name=name, summary="", suffix=".x", extra=name, needs=(), grids=grids, quantizer=nothing, export=nothing, load=None
    )  # type: ignore[arg-type] # fmt: skip


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_listing_imports_no_backend_and_no_torch() -> None:
    code = f"""
import sys, targets
assert {{"onnx", "xnnpack", "coreml"}} <= set(targets.names()), targets.names()
loaded = [name for name in {(*BACKENDS, "torch")!r} if name in sys.modules]
assert not loaded, loaded
"""
    run(code)


def test_getting_a_target_imports_no_backend() -> None:
    code = f"""
import sys, targets
for name in targets.names():
    try:
        assert targets.get(name).name == name
    except targets.MissingBackend:
        pass
loaded = [name for name in {BACKENDS!r} if name in sys.modules]
assert not loaded, loaded
"""
    run(code)


@pytest.mark.parametrize("name", targets.names())
def test_every_target_describes_itself(name: str) -> None:
    try:
        found = targets.get(name)
    except MissingBackend as missing:
        pytest.skip(str(missing))
    assert (found.name, found.extra) == (name, name)
    assert found.suffix.startswith(".") and found.summary and targets.names()[name]
    assert found.grids and all(isinstance(grid, Grid) for grid in found.grids)
    widths = [grid.weight_bits for grid in found.grids]
    assert widths[0] == max(widths)
    # A file that nothing here can run is graded as written only, and its target says so.
    assert found.load is not None or found.reference is not None or "runtime is not in" in found.summary


def test_an_unknown_name_is_answered_with_the_nearest_and_all() -> None:
    with pytest.raises(
        TargetError, match=r"unknown target 'xnpack'. Did you mean 'xnnpack'\? Choices: .*onnx.*xnnpack"
    ):
        targets.get("xnpack")


NEW = '''"""A target of one file."""

from edgewise.targets import Grid, Target

TARGET = Target(
    name="paper", summary="Paper", suffix=".txt", extra="paper", needs=({needs}), grids=(Grid(),),
    quantizer=lambda grid, qat=False: None, export=lambda program, path: None, load=None,
)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(targets, "_FOLDER", tmp_path)
    monkeypatch.setattr(targets, "__path__", [str(tmp_path), *targets.__path__])
    monkeypatch.delitem(sys.modules, "edgewise.targets.paper", raising=False)
    return tmp_path


@pytest.mark.parametrize("path", ["paper.py", "paper/__init__.py"])
def test_a_new_file_is_a_new_target(folder: Path, path: str) -> None:
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_text(NEW.format(needs=""), encoding="utf-8")
    assert targets.names() == {"paper": "A target of one file."}
    assert targets.get("paper").summary == "Paper"
    sys.modules.pop("edgewise.targets.paper")


def test_a_missing_backend_is_answered_with_the_line_that_installs_it(folder: Path) -> None:
    (folder / "paper.py").write_text(NEW.format(needs='"json", "no_such_module",'), encoding="utf-8")
    with pytest.raises(
        MissingBackend, match=r"needs no_such_module, .*: python -m pip install -e \"\.\[paper\]\""
    ) as missing:
        targets.get("paper")
    assert isinstance(missing.value, ImportError)
    sys.modules.pop("edgewise.targets.paper")


def test_two_grids_meet_in_what_both_hold() -> None:
    wide = Grid(operators=COMMON_OPERATORS | {"silu"})
    narrow = Grid(weight_bits=7, symmetric_activations=True)
    assert wide.meet(narrow) == narrow.meet(wide) == Grid(weight_bits=7, symmetric_activations=True)


def test_the_common_grid_is_the_widest_that_serves_all() -> None:
    eight, seven = Grid(weight_bits=8), Grid(weight_bits=7)
    assert common_grid([target("a", eight, seven), target("b", eight)]) == eight
    assert common_grid([target("a", eight, seven), target("b", seven)]) == seven
    assert (
        common_grid([target("a", Grid(operators=frozenset({"conv"}))), target("b", Grid(operators=frozenset()))])
        is None
    )


def test_a_grid_survives_json() -> None:
    grid = Grid(weight_bits=7, symmetric_activations=True, operators=frozenset({"conv", "add"}))
    assert Grid.from_json(json.loads(json.dumps(grid.to_json()))) == grid

"""Files side by side, with runtimes that take a known time."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edgewise import targets
from edgewise.commands import side_by_side
from edgewise.commands.bench import table
from edgewise.commands.side_by_side import compare
from edgewise.errors import EvidenceError, RequestError
from edgewise.verify import card, manifest

COST = {"fast.fake": 0.2, "slow.fake": 0.6}
"""Milliseconds of one call of each file."""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Files with runtimes; what the runtimes were asked for."""
    seen: dict[str, Any] = {"threads": [], "shapes": set()}

    def load(path: Path, threads: int) -> Any:
        seen["threads"].append(threads)

        def run(images: torch.Tensor) -> torch.Tensor:
            seen["shapes"].add(tuple(images.shape))
            end = time.perf_counter_ns() + COST[path.name] * 1e6
            while time.perf_counter_ns() < end:
                pass
            return images

        return run

    seen["target"] = SimpleNamespace(name="fake", load=load)
    monkeypatch.setattr(targets, "get", lambda name: seen["target"])
    kept = SimpleNamespace(target="fake", input_shape=(1, 8, 8), fed="normalised", takes=lambda size: True)
    monkeypatch.setattr(card, "read", lambda path: kept)
    monkeypatch.setattr(side_by_side, "remote", lambda make, *given, what: contextlib.nullcontext(make(*given)))
    for name in COST:
        (tmp_path / name).touch()
        (tmp_path / f"{name}.card.json").touch()
        manifest.write(tmp_path / name, "")
    return seen


def test_ratio_is_to_the_first_file(asked: dict[str, Any], tmp_path: Path) -> None:
    first, second = compare([tmp_path / "fast.fake", tmp_path / "slow.fake"], 2, 0.3)
    assert (first.ratio_to_first, first.ci95) == (1.0, (1.0, 1.0))
    assert 1.5 < second.ratio_to_first < 6
    assert second.ci95[0] > 1 and (first.speed, second.speed) == ("cannot tell", "slower")
    assert first.p50_ms < second.p50_ms <= second.p90_ms
    assert asked["threads"] == [2, 2] and asked["shapes"] == {(1, 1, 8, 8)}


def test_order_of_the_files_is_kept(asked: dict[str, Any], tmp_path: Path) -> None:
    slow, fast = compare([tmp_path / "slow.fake", tmp_path / "fast.fake"], 1, 0.2)
    assert (Path(slow.artifact).name, Path(fast.artifact).name) == ("slow.fake", "fast.fake")
    assert fast.ci95[1] < 1


def test_one_file_alone(asked: dict[str, Any], tmp_path: Path) -> None:
    (only,) = compare([tmp_path / "fast.fake"], 1, 0.05)
    assert only.ratio_to_first == 1.0 and only.batch == 1


def test_json_and_table(asked: dict[str, Any], tmp_path: Path) -> None:
    found = compare([tmp_path / "fast.fake"], 1, 0.05)
    document = json.loads(json.dumps(found[0].to_json()))
    assert list(document) == [
        "artifact", "target", "threads", "batch", "p50_ms", "p90_ms", "ratio_to_first", "ci95", "speed", "remarks", "trusted",
    ]  # fmt: skip
    assert document["ci95"] == [1.0, 1.0]
    assert table(found).row_count == 1


@pytest.mark.parametrize(
    ("threads", "seconds"), [(0, 1.0), (-1, 1.0), (1, 0.0), (1, -2.0), (1, float("nan")), (1, float("inf"))]
)
def test_settings_that_measure_nothing(asked: dict[str, Any], tmp_path: Path, threads: int, seconds: float) -> None:
    with pytest.raises(RequestError, match="at least 1 thread and a positive time"):
        compare([tmp_path / "fast.fake"], threads, seconds)


def test_target_without_a_runtime_here(asked: dict[str, Any], tmp_path: Path) -> None:
    asked["target"].load = None
    with pytest.raises(RequestError, match="has no time here"):
        compare([tmp_path / "fast.fake"], 1, 0.1)


def test_missing_file_and_missing_card(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no file"):
        compare([tmp_path / "none"], 1, 0.1)
    (tmp_path / "bare.onnx").touch()
    with pytest.raises(RequestError, match=r"bare\.onnx\.card\.json"):
        compare([tmp_path / "bare.onnx"], 1, 0.1)


def test_a_file_that_was_changed_is_not_opened(asked: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "fast.fake").write_bytes(b"another")
    with pytest.raises(EvidenceError, match=r"is not the file that was verified: fast\.fake was changed"):
        compare([tmp_path / "fast.fake"], 1, 0.1)
    assert asked["threads"] == []


def test_a_file_without_a_card_is_untrusted(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1, 6, 5]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "relu", ends[:1], ends[1:])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10),
        tmp_path / "bare.onnx",
    )
    (found,) = compare([tmp_path / "bare.onnx"], 1, 0.05, (6, 5))
    assert not found.trusted and found.target == "onnx" and "untrusted" in str(list(table([found]).columns[0].cells))
    with pytest.raises(RequestError, match="takes no image of 1×3×7×7"):
        compare([tmp_path / "bare.onnx"], 1, 0.05, (7, 7))
    (tmp_path / "bare.onnx").write_bytes(b"\x08\xff" * 40)
    with pytest.raises(targets.TargetError, match="export it again"):
        compare([tmp_path / "bare.onnx"], 1, 0.05, (6, 5))

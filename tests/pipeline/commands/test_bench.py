"""Files side by side, with runtimes that take a known time."""

from __future__ import annotations

import contextlib
import io
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from edgewise import targets
from edgewise.commands import side_by_side
from edgewise.commands.bench import distinct_names, shared_remarks, speed_verdicts, timing_table
from edgewise.commands.side_by_side import Timing, compare_speed
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
    monkeypatch.setattr(side_by_side, "call_remotely", lambda make, *given, what: contextlib.nullcontext(make(*given)))
    for name in COST:
        (tmp_path / name).touch()
        (tmp_path / f"{name}.card.json").touch()
        manifest.write(tmp_path / name, "")
    return seen


def test_ratio_is_to_the_first_file(asked: dict[str, Any], tmp_path: Path) -> None:
    first, second = compare_speed([tmp_path / "fast.fake", tmp_path / "slow.fake"], [2], 0.3)
    assert (first.ratio_to_first, first.ci95) == (1.0, (1.0, 1.0))
    assert 1.5 < second.ratio_to_first < 6
    assert second.ci95[0] > 1 and (first.speed, second.speed) == ("cannot tell", "slower")
    assert first.p50_ms < second.p50_ms <= second.p90_ms
    assert asked["threads"] == [2, 2] and asked["shapes"] == {(1, 1, 8, 8)}


def test_order_of_the_files_is_kept(asked: dict[str, Any], tmp_path: Path) -> None:
    slow, fast = compare_speed([tmp_path / "slow.fake", tmp_path / "fast.fake"], [1], 0.2)
    assert (Path(slow.artifact).name, Path(fast.artifact).name) == ("slow.fake", "fast.fake")
    assert fast.ci95[1] < 1


def test_one_file_alone(asked: dict[str, Any], tmp_path: Path) -> None:
    (only,) = compare_speed([tmp_path / "fast.fake"], [1], 0.05)
    assert only.ratio_to_first == 1.0 and only.batch == 1


def test_json_and_table(asked: dict[str, Any], tmp_path: Path) -> None:
    found = compare_speed([tmp_path / "fast.fake"], [1], 0.05)
    document = json.loads(json.dumps(found[0].to_json()))
    assert list(document) == [
        "artifact", "target", "threads", "batch", "p50_ms", "p90_ms", "images_per_s", "ratio_to_first", "ci95", "speed",
        "fastest", "remarks", "trusted",
    ]  # fmt: skip
    assert document["ci95"] == [1.0, 1.0]
    assert timing_table(found).row_count == 1


@pytest.mark.parametrize(
    ("threads", "seconds"), [(0, 1.0), (-1, 1.0), (1, 0.0), (1, -2.0), (1, float("nan")), (1, float("inf"))]
)
def test_settings_that_measure_nothing(asked: dict[str, Any], tmp_path: Path, threads: int, seconds: float) -> None:
    with pytest.raises(RequestError, match="at least 1 thread and a positive time"):
        compare_speed([tmp_path / "fast.fake"], [threads], seconds)


def test_target_without_a_runtime_here(asked: dict[str, Any], tmp_path: Path) -> None:
    asked["target"].load = None
    with pytest.raises(RequestError, match="has no time here"):
        compare_speed([tmp_path / "fast.fake"], [1], 0.1)


def test_missing_file_and_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no file"):
        compare_speed([tmp_path / "none"], [1], 0.1)
    (tmp_path / "bare.txt").touch()
    with pytest.raises(RequestError, match=r"no runtime on this machine reads \.txt files"):
        compare_speed([tmp_path / "bare.txt"], [1], 0.1)


def test_a_file_that_was_changed_is_not_opened(asked: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "fast.fake").write_bytes(b"another")
    with pytest.raises(EvidenceError, match=r"is not the file that was verified: fast\.fake was changed"):
        compare_speed([tmp_path / "fast.fake"], [1], 0.1)
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
    (found,) = compare_speed([tmp_path / "bare.onnx"], [1], 0.05, (6, 5))
    assert (
        not found.trusted
        and found.target == "onnx"
        and "untrusted" in str(list(timing_table([found]).columns[0].cells))
    )
    with pytest.raises(RequestError, match="takes no image of 1×3×7×7"):
        compare_speed([tmp_path / "bare.onnx"], [1], 0.05, (7, 7))
    (own,) = compare_speed([tmp_path / "bare.onnx"], [1], 0.05)
    assert not own.trusted, "what it says that it takes will do"
    (tmp_path / "bare.onnx").write_bytes(b"\x08\xff" * 40)
    with pytest.raises(targets.TargetError, match="export it again"):
        compare_speed([tmp_path / "bare.onnx"], [1], 0.05, (6, 5))


def test_throughput_at_threads_and_batches(asked: dict[str, Any], tmp_path: Path) -> None:
    """The runtimes here take as long for a batch as for an image."""
    paths = [tmp_path / "slow.fake", tmp_path / "fast.fake"]
    found = compare_speed(paths, [1, 2], 0.1, batches=[1, 8])
    assert [(entry.threads, entry.batch) for entry in found] == [(1, 1)] * 2 + [(1, 8)] * 2 + [(2, 1)] * 2 + [
        (2, 8)
    ] * 2
    assert asked["threads"] == [1, 1, 2, 2] and (8, 1, 8, 8) in asked["shapes"]
    one, eight = found[1], found[3]
    assert 4 < eight.images_per_s / one.images_per_s < 16
    assert [entry.fastest for entry in found] == [False, True] * 4
    text = shown(found, 80)
    assert "threads" in text and "batch" in text and "Fastest at threads 2, batch 8: fast.fake." in text


@pytest.mark.parametrize("batches", [[0], [-1], [], [10_000]])
def test_batches_that_are_none(asked: dict[str, Any], tmp_path: Path, batches: list[int]) -> None:
    with pytest.raises(RequestError, match="--batch: wanted 1 to"):
        compare_speed([tmp_path / "fast.fake"], [1], 0.1, batches=batches)


def shown(found: list[Timing], width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(timing_table(found, width))
    for line in speed_verdicts(found):
        console.print(line)
    return console.export_text()


def timing(path: str, ratio: float = 1.0, fastest: bool = True) -> Timing:
    return Timing(
        artifact=path, target="xnnpack", threads=1, batch=1, p50_ms=0.123456, p90_ms=0.2, images_per_s=8100.0,
        ratio_to_first=ratio, ci95=(ratio - 0.01, ratio + 0.01), speed="cannot tell", fastest=fastest,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (
            ["runs/demo/artifacts/onnx/demo-quantize.onnx", "runs/demo/artifacts/xnnpack/demo-quantize.pte"],
            ["onnx/demo-quantize.onnx", "xnnpack/demo-quantize.pte"],
        ),
        (
            ["/a/runs/one/artifacts/onnx/net-quantize.onnx", "/a/runs/two/artifacts/onnx/net-quantize.onnx"],
            ["one/artifact…uantize.onnx", "two/artifact…uantize.onnx"],
        ),
        (["a.onnx", "b/a.onnx"], ["a.onnx", "b/a.onnx"]),
        (["x" * 40 + "1" + "y" * 40, "x" * 40 + "2" + "y" * 40], ["1 …" + "y" * 21, "2 …" + "y" * 21]),
    ],
)
def test_names_differ_in_few_columns(paths: list[str], names: list[str]) -> None:
    found = list(distinct_names(paths, 25).values())
    assert len(set(found)) == len(paths) and all(len(name) <= 25 for name in found)
    assert found == names


@pytest.mark.parametrize("width", [80, 100, 200])
def test_every_file_has_its_own_name_and_no_line_is_too_long(width: int) -> None:
    paths = [
        f"/home/someone/work/runs/{run}/artifacts/onnx/net-{step}.onnx"
        for run in ("first", "other")
        for step in ("fold", "quantize")
    ]
    text = shown([timing(path, fastest=path == paths[0]) for path in paths], width)
    lines = [line for line in text.splitlines() if " xnnpack " in line]
    assert len({line.split()[0] for line in lines}) == len(paths), text
    assert max(map(len, text.splitlines())) <= width and "Fastest: first/artifacts/onnx/net-fold.onnx." in text


def test_what_cannot_be_told_is_said() -> None:
    assert "Cannot tell which is fastest: a.onnx, b.onnx." in speed_verdicts([timing("x/a.onnx"), timing("x/b.onnx")])


def test_a_remark_on_several_files_is_made_once() -> None:
    remarks = [
        ("a", "others used the processor: the calls had 23% of it"), ("b", "others used the processor: the calls had 41% of it"),
        ("a", "its time drifted by +7% while it was measured"), ("b", "others used the processor: the calls had 30% of it"),
    ]  # fmt: skip
    assert shared_remarks(remarks, 3) == [
        "a, b: others used the processor: the calls had 23% to 41% of it",
        "a: its time drifted by +7% while it was measured",
    ]
    assert shared_remarks(remarks[:2], 2) == ["all files: others used the processor: the calls had 23% to 41% of it"]
    assert shared_remarks(remarks[:1], 1) == ["a: others used the processor: the calls had 23% of it"]
    assert shared_remarks([], 2) == []

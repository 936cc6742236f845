"""Results taken in: what a device sends is recomputed, and what contradicts itself is refused."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgewise.device import result
from edgewise.device.accept import accept_result, same_place
from edgewise.device.bundle import Bundle
from edgewise.device.host_answers import decode_classes, encode_classes
from edgewise.device.manifest import Golden
from edgewise.device.result import ResultError
from edgewise.report.devices import DeviceRow

Document = dict[str, Any]


def rows(content: bytes, bundled: Bundle) -> list[DeviceRow]:
    return accept_result(result.parse(content, "r.json"), bundled.manifest, bundled.sha256, "board")


def changed(content: bytes, change: Callable[[Document], object]) -> bytes:
    document = json.loads(content)
    change(document)
    return json.dumps(document).encode()


def test_what_a_device_sends_becomes_its_rows(sent: bytes, bundled: Bundle) -> None:
    wide, narrow = rows(sent, bundled)
    assert (wide.device, wide.kind, wide.verdict, wide.mode) == ("board", "real", "pass", "brief")
    labels = decode_classes(bundled.manifest.slice.labels)
    host = decode_classes(bundled.manifest.files[0].host_answers)
    assert wide.accuracy is not None and wide.accuracy.top1 == (labels == host).mean()
    assert wide.accuracy.vs_baseline.delta == 0 and wide.accuracy.n == 60
    assert "0 of 16 in another class" in wide.golden and wide.runtime.startswith("onnxruntime ")
    assert wide.time is not None and narrow.time is not None
    assert wide.time.ratio_to_baseline is None and narrow.time.ratio_to_baseline is not None
    assert narrow.time.ratio_to_baseline < 0.9, "a thirtieth of the work takes less time"
    assert "MLPerf Mobile asks for 1,024 and 60 s" in wide.time.note


def test_percentiles_are_those_of_the_blocks(sent: bytes, bundled: Bundle) -> None:
    def set_times(document: Document) -> None:
        for block, times in enumerate(document["rows"][0]["latency"]["times_ns"]):
            times[:] = [1000 * (block + 1)] * 4
        latency = document["rows"][0]["latency"]
        latency["calls"], latency["busy_ns"] = 40, sum(map(sum, latency["times_ns"]))

    time = rows(changed(sent, set_times), bundled)[0].time
    assert time is not None
    # Ten blocks of 1 to 10 microseconds, four each: the median lies between the fifth and the sixth.
    assert time.p50_ms == pytest.approx(0.0055) and time.p90_ms == pytest.approx(0.0091)
    assert time.per_second == pytest.approx(40 / 220e-6) and time.p99_ms is None and time.calls == 40


def _set(path: str, value: object) -> Callable[[Document], object]:
    *keys, last = [int(part) if part.isdigit() else part for part in path.split(".")]

    def change(document: Any) -> None:
        for key in keys:
            document = document[key]
        document[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("rows.0.accuracy.top1", 0.99), "says top-1 0.99 of 60, its answers give"),
        (_set("rows.0.accuracy.n", 61), "says top-1"),
        (_set("rows.0.accuracy", None), "says top-1 none"),
        (_set("rows.0.sha256", "0" * 64), "not the bundle's"),
        (_set("bundle_sha256", "0" * 64), "of bundle 0000"),
        (_set("bundle_sha256", "../devices/it/forged"), "wanted the SHA-256 of a bundle"),
        (_set("bundle_sha256", ""), "wanted the SHA-256 of a bundle"),
        (_set("device.memory_bytes", 10**400), "at most 64 bits"),
        (_set("rows.0.seconds", 10**400), "at most 64 bits"),
        (_set("rows.0.file", "other.onnx"), "not in the bundle"),
        (_set("rows.0.target", "xnnpack"), "not in the bundle"),
        (_set("rows.1.file", "wide.onnx"), "twice"),
        (_set("rows.0.answers", "0000" * 59), "wanted answers to 60 images, found 59"),
        (_set("rows.0.answers", "00ff" * 60), "class 255, of 10"),
        (_set("rows.0.answers", "xyz"), "no class numbers"),
        (_set("rows.0.golden_answers", "AAAA"), "wanted golden answers"),
        (_set("rows.0.golden_answers", None), "wanted golden answers"),
        (_set("rows.0.latency.calls", 1), "contradict each other"),
        (_set("rows.0.latency.busy_ns", 1), "contradict each other"),
        (_set("rows.0.latency.busy_ns", 10**15), "contradict each other"),
        (_set("rows.0.latency.times_ns.0", []), "wanted times in each"),
        (_set("rows.0.latency.times_ns.0.0", 0), "which none does"),
        (_set("groups", []), "nothing tells"),
        (_set("finished", False), "not finished"),
        (_set("schema", 2), "wanted schema 1, found 2"),
        (_set("surprise", 1), "unknown key 'surprise'"),
        (_set("threads", True), "wanted a whole number"),
        (_set("device.cpu", 3), "result.device.cpu: wanted a string"),
    ],
)
def test_a_result_that_contradicts_itself_is_refused(
    sent: bytes, bundled: Bundle, change: Callable[[Document], object], words: str
) -> None:
    with pytest.raises(ResultError, match=words):
        rows(changed(sent, change), bundled)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"schema": 1}', b'{"schema": NaN}', b'{"schema": 1, "schema": 2}'],
)
def test_what_is_no_result_is_refused(content: bytes) -> None:
    with pytest.raises(ResultError):
        result.parse(content, "r.json")


def test_half_a_result_is_refused(sent: bytes) -> None:
    with pytest.raises(ResultError, match="no whole result"):
        result.parse(sent[: len(sent) // 2], "r.json")


def test_a_result_that_is_too_large_is_not_read(sent: bytes) -> None:
    with pytest.raises(ResultError, match="at most 16,000,000 bytes"):
        result.parse(sent + b" " * result.MOST_BYTES, "r.json")


def _answer(wrong: int, bundled: Bundle) -> Callable[[Document], object]:
    """Answers as the host's, but for the first so many, which are wrong."""
    labels = decode_classes(bundled.manifest.slice.labels)
    host = decode_classes(bundled.manifest.files[0].host_answers)
    right = np.flatnonzero(host == labels)[:wrong]
    answers = host.copy()
    answers[right] = (labels[right] + 1) % 10

    def change(document: Document) -> None:
        document["rows"][0]["answers"] = encode_classes(answers)
        document["rows"][0]["accuracy"]["top1"] = float((answers == labels).mean())

    return change


# Of 60 images 5 points allow 3 to be lost; the interval of a loss of 1 reaches 7 points and cannot decide.
@pytest.mark.parametrize(
    ("wrong", "verdict"), [(0, "pass"), (1, "not-checked"), (3, "not-checked"), (10, "fail"), (30, "fail")]
)
def test_accuracy_is_judged_against_the_hosts_answers(sent: bytes, bundled: Bundle, wrong: int, verdict: str) -> None:
    found = rows(changed(sent, _answer(wrong, bundled)), bundled)[0]
    assert found.verdict == verdict and found.accuracy is not None
    assert found.accuracy.vs_baseline.delta == pytest.approx(-wrong / 60)


def _move_golden(by: float) -> Callable[[Document], object]:
    def change(document: Document) -> None:
        row = document["rows"][0]
        values = np.frombuffer(base64.b64decode(row["golden_answers"]), "<f4").copy()
        values[5] += np.float32(by)
        row["golden_answers"] = base64.b64encode(values.tobytes()).decode()

    return change


@pytest.mark.parametrize(
    ("by", "verdict"), [(0.0, "pass"), (0.5, "fail"), (float("nan"), "fail"), (float("inf"), "fail")]
)
def test_golden_answers_that_moved_fail(sent: bytes, bundled: Bundle, by: float, verdict: str) -> None:
    found = rows(changed(sent, _move_golden(by)), bundled)[0]
    assert found.verdict == verdict


HERE = {"architecture": "aarch64", "cpu": "A76", "runtime": "onnxruntime 1.32.0", "emulator": ""}


@pytest.mark.parametrize("key", [None, "architecture", "cpu", "runtime", "emulator"])
def test_answers_must_be_exact_only_in_the_same_place(sent: bytes, key: str | None) -> None:
    found = result.parse(sent, "r.json")
    device = dataclasses.replace(found.device, machine="aarch64", cpu="A76")
    row = dataclasses.replace(found.rows[0], runtime=result.Runtime(name="onnxruntime", version="1.32.0", provider=""))
    made_on = HERE | ({} if key is None else {key: "other"})
    record = Golden(entry="", count=1, answers="", worst=1, mean=1, made_on=made_on)
    assert same_place(record, device, row) is (key is None)
    assert not same_place(record, dataclasses.replace(device, emulated="qemu"), row)


def test_an_emulators_times_are_told_and_never_rank(sent: bytes, bundled: Bundle) -> None:
    for name, kind in (("qemu-user", "emulated"), ("wasm", "wasm")):
        found = rows(changed(sent, _set("device.emulated", name)), bundled)
        assert [row.kind for row in found] == [kind, kind]
        assert all(row.time is not None and row.time.ratio_to_baseline is None for row in found)


def test_a_file_without_runtime_is_not_checked_and_one_that_broke_fails(sent: bytes, bundled: Bundle) -> None:
    def change(document: Document) -> None:
        for row, missing in zip(document["rows"], (True, False), strict=True):
            row.update(error="no runtime" if missing else "it crashed", missing=missing, latency=None)

    found = rows(changed(sent, change), bundled)
    assert [(row.verdict, row.reason) for row in found] == [("not-checked", "no runtime"), ("fail", "it crashed")]

"""A device's result, taken in with suspicion: what can be recomputed is, what contradicts it is refused."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgewise.device import timing
from edgewise.device.host_answers import decode_classes
from edgewise.device.manifest import BundledFile, Golden, Manifest
from edgewise.device.result import Device, Measured, Result, ResultError
from edgewise.measure import statistics
from edgewise.measure.agreement import moved_answers
from edgewise.measure.paired import fall_verdict
from edgewise.measure.values import Accuracy
from edgewise.report.devices import DeviceRow, Kind
from edgewise.report.rows import Verdict


@dataclass(frozen=True)
class _Finding:
    verdict: Verdict
    reason: str


def accept_result(result: Result, bundle: Manifest, digest: str, name: str) -> list[DeviceRow]:
    """The report's rows of a result. ``name``: the device's, for people.

    Raises ResultError for a result of another bundle or of changed files, and for one whose numbers contradict what they
    are computed from.
    """
    if result.bundle_sha256 != digest:
        raise ResultError(
            f"the result is of bundle {result.bundle_sha256[:16]}…, wanted {digest[:16]}…: measure this bundle again"
        )
    if len({row.file for row in result.rows}) != len(result.rows):
        raise ResultError("the result names a file twice")
    devices = []
    for row in result.rows:
        file = bundle.named(row.file)
        if file is None or file.target != row.target:
            raise ResultError(f"the result names {row.file!r} for {row.target!r}, which is not in the bundle")
        devices.append(_device_row(row, file, result, bundle, name))
    return devices


def kind_of(device: Device) -> Kind:
    """Whose times a device's are."""
    return "real" if device.emulated is None else "wasm" if device.emulated == "wasm" else "emulated"


def _device_row(row: Measured, file: BundledFile, result: Result, bundle: Manifest, name: str) -> DeviceRow:
    kind = kind_of(result.device)
    accuracy = golden_words = time = None
    if row.error is not None:
        verdict: Verdict = "not-checked" if row.missing else "fail"
        findings = [_Finding(verdict, row.error[:500])]
    else:
        _check_digest(row, file)
        accuracy, on_accuracy = _on_accuracy(row, file, bundle)
        on_golden = _on_golden(row, file, result.device)
        golden_words = None if on_golden is None else on_golden.reason
        time = timing.time_of(row, _baseline(row, result, bundle), result, kind)
        findings = [on_accuracy, *([] if on_golden is None else [on_golden])]
    finding = _worst_finding(findings)
    if file.failure:
        # No verdict on the device: what failed there may have been the host's time.
        finding = _Finding(finding.verdict, f"{finding.reason}; the run that wrote it failed it: {file.failure}")
    runtime = row.runtime
    return DeviceRow(
        device=name,
        system=_system(result.device),
        kind=kind,
        target=file.target,
        file=file.name,
        precision=file.precision,
        sha256=file.sha256,
        bundle=result.bundle_sha256,
        runtime="" if runtime is None else f"{runtime.name} {runtime.version} ({runtime.provider})",
        threads=result.threads,
        mode=result.mode.name,
        accuracy=accuracy,
        golden=golden_words or "",
        time=time,
        load_ms=None if row.load_ms is None else row.load_ms.first,
        first_call_ms=row.first_call_ms,
        peak_bytes=row.peak_memory_bytes,
        verdict=finding.verdict,
        reason=finding.reason,
    )


def _worst_finding(findings: list[_Finding]) -> _Finding:
    verdicts: tuple[Verdict, ...] = ("fail", "not-checked", "pass")
    for verdict in verdicts:
        reasons = [finding.reason for finding in findings if finding.verdict == verdict]
        if reasons:
            return _Finding(verdict, "; ".join(reasons))
    return _Finding("not-checked", "nothing was compared")


def _system(device: Device) -> str:
    emulation = f"emulated by {device.emulated}" if device.emulated not in (None, "wasm") else ""
    parts = (device.model, device.cpu, device.machine, device.os, emulation)
    return ", ".join(dict.fromkeys(part[:120] for part in parts if part))


def _baseline(row: Measured, result: Result, bundle: Manifest) -> Measured | None:
    """The device's own measurement of the file that others of the target are held against."""
    names = {file.name for file in bundle.files if file.target == row.target and file.baseline}
    return next((other for other in result.rows if other.file in names and other.error is None), None)


def _check_digest(row: Measured, file: BundledFile) -> None:
    if row.sha256 != file.sha256:
        raise ResultError(
            f"{row.file} on the device is not the bundle's: sha256 {row.sha256[:16]}…, wanted {file.sha256[:16]}…"
        )


def _on_accuracy(row: Measured, file: BundledFile, bundle: Manifest) -> tuple[Accuracy, _Finding]:
    labels = decode_classes(bundle.slice.labels)
    answers = _classes(row, len(labels), file.classes)
    correct = answers == labels
    _check_claim(row, correct)
    if not file.host_answers:
        accuracy = statistics.judge_top1(correct, correct)
        return accuracy, _Finding("not-checked", "nothing on the host could evaluate this file to compare with")
    host = decode_classes(file.host_answers) == labels
    accuracy = statistics.judge_top1(correct, host)
    return accuracy, _judge_accuracy(accuracy, file, bundle)


def _classes(row: Measured, count: int, classes: int) -> NDArray[np.int64]:
    try:
        answers = decode_classes(row.answers)
    except ValueError as error:
        raise ResultError(f"{row.file}: its answers are no class numbers ({error})") from error
    if len(answers) != count:
        raise ResultError(f"{row.file}: wanted answers to {count:,} images, found {len(answers):,}")
    if int(answers.max()) >= classes:
        raise ResultError(f"{row.file}: it answers class {int(answers.max())}, of {classes}")
    return answers


def _check_claim(row: Measured, correct: NDArray[np.bool_]) -> None:
    claim = row.accuracy
    if claim is None or claim.n != len(correct) or abs(claim.top1 - float(correct.mean())) > 1e-9:
        claim_words = "none" if claim is None else f"{claim.top1:.6g} of {claim.n:,}"
        raise ResultError(
            f"{row.file}: the result says top-1 {claim_words}, its answers give {float(correct.mean()):.6g} of {len(correct):,}"
        )


def _judge_accuracy(accuracy: Accuracy, file: BundledFile, bundle: Manifest) -> _Finding:
    versus, tolerance = accuracy.vs_baseline, f"{100 * file.max_drop:.2f} points allowed"
    n = f"n = {accuracy.n:,}"
    verdict = fall_verdict(versus.delta, versus.ci95, versus.p_value, file.max_drop)
    if verdict == "fail":
        return _Finding("fail", f"top-1 is {-100 * versus.delta:.2f} points below the host's, {tolerance} ({n})")
    if verdict == "not-checked":
        more = (
            "the test set has no more"
            if bundle.slice.available == bundle.slice.count
            else "take more along with edgewise bundle --images"
        )
        worst = f"{-100 * versus.ci95[0]:.2f} points"
        return _Finding(
            "not-checked",
            f"{accuracy.n:,} images cannot exclude a fall of {worst} from the host's, {tolerance}: {more}",
        )
    return _Finding("pass", f"top-1 differs by {100 * versus.delta:+.2f} points from the host's, {tolerance} ({n})")


def _on_golden(row: Measured, file: BundledFile, device: Device) -> _Finding | None:
    """How the answers to the golden images compare with those given when the file was made."""
    if file.golden is None:
        return None
    expected = np.frombuffer(base64.b64decode(file.golden.answers), "<f4").reshape(file.golden.count, -1)
    answers = _golden_answers(row, expected)
    if not np.isfinite(answers).all():
        return _Finding("fail", "an answer to a golden image is not a finite number")
    same = same_place(file.golden, device, row)
    difference = moved_answers(answers, expected, None if same else (file.golden.worst, file.golden.mean))
    sentence = (
        f"golden answers within {difference.worst:.3g}, {difference.mean:.3g} in the mean ({difference.allowed_worst:.3g} and "
        f"{difference.allowed_mean:.3g} allowed {'in the same place' if same else 'elsewhere'}), {difference.changed} of {difference.n} in "
        "another class"
    )
    return _Finding("pass" if difference.within else "fail", sentence)


def _golden_answers(row: Measured, expected: NDArray[np.float32]) -> NDArray[np.float32]:
    try:
        content = base64.b64decode(row.golden_answers or "", validate=True)
        return np.frombuffer(content, "<f4").reshape(expected.shape)
    except (ValueError, binascii.Error) as error:
        raise ResultError(
            f"{row.file}: wanted golden answers {list(expected.shape)}, found others ({error})"
        ) from error


def same_place(golden: Golden, device: Device, row: Measured) -> bool:
    """Whether the golden answers were given by the same build on the same processor, none of it emulated."""
    runtime = row.runtime
    here = {
        "architecture": device.machine,
        "cpu": device.cpu,
        "runtime": "" if runtime is None else f"{runtime.name} {runtime.version}",
        "emulator": device.emulated or "",
    }
    return dict(golden.made_on) == here and device.emulated is None

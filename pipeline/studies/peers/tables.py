"""The comparison as tables: for a terminal and for a page of the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgewise.report.markdown import markdown_table

if TYPE_CHECKING:
    from rich.table import Table


_TITLES = ("network", "runtime", "file", "bytes", "top-1 %", "vs float", "same %", "dB", "ms", "× float ONNX", "× fastest peer")  # fmt: skip


def lines(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One line a file, the cells as text."""
    return [
        (network, entry["runtime"], entry["title"], *_measured_cells(entry))
        for network, document in results.items()
        for entry in document["files"]
    ]


def _measured_cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    if entry.get("error"):
        return (f"failed: {entry['error']}"[:120], *[""] * 7)
    quality, time = entry.get("judged") or {}, entry.get("timed") or {}
    accuracy = quality.get("accuracy")
    return (
        f"{entry['bytes']:,}",
        f"{100 * accuracy['top1']:.2f}" if accuracy else "",
        f"{100 * accuracy['vs_baseline']['delta']:+.2f}" if accuracy else "",
        f"{100 * quality['agreement']:.2f}" if quality else "",
        ("equal" if quality["snr_db"] is None else f"{quality['snr_db']:.1f}") if quality else "",
        f"{time['p50_ms']:.3g}" if time else "",
        _ratio(time, "float_onnx"),
        _ratio(time, "fastest_peer"),
    )


def _ratio(timed: Mapping[str, Any], name: str) -> str:
    if f"ratio_to_{name}" not in timed:
        return ""
    low, high = timed[f"ratio_to_{name}_ci95"]
    return f"{timed[f'ratio_to_{name}']:.2f} ({low:.2f} to {high:.2f})"


def tables(results: Mapping[str, Any]) -> Iterator[Table]:
    """A Rich table for each network."""
    from rich import box
    from rich.table import Table

    for network, document in results.items():
        table = Table(box=box.SIMPLE_HEAD, title=network, title_justify="left", padding=(0, 1, 0, 0))
        for title in _TITLES[1:]:
            table.add_column(title, justify="left" if title in _TITLES[:3] else "right", no_wrap=title != "bytes")
        for line in lines({network: document}):
            table.add_row(*line[1:])
        yield table


def markdown(results: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """The page: how it was measured, the table, and what fell short."""
    first = (
        "# Beside the runtimes' own quantizers\n\n"
        "Written by `nox -s peers`. Every file is made from the same float network and the same calibration images; top-1 "
        "over the whole test set in the file's own runtime; same: images of the class that the runtime's float file gives them; dB: signal to noise of "
        "the logits against that file's; time: median of one call, batch 1, one thread, all files of a "
        "network interleaved in one run, with the 95 % interval of the ratio. `× fastest peer`: among the same runtime's "
        "files; below 1 is faster than every peer. Networks for 224×224 images have random weights with batch norms "
        "estimated on enlarged images: for them only time and the agreement with the float file mean something.\n\n"
        f"{_versions(environment)}\n\n"
    )
    findings = verdicts(results)
    return (
        first
        + "\n".join(markdown_table(_TITLES, lines(results)))
        + "\n\n"
        + "\n".join(f"- {line}" for line in findings)
        + "\n"
    )


def _versions(environment: Mapping[str, Any]) -> str:
    packages = environment["packages"]
    entries = [
        f"{name} {packages[name]}"
        for name in ("torch", "onnxruntime", "executorch", "nncf", "ai-edge-litert", "ai-edge-quantizer")
        if name in packages
    ]
    return f"{environment['cpu']}, {', '.join(entries)}."


def verdicts(results: Mapping[str, Any]) -> Sequence[str]:
    """For each file of ours: whether it is as accurate as float and as fast as the fastest peer, in a sentence."""
    return [
        f"{network}, {entry['runtime']}: {'; '.join(_unmet_goals(entry))}"
        for network, document in results.items()
        for entry in document["files"]
        if entry["side"] == "ours" and not entry.get("error")
    ]


def _unmet_goals(entry: Mapping[str, Any]) -> Sequence[str]:
    quality, time = entry.get("judged") or {}, entry.get("timed") or {}
    parts = []
    if accuracy := quality.get("accuracy"):
        delta = 100 * accuracy["vs_baseline"]["delta"]
        parts.append(f"top-1 {delta:+.2f} points against float ({'reached' if delta >= 0 else 'missed'})")
    if "ratio_to_fastest_peer" in time:
        ratio, (low, high) = time["ratio_to_fastest_peer"], time["ratio_to_fastest_peer_ci95"]
        word = "reached" if high <= 1.0 else "missed" if low > 1.0 else "level within the noise"
        parts.append(f"{ratio:.2f} of the time of {time['fastest_peer']} ({word})")
    return parts or ["not measured"]

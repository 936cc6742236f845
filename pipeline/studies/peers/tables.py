"""The comparison as tables: for a terminal and for a page of the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgewise.report.markdown import table

if TYPE_CHECKING:
    from rich.table import Table


_TITLES = ("network", "runtime", "file", "bytes", "top-1 %", "vs float", "same %", "dB", "ms", "× float ONNX", "× fastest peer")  # fmt: skip


def lines(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One line a file, the cells as text."""
    return [
        (network, entry["runtime"], entry["title"], *_measured(entry))
        for network, document in results.items()
        for entry in document["files"]
    ]


def _measured(entry: Mapping[str, Any]) -> tuple[str, ...]:
    if entry.get("error"):
        return (f"failed: {entry['error']}"[:120], *[""] * 7)
    judged, timed = entry.get("judged") or {}, entry.get("timed") or {}
    accuracy = judged.get("accuracy")
    return (
        f"{entry['bytes']:,}",
        f"{100 * accuracy['top1']:.2f}" if accuracy else "",
        f"{100 * accuracy['vs_baseline']['delta']:+.2f}" if accuracy else "",
        f"{100 * judged['agreement']:.2f}" if judged else "",
        ("equal" if judged["snr_db"] is None else f"{judged['snr_db']:.1f}") if judged else "",
        f"{timed['p50_ms']:.3g}" if timed else "",
        _ratio(timed, "float_onnx"),
        _ratio(timed, "fastest_peer"),
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
        shown = Table(box=box.SIMPLE_HEAD, title=network, title_justify="left", padding=(0, 1, 0, 0))
        for title in _TITLES[1:]:
            shown.add_column(title, justify="left" if title in _TITLES[:3] else "right", no_wrap=title != "bytes")
        for line in lines({network: document}):
            shown.add_row(*line[1:])
        yield shown


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
    found = verdicts(results)
    return first + "\n".join(table(_TITLES, lines(results))) + "\n\n" + "\n".join(f"- {line}" for line in found) + "\n"


def _versions(environment: Mapping[str, Any]) -> str:
    packages = environment["packages"]
    named = [f"{name} {packages[name]}" for name in ("torch", "onnxruntime", "executorch", "nncf") if name in packages]
    return f"{environment['cpu']}, {', '.join(named)}."


def verdicts(results: Mapping[str, Any]) -> Sequence[str]:
    """For each file of ours: whether it is as accurate as float and as fast as the fastest peer, in a sentence."""
    return [
        f"{network}, {entry['runtime']}: {'; '.join(_goals(entry))}"
        for network, document in results.items()
        for entry in document["files"]
        if entry["side"] == "ours" and not entry.get("error")
    ]


def _goals(entry: Mapping[str, Any]) -> Sequence[str]:
    judged, timed = entry.get("judged") or {}, entry.get("timed") or {}
    parts = []
    if accuracy := judged.get("accuracy"):
        delta = 100 * accuracy["vs_baseline"]["delta"]
        parts.append(f"top-1 {delta:+.2f} points against float ({'reached' if delta >= 0 else 'missed'})")
    if "ratio_to_fastest_peer" in timed:
        ratio, (low, high) = timed["ratio_to_fastest_peer"], timed["ratio_to_fastest_peer_ci95"]
        word = "reached" if high <= 1.0 else "missed" if low > 1.0 else "level within the noise"
        parts.append(f"{ratio:.2f} of the time of {timed['fastest_peer']} ({word})")
    return parts or ["not measured"]

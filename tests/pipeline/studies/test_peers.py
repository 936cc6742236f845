"""The comparison with other quantizers: resumable, a peer's failure is a line of the table, goals are judged by intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from edgewise import models, targets
from edgewise.studies.peers import contenders, tables
from edgewise.studies.peers.__main__ import main


def entry(side: str, delta: float, ratio: float, interval: tuple[float, float]) -> dict[str, Any]:
    versus = {"delta": delta, "ci95": [delta, delta], "p_value": 1.0}
    return {
        "name": f"onnx-{side}", "title": side, "runtime": "onnx", "side": side, "bytes": 1000,
        "judged": {"n": 10, "agreement": 1.0, "snr_db": None, "accuracy": {"top1": 0.9, "vs_baseline": versus}},
        "timed": {
            "p50_ms": 1.0, "p90_ms": 1.0, "fastest_peer": "onnx-peer", "ratio_to_fastest_peer": ratio,
            "ratio_to_fastest_peer_ci95": list(interval), "ratio_to_float_onnx": 0.5,
            "ratio_to_float_onnx_ci95": [0.4, 0.6],
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("delta", "interval", "said"),
    [
        (0.001, (0.9, 0.99), ("+0.10 points against float (reached)", "(reached)")),
        (-0.001, (1.01, 1.2), ("-0.10 points against float (missed)", "(missed)")),
        (0.0, (0.9, 1.1), ("+0.00 points against float (reached)", "level within the noise")),
    ],
)
def test_goals_are_judged(delta: float, interval: tuple[float, float], said: tuple[str, str]) -> None:
    results = {"net": {"files": [entry("ours", delta, sum(interval) / 2, interval)]}}
    (line,) = tables.verdicts(results)
    assert all(part in line for part in said), line


def test_the_page_holds_failures_and_every_file() -> None:
    lost = {"name": "x", "title": "a peer", "runtime": "onnx", "side": "peer", "error": "ValueError: no such operator"}
    results = {"net": {"files": [entry("ours", 0.0, 0.9, (0.8, 0.95)), lost]}}
    page = tables.markdown(results, {"cpu": "a processor", "packages": {"torch": "1"}})
    assert "failed: ValueError: no such operator" in page
    assert (
        "| net | onnx | ours | 1,000 | 90.00 | +0.00 | 100.00 | equal | 1 | 0.50 (0.40 to 0.60) | 0.90 (0.80 to 0.95) |"
        in page
    )
    (heads, rules) = page.splitlines()[6:8] if page.splitlines()[6].startswith("| network") else page.splitlines()[8:10]
    assert heads.count("|") == rules.count("|")


def test_files_are_made_judged_and_timed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(models.get("tiny_resnet").build().state_dict(), tmp_path / "w.safetensors")

    def fails(subject: Any, path: Path) -> None:
        raise ValueError("this peer knows no residual networks")

    chosen = [c for c in contenders.CONTENDERS if c.name in ("onnx-float", "onnx-ours")]
    lost = contenders.Contender(name="onnx-lost", title="lost", runtime="onnx", side="peer", make=fails)
    monkeypatch.setattr(contenders, "CONTENDERS", (*chosen, lost))
    arguments = [
        "--network", f"tiny_resnet={tmp_path / 'w.safetensors'}", "--out", str(tmp_path / "out"), "--seconds", "0.2",
        "--json",
    ]  # fmt: skip
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    first, ours, peer = document["networks"]["tiny_resnet"]["files"]
    assert first["judged"]["agreement"] == 1.0 and first["timed"]["ratio_to_float_onnx"] == 1.0
    assert ours["judged"]["agreement"] > 0.9 and ours["judged"]["n"] == 540
    assert "knows no residual networks" in peer["error"]

    def never(*_: Any) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(contenders, "write", never)
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["networks"] == document["networks"]


def test_contenders_of_a_runtime_that_is_not_here_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept as failures, they would stand in the table of the machine that has it."""
    get = contenders.targets.get

    def without_litert(name: str) -> targets.Target:
        if name == "litert":
            raise targets.MissingBackend("not here")
        return get("onnx")

    monkeypatch.setattr(contenders.targets, "get", without_litert)
    runtimes = {contender.runtime for contender in contenders.installed()}
    assert runtimes == {"onnx", "xnnpack"}

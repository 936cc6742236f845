"""The script for a GPU, tried on the processor; a GPU itself has not been at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgewise.studies import gpu


def test_the_script_runs_and_writes_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        torch, "compile", lambda network: network
    )  # the compiler takes a minute, and wants a C++ compiler
    monkeypatch.setattr(gpu, "_COMPARED", 2)
    log = tmp_path / "LOG.md"
    log.write_text("# Log\n", encoding="utf-8")
    assert gpu.main(["resnet20", "--device", "cpu", "--batch", "8", "--steps", "2", "--log", str(log)]) == 0
    told = capsys.readouterr().out
    assert log.read_text(encoding="utf-8") == f"# Log\n\n{told}"
    assert "| fine-tuning | 100.0 % | 0 |" in told and "| int8 | 100.0 % | 0 |" in told
    assert "no GPU: the script alone is tried" in told


def test_a_compiler_that_fails_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(network: torch.nn.Module) -> torch.nn.Module:
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", refuse)
    ctx = gpu.noise_context("tiny_resnet", "cpu", tmp_path)
    speed, compiled = gpu._try_compiling(ctx.spec.build(), ctx, 4)
    assert speed > 0 and compiled == "no: RuntimeError: no C++ compiler"


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == gpu.NO_GPU
    assert "no GPU here" in capsys.readouterr().err

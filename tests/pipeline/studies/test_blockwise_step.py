"""A step of block-wise distillation in each of its ways: all learn the same, and the last is the run's own."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgewise.errors import RequestError
from edgewise.studies import blockwise_step
from edgewise.studies.blockwise_step import WAYS, Way, make_steps
from edgewise.studies.noise import noise_context


def test_every_way_makes_a_step(tmp_path: Path) -> None:
    ctx = noise_context("tiny_resnet", "cpu", tmp_path)
    with ExitStack() as stack:
        steps = make_steps(ctx, 4, stack)
        assert list(steps) == [way.name for way in WAYS]
        for step in steps.values():
            step()


def test_a_way_that_is_quicker_computes_the_same_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = noise_context("tiny_resnet", "cpu", tmp_path)
    image = torch.rand(4, *ctx.input_shape)
    monkeypatch.setattr(blockwise_step, "_draw_images", lambda *_: iter(image for _ in range(9)))
    losses: list[float] = []
    backward = torch.autograd.backward
    monkeypatch.setattr(torch.autograd, "backward", lambda loss: (losses.append(float(loss.detach())), backward(loss)))
    ways: list[Way] = [replace(way, ahead=False, precision="32-true") for way in WAYS[:4]]
    with ExitStack() as stack:
        for step in make_steps(ctx, 4, stack, ways).values():
            step()
    assert losses[0] > 0 and losses == pytest.approx([losses[0]] * 4, rel=1e-3)


def test_a_network_without_blocks_is_refused(tmp_path: Path) -> None:
    ctx = noise_context("lenet5", "cpu", tmp_path)
    with ExitStack() as stack, pytest.raises(RequestError, match="nothing of lenet5 can be taken out"):
        make_steps(ctx, 4, stack)


def test_the_table_names_every_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert blockwise_step.main(["tiny_resnet", "--batch", "4", "--seconds", "0.5"]) == 0
    told = capsys.readouterr().out
    assert all(way.name in told for way in WAYS) and "steps/s" in told

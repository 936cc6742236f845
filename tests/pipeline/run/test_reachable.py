"""Budgets that no plan can meet are refused before any work, and those that can be met are not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgewise import calib_data
from edgewise.errors import RequestError, StageError
from edgewise.network.architecture import Base, build, spec_of
from edgewise.recipe import Recipe
from edgewise.recipes import demo
from edgewise.run.job import probe_images, resolve_recipe
from edgewise.run.reachable import check_budgets
from edgewise.stage import Context, Stage
from edgewise.stages.finetune import Finetune
from edgewise.stages.fold import Fold
from edgewise.stages.prune import Prune
from edgewise.stages.prune.reach import measure_reach
from edgewise.stages.remove_blocks import RemoveBlocks
from edgewise.stages.separate import Separate
from edgewise.stages.training.settings import Training

DATA, SPEC = calib_data.load("digits"), spec_of("tiny_resnet")
TUNE = Finetune(training=Training(epochs=1, lr=0.1))


def recipe_of(*stages: Stage) -> Recipe:
    return dataclasses.replace(demo(), stages=stages, targets=("onnx",))


def check(*stages: Stage) -> None:
    network = build(Base("tiny_resnet", 10, 1)).eval()
    check_budgets(recipe_of(*stages), network, probe_images(DATA, SPEC), SPEC, DATA)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (Prune(macs=0.03), r"wanted 3.0% of the multiply-accumulates left; .* 3.7% are left. Keep more, or lower round_to"),
        (Prune(params=0.01), "of the parameters left"),
        (Prune(channels=0.05), "of the channels left"),
        (Prune(macs=0.2, min_layer=0.9), r"min_layer \(0.9\)"),
        (Prune(macs=0.4, round_to=64), r"round_to \(64\)"),
        (Prune(macs=0.02, steps=3), "multiply-accumulates"),
        (Prune(bytes=500), "wanted at most 500 bytes; a file holds"),
        (Prune(macs=0.5, keep=("nonesuch",)), "keep names layers that the network does not have"),
        (RemoveBlocks(count=9), r"wanted 9 blocks to go; \d can"),
        (RemoveBlocks(blocks=("nonesuch",)), "RemoveBlocks names nonesuch"),
    ],
)  # fmt: skip
def test_what_no_plan_can_meet(stage: Stage, words: str) -> None:
    for before in ((), (TUNE,), (Fold(),)):
        with pytest.raises(RequestError, match=words):
            check(*before, stage)


@pytest.mark.parametrize(
    "stages",
    [
        (Prune(macs=0.5),),
        (Prune(max_drop=0.01),),  # asks for as much as can go
        (Prune(latency=0.01),),  # times are known once they are measured
        (Prune(bytes=0.01),),
        (RemoveBlocks(count=1),),
        (Separate(), Prune(macs=0.03)),  # of a network that is not there yet
        (),
    ],
)
def test_what_may_come_to_a_good_end(stages: tuple[Stage, ...]) -> None:
    check(*stages)


@pytest.mark.parametrize("kind", ["macs", "params", "channels"])
def test_the_least_share_is_where_pruning_itself_gives_up(kind: str, tmp_path: Path) -> None:
    """Just above it a plan is found, just below it none: what is refused is what the stage would have refused."""
    network = build(Base("tiny_resnet", 10, 1)).eval()
    context = Context(spec=SPEC, data=DATA, scratch=tmp_path)
    whole, least = measure_reach(network, Prune(macs=0.5), context)
    below, above = (Prune(**{kind: least[kind] / whole[kind] * near}) for near in (0.99, 1.01))
    with pytest.raises(RequestError, match="are left"):
        check(below)
    with pytest.raises(StageError, match="are left"):
        below(network, context)
    check(above)
    above(network, context)


def test_it_is_told_in_the_plan_and_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("EDGEWISE_STORE", str(tmp_path / "store"))
    with pytest.raises(RequestError, match=r"prune: wanted 3\.0%"):
        resolve_recipe(recipe_of(Prune(macs=0.03), TUNE, Fold()), tmp_path / "out")
    assert not (tmp_path / "store").exists()

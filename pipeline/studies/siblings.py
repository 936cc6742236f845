"""A compressed network beside the smaller members of its family, which a user would take instead.

Both as files of the same runtime, every call in turn in one interleaved run, and on the same test images. A compressed
network is *dominated* by a sibling that is no slower and no less accurate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.errors import RequestError
from edgewise.measure.values import Difference
from edgewise.report.markdown import markdown_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgewise.run.job import Job
    from edgewise.targets import Runner

SECONDS_A_FILE = 2.0


@dataclass(frozen=True, kw_only=True)
class Against:
    """A compressed network held against a sibling."""

    point: str
    sibling: str
    top1: float
    sibling_top1: float
    n: int
    difference: Difference
    """Of top-1, the point's minus the sibling's, on the same images."""
    time_ratio: float
    """The point's time over the sibling's."""
    time_ci95: tuple[float, float]

    @property
    def verdict(self) -> str:
        """Who wins, and whether both intervals say so."""
        low, high = self.difference.ci95
        fast, slow = self.time_ratio <= 1, self.time_ratio >= 1
        if slow and self.difference.delta <= 0:
            is_proven = self.time_ci95[0] > 1 and high < 0
            return f"dominated by {self.sibling}" + _proof_words(is_proven)
        if fast and self.difference.delta >= 0:
            is_proven = self.time_ci95[1] < 1 and low > 0
            return f"dominates {self.sibling}" + _proof_words(is_proven)
        return "faster, less accurate" if fast else "slower, more accurate"


def _proof_words(proven: bool) -> str:
    return "" if proven else ", by the figures alone: an interval holds equality"


def parse_sibling(text: str) -> tuple[str, Path]:
    """Model and weights of "resnet20=weights.th"; raises RequestError for anything else."""
    model, _, weights = text.rpartition("=")
    if not model or not weights:
        raise RequestError(f"a sibling is MODEL=WEIGHTS, for example resnet20=resnet20.th, found {text!r}")
    if not Path(weights).is_file():
        raise RequestError(f"the weights of the sibling {model} are wanted in {weights}, and there is no such file")
    return model, Path(weights)


def compare_with_siblings(
    files: Mapping[str, Runner], siblings: Mapping[str, Runner], data: Any, spec: Any, threads: int
) -> list[Against]:
    """Every file against every sibling: ``data.test`` for accuracy, one interleaved run for time."""
    import torch

    from edgewise.measure.answers import compute_logits
    from edgewise.measure.latency import interleave_calls

    runners = {("point", name): run for name, run in files.items()} | {("sibling", n): r for n, r in siblings.items()}
    right = {
        who: (compute_logits(run, data.test, spec).argmax(1) == data.test.labels).numpy()
        for who, run in runners.items()
    }
    image = torch.rand(1, *data.shape, generator=torch.Generator().manual_seed(0))
    calls = {str(who): partial(run, image) for who, run in runners.items()}
    blocks = {
        who: samples.blocks
        for who, samples in interleave_calls(calls, seconds=SECONDS_A_FILE * len(calls), threads=threads).items()
    }
    return [
        judge_point(point, sibling, (right["point", point], right["sibling", sibling]),
              (blocks[str(("point", point))], blocks[str(("sibling", sibling))]))
        for point in files
        for sibling in siblings
    ]  # fmt: skip


def judge_point(
    point: str, sibling: str, right: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    times: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> Against:  # fmt: skip
    """From which images each got right [n], and its times [blocks]; the point's first, the sibling's second."""
    from edgewise.measure.statistics import paired_difference, ratio_interval

    ratio, interval = ratio_interval(*times)
    return Against(
        point=point, sibling=sibling, top1=float(right[0].mean()), sibling_top1=float(right[1].mean()), n=len(right[0]),
        difference=paired_difference(*right), time_ratio=ratio, time_ci95=interval,
    )  # fmt: skip


def sibling_files(wanted: Sequence[tuple[str, Path]], job: Job, folder: Path) -> dict[str, Runner]:
    """Each sibling, folded, as a float file of the job's declared runtime; raises RequestError for weights that do not fit."""
    import torch

    from edgewise.files.in_runtime import write_and_load
    from edgewise.network import architecture
    from edgewise.network.architecture import Base
    from edgewise.network.weights import load_weights
    from edgewise.stage import Context
    from edgewise.stages.fold import Fold

    files = {}
    for number, (model, weights) in enumerate(wanted):
        spec = architecture.spec_of(model)
        network = architecture.build(Base(model, len(job.data.classes), job.data.shape[0])).eval()
        load_weights(network, weights)
        ctx = Context(
            spec=spec, data=job.data, scratch=folder, threads=job.recipe.threads, runtime=job.recipe.runtime
        )  # fmt: skip
        image = torch.rand(1, *job.data.shape, generator=torch.Generator().manual_seed(0))
        files[model] = write_and_load(Fold()(network, ctx), image, folder / f"sibling-{number}", ctx)[0]
    return files


def markdown_of(comparisons: Sequence[Against]) -> list[str]:
    """A table, and a sentence on every point that is dominated."""
    if not comparisons:
        return []
    rows = [
        [
            a.point,
            f"{100 * a.top1:.2f}",
            f"{a.sibling}, {100 * a.sibling_top1:.2f}",
            f"{100 * a.difference.delta:+.2f} ({100 * a.difference.ci95[0]:+.2f} to {100 * a.difference.ci95[1]:+.2f})",
            f"{a.time_ratio:.3f} ({a.time_ci95[0]:.3f} to {a.time_ci95[1]:.3f})",
            a.verdict,
        ]
        for a in comparisons
    ]
    head = ("asked", "top-1 %", "sibling, its top-1 %", "points over it (95 %)", "time over its (95 %)", "so it is")
    findings = sorted({f"{a.point}: {a.verdict}." for a in comparisons if a.verdict.startswith("dominated")})
    lines = findings or ["No point is dominated by a smaller member of the family."]
    return ["", f"Beside the family's smaller members, files interleaved in one run (n = {comparisons[0].n:,}):", "",
            *markdown_table(head, rows), "", *lines]  # fmt: skip

"""The statistics behind the verdicts, on SciPy and statsmodels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edgewise.measure.calibration import calibration_of
from edgewise.measure.class_falls import class_falls
from edgewise.measure.paired import score_interval
from edgewise.measure.per_class import in_five
from edgewise.measure.soundness import correct_images, soundness_of
from edgewise.measure.values import Accuracy, Difference, Interval

LEVEL = 0.95


def judge_top1(correct: NDArray[np.bool_], baseline: NDArray[np.bool_]) -> Accuracy:
    """Top-1 of a model from which test images it got right, [n], beside the baseline's on the same images.

    The interval is Wilson's (1927); the difference is ``paired_difference``.
    """
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(int(correct.sum()), len(correct), alpha=1 - LEVEL, method="wilson")
    return Accuracy(
        top1=float(correct.mean()),
        n=len(correct),
        ci95=(float(low), float(high)),
        vs_baseline=paired_difference(correct, baseline),
    )


def accuracy_of(answers: Tensor, baseline: Tensor, labels: Tensor) -> Accuracy:
    """Top-1 of ``answers`` [n, classes] to images of the classes ``labels`` [n], beside the baseline's to the same images.

    The baseline's own where both are the same tensor. What ``accuracy`` tells, whether the answers are sound, which
    classes fell, and how top-5 and calibration changed.
    """
    ours, truth = answers.numpy(), labels.numpy()
    correct = correct_images(ours, truth)
    reference = correct if answers is baseline else correct_images(baseline.numpy(), truth)
    accuracy = judge_top1(correct, reference)
    return replace(
        accuracy,
        soundness=soundness_of(ours, truth),
        falls=class_falls(correct, reference, truth),
        top5_vs_baseline=_top5_difference(answers, baseline, labels),
        calibration=calibration_of(ours, ours if answers is baseline else baseline.numpy(), truth),
    )


def _top5_difference(answers: Tensor, baseline: Tensor, labels: Tensor) -> Difference | None:
    ours = in_five(answers, labels)
    theirs = ours if answers is baseline else in_five(baseline, labels)
    return None if ours is None or theirs is None else paired_difference(ours, theirs)


def divergence(answers: Tensor, reference: Tensor) -> float:
    """Mean Kullback-Leibler divergence in nats of softmax(answers) from softmax(reference), both logits [N, classes]."""
    own, target = F.log_softmax(answers.double(), 1), F.log_softmax(reference.double(), 1)
    return max(0.0, float(F.kl_div(own, target, reduction="batchmean", log_target=True)))


def paired_difference(correct: NDArray[np.bool_], baseline: NDArray[np.bool_]) -> Difference:
    """Accuracy minus the baseline's on the same n images; of the baseline to itself 0, without spread.

    The interval is Tango's score interval for paired proportions (1998); the p-value is McNemar's exact test of equal
    accuracy (1947).
    """
    from statsmodels.stats.contingency_tables import mcnemar

    if correct is baseline:
        return Difference(delta=0.0, ci95=(0.0, 0.0), p_value=1.0)
    n = len(correct)
    gains, losses = int((correct & ~baseline).sum()), int((~correct & baseline).sum())
    both, neither = int((correct & baseline).sum()), int((~correct & ~baseline).sum())
    p_value = float(mcnemar([[both, losses], [gains, neither]], exact=True).pvalue) if gains + losses else 1.0
    return Difference(
        delta=(gains - losses) / n,
        ci95=score_interval(gains, losses, n),
        p_value=min(1.0, p_value),
        gained=gains,
        lost=losses,
    )


def provable_fall(n: int, changed: float) -> float:
    """The smallest fall of top-1 that ``n`` paired images exclude where the share ``changed`` of them turned from right
    to wrong or back, as many one way as the other: the lower end of ``paired_difference``'s interval."""
    each = changed * n / 2
    return -score_interval(each, each, n)[0]


def images_to_prove(limit: float, changed: float) -> int | None:
    """About how many test images exclude a fall of ``limit``, two digits of it; None for a limit of nothing."""
    if limit <= 0:
        return None
    low, high = 1, 2
    while provable_fall(high, changed) > limit:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if provable_fall(middle, changed) > limit else (low, middle)
    step: int = 10 ** max(0, len(str(high)) - 2)
    return math.ceil(high / step) * step


def ratio_interval(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> tuple[float, Interval]:
    """Median of the paired ratios ours/theirs of interleaved times [blocks], with its bootstrap interval; of times to
    themselves 1, without spread.

    A percentile bootstrap over blocks (Efron and Tibshirani 1993, chapter 13): neighbouring calls share the machine's
    state, so that blocks and not calls are resampled.
    """
    from scipy.stats import bootstrap

    ratios = ours / theirs
    if np.ptp(ratios) == 0:
        return float(ratios[0]), (float(ratios[0]), float(ratios[0]))
    result = bootstrap(
        (ratios,),
        np.median,
        confidence_level=LEVEL,
        n_resamples=2_000,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    interval = result.confidence_interval
    return float(np.median(ratios)), (float(interval.low), float(interval.high))

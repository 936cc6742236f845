"""A file's answers against its network's: ties, differences, noise, on numbers worked out by hand."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from edgewise.measure.agreement import NOISE_STEPS, TIE_STEPS, compare_answers, differing_images, grid_step, rounding_of
from edgewise.verify.gates import Limits, on_agreement

STEP = 0.05
RNG = np.random.default_rng(0)


def on_grid(n: int = 600, classes: int = 10, seed: int = 0) -> np.ndarray:
    """Logits in whole steps, the largest well ahead of the others but for a few images."""
    rng = np.random.default_rng(seed)
    steps = rng.integers(-60, 20, (n, classes))
    steps[np.arange(n), rng.integers(0, classes, n)] = rng.integers(60, 110, n)
    return (steps * STEP).astype(np.float32)


def test_it_needs_no_torch_and_no_statistics_library() -> None:
    code = "import sys, edgewise.measure.agreement; print([m for m in ('torch', 'scipy', 'statsmodels') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_step_of_a_grid_is_read_from_its_values() -> None:
    assert grid_step(on_grid()) == pytest.approx(STEP, rel=1e-5)
    assert grid_step(np.array([0.0, 3.0, 9.0])) == pytest.approx(3.0)
    assert grid_step(np.array([[1.0, 1.0]])) is None
    assert grid_step(RNG.normal(size=(50, 10))) is None
    assert grid_step(np.arange(300) * STEP) is None  # more values than eight bits have
    assert grid_step(np.array([0.0, 1.0, 2.5])) is None


def test_what_rounding_explains_in_each_precision() -> None:
    logits = on_grid()
    assert rounding_of(logits, "int8").margin == pytest.approx(TIE_STEPS * STEP, rel=1e-5)
    assert rounding_of(logits, "int8").unit_name == "steps"
    spread = float(np.ptp(logits))
    for precision, share in (("float32", 1e-4), ("float16", 0.01)):
        found = rounding_of(logits, precision)
        assert found.margin == pytest.approx(share * spread) and found.unit == pytest.approx(float(logits.std()))
    off_grid = RNG.normal(size=(100, 10))
    assert rounding_of(off_grid, "int8").margin == pytest.approx(0.02 * float(np.ptp(off_grid)))


def test_the_margin_of_a_tie_follows_from_the_noise_that_is_explained() -> None:
    """Two logits with independent noise of so many steps change places beyond the margin in one of 740 pairs at most."""
    rng = np.random.default_rng(2)
    apart = rng.normal(0, NOISE_STEPS, 400_000) - rng.normal(0, NOISE_STEPS, 400_000)
    assert int(TIE_STEPS) == 8
    assert (apart > TIE_STEPS).mean() == pytest.approx(1 / 740, rel=0.1)


def test_another_class_is_a_tie_up_to_the_margin_and_differs_beyond() -> None:
    wanted = on_grid()
    found = wanted.copy()
    for image, apart in ((0, 0), (1, 3), (2, int(TIE_STEPS)), (3, int(TIE_STEPS) + 1), (4, 40)):
        first = int(wanted[image].argmax())
        second = (first + 1) % 10
        wanted[image, second] = wanted[image, first] - apart * STEP
        found[image] = wanted[image]
        found[image, second] = wanted[image, first] + STEP
    seen = compare_answers(found, wanted, "int8")
    # Image 0: two equal logits, of which the first place wins; with second before first PyTorch's class is already that.
    assert seen.ties + seen.differ == 5 - int(int(wanted[0].argmax()) == int(found[0].argmax()))
    assert seen.differ == 2
    assert differing_images(found, wanted, seen.margin).tolist() == [3, 4]
    assert seen.top1 == pytest.approx(1 - (seen.ties + 2) / 600)


def test_noise_is_the_root_mean_square_in_steps() -> None:
    wanted = on_grid()
    found = wanted + STEP * np.tile([1, -1], 5)
    seen = compare_answers(found, wanted, "int8")
    assert seen.noise == pytest.approx(1.0, rel=1e-4) and seen.noise_unit == "steps"
    assert seen.max_abs == pytest.approx(STEP, rel=1e-4)
    signal = float(np.mean(wanted.astype(float) ** 2))
    assert seen.sqnr_db == pytest.approx(10 * math.log10(signal / STEP**2), abs=0.01)


def test_equal_answers() -> None:
    seen = compare_answers(on_grid(), on_grid(), "int8")
    assert (seen.top1, seen.ties, seen.differ, seen.noise, seen.sqnr_db) == (1.0, 0, 0, 0.0, None)
    assert on_agreement(seen, Limits()).verdict == "pass"


def test_roundings_at_ties_pass_and_a_moved_scale_fails() -> None:
    wanted = on_grid()
    rounded = wanted + STEP * np.random.default_rng(1).integers(-2, 3, wanted.shape)
    assert on_agreement(compare_answers(rounded, wanted, "int8"), Limits()).verdict == "pass"
    scaled = compare_answers(wanted * 1.25, wanted, "int8")
    assert scaled.differ == scaled.ties == 0  # not one class changes
    assert scaled.noise is not None and scaled.noise > NOISE_STEPS
    assert on_agreement(scaled, Limits()).verdict == "fail"


def test_answers_that_are_no_numbers_differ() -> None:
    wanted, found = on_grid(), on_grid()
    found[5, 2] = np.nan
    seen = compare_answers(found, wanted, "int8")
    assert (seen.not_finite, seen.differ) == (1, 1) and seen.noise == 0.0
    assert on_agreement(seen, Limits()).verdict == "fail"
    nothing = compare_answers(np.full_like(wanted, np.nan), wanted, "float32")
    assert (nothing.not_finite, nothing.differ, nothing.max_abs, nothing.sqnr_db) == (600, 600, 0.0, None)


def test_a_network_of_nan_agrees_with_nothing() -> None:
    nothing = np.full((600, 10), np.nan, dtype=np.float32)
    assert on_agreement(compare_answers(nothing, nothing, "float32"), Limits()).verdict == "fail"


def test_probabilities_are_held_against_the_network_s_own() -> None:
    wanted = RNG.normal(size=(600, 10)) * 4
    shares = np.exp(wanted) / np.exp(wanted).sum(axis=1, keepdims=True)
    seen = compare_answers(shares, wanted, "float32", softmax=True)
    assert (seen.top1, seen.differ) == (1.0, 0) and seen.max_abs < 1e-12 and seen.noise is None
    flipped = shares[:, ::-1]
    assert on_agreement(compare_answers(flipped, wanted, "float32", softmax=True), Limits()).verdict == "fail"


def test_answers_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"wanted answers of the shape \(600, 10\), found \(600, 9\)"):
        compare_answers(on_grid()[:, :9], on_grid(), "int8")

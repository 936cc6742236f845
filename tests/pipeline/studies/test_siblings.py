"""A compressed network beside its smaller siblings: who wins, and whether it is proven."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgewise.errors import RequestError
from edgewise.studies.siblings import judge_point, markdown_of, parse_sibling


def right(count: int) -> np.ndarray:
    """The first ``count`` of 1,000 images."""
    return np.arange(1000) < count


def times(center: float) -> np.ndarray:
    return center * (1 + 0.01 * np.sin(np.arange(30)))


@pytest.mark.parametrize(
    ("ours", "time", "verdict"),
    [
        (950, 0.8, "dominates resnet20"),
        (850, 1.2, "dominated by resnet20"),
        (899, 1.2, "dominated by resnet20, by the figures alone: an interval holds equality"),
        (901, 0.8, "dominates resnet20, by the figures alone: an interval holds equality"),
        (950, 1.2, "slower, more accurate"),
        (850, 0.8, "faster, less accurate"),
    ],
)
def test_who_wins(ours: int, time: float, verdict: str) -> None:
    found = judge_point("half", "resnet20", (right(ours), right(900)), (times(time), times(1.0)))
    assert found.verdict == verdict
    assert found.difference.delta == pytest.approx((ours - 900) / 1000) and found.time_ratio == pytest.approx(time)
    assert (found.top1, found.sibling_top1, found.n) == (ours / 1000, 0.9, 1000)


def test_a_curve_that_is_dominated_says_so() -> None:
    lost = judge_point("half", "resnet20", (right(850), right(900)), (times(1.2), times(1.0)))
    won = judge_point("third", "resnet20", (right(950), right(900)), (times(0.8), times(1.0)))
    text = "\n".join(markdown_of([lost, won]))
    assert "half: dominated by resnet20." in text and "third: dominated" not in text
    assert "| half | 85.00 | resnet20, 90.00 | -5.00 (" in text and "n = 1,000" in text
    assert "No point is dominated" in "\n".join(markdown_of([won]))
    assert markdown_of([]) == []


def test_a_sibling_is_a_model_and_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.th"
    path.touch()
    assert parse_sibling(f"resnet20={path}") == ("resnet20", path)
    for text, message in (("resnet20", "MODEL=WEIGHTS"), ("=x", "MODEL=WEIGHTS"), ("resnet20=none.th", "no such file")):
        with pytest.raises(RequestError, match=message):
            parse_sibling(text)

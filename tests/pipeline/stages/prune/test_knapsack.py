"""Which widths a time budget chooses, on latency tables that are written by hand."""

from __future__ import annotations

import pytest
import torch

from edgewise.errors import StageError
from edgewise.stages.prune import plan
from edgewise.stages.prune.knapsack import by_importance, lightest_counts
from edgewise.stages.prune.latency_table import Kind, Profile, Table, Timed, base_of, width_ladder


def kind(inputs: int, outputs: int) -> Kind:
    return Kind(
        type="Linear", settings='{"bias": true}', places=(), inputs=inputs, outputs=outputs, grouping="dense", groups=1,
        sides=("in", "out"),
    )  # fmt: skip


def table(*steps: dict[int, float]) -> Table:
    """One layer a group; ``steps`` give its time by the number of its outputs."""
    layers = tuple(
        Timed(f"layer{g}", kind(1, max(times)), Profile({1: times[max(times)]}, times), 1, (), ((g, 1),))
        for g, times in enumerate(steps)
    )
    return Table(layers, {g: (layer,) for g, layer in enumerate(layers)})


EVEN = [0.0, 1.0, 2.0, 3.0, 4.0]
SMOOTH = {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}


def test_time_is_saved_where_it_costs_least() -> None:
    # Both lose 1 ms a channel; the second's channels cost a tenth.
    cheap = [cost / 10 for cost in EVEN]
    found = lightest_counts(table(SMOOTH, SMOOTH), [[1, 2, 3]] * 2, [EVEN, cheap], 6.0)
    assert found == (0, 2)


def test_a_width_at_which_the_kernels_gain_nothing_is_stepped_over() -> None:
    # Three channels take as long as four, and one as long as two.
    cliff = {1: 2.0, 2: 2.0, 3: 4.0, 4: 4.0}
    assert lightest_counts(table(cliff), [[1, 2, 3]], [EVEN], 3.9) == (2,)
    assert lightest_counts(table(cliff), [[1, 2, 3]], [EVEN], 2.0) == (2,)


def test_what_was_taken_in_vain_is_given_back() -> None:
    # 3 channels of the first save most for their price, then the second must lose all its three: 4 + 4 -> 3.5 + 1.
    first, second = {1: 3.5, 2: 3.5, 3: 3.5, 4: 4.0}, {1: 1.0, 2: 4.0, 3: 4.0, 4: 4.0}
    found = lightest_counts(table(first, second), [[1, 2, 3]] * 2, [EVEN, [10 * cost for cost in EVEN]], 5.0)
    assert found == (0, 3), "the first group's channel is back: 4 + 1 = 5 ms"


def test_a_move_is_not_paid_for_time_beyond_the_target() -> None:
    # Saving 1 ms is wanted. The first saves 3 ms at once for 2.0, the second 1 ms for 1.0.
    found = lightest_counts(table({1: 1.0, 4: 4.0}, SMOOTH), [[3], [1]], [[0, 0, 0, 2.0, 0], EVEN], 7.0)
    assert found == (0, 1)


def test_a_time_out_of_reach_says_how_far_it_gets() -> None:
    with pytest.raises(StageError, match=r"wanted 10\.0% .* 50\.0% are left.*min_layer"):
        lightest_counts(table(SMOOTH), [[1, 2]], [EVEN], 0.4)


def test_importance_adds_up_from_the_least() -> None:
    assert by_importance([torch.tensor([3.0, 1.0, 2.0])]) == [[0.0, 1.0, 3.0, 6.0]]


def test_widths_lie_at_equal_distances() -> None:
    assert width_ladder(64, 8) == [8, 16, 24, 32, 40, 48, 56, 64]
    assert width_ladder(3, 8) == [1, 2, 3]
    assert width_ladder(24, 3, unit=4) == [8, 16, 24]


def test_a_profile_multiplies_what_two_widths_save_above_the_base() -> None:
    # 2 ms for the call and 8 ms of work; half the inputs leave half of the work, a quarter of the outputs a quarter.
    profile = Profile({4: 6.0, 8: 10.0}, {2: 4.0, 8: 10.0}, base=2.0)
    assert profile.ms(8, 8) == 10.0
    assert profile.ms(4, 2) == pytest.approx(2 + 8 / 2 / 4)
    assert profile.ms(6, 8) == pytest.approx(8.0)
    assert base_of(Profile(profile.inputs, profile.outputs), corner=3.0) == pytest.approx(2.0)


def test_a_base_is_never_more_than_the_shortest_time() -> None:
    assert base_of(Profile({4: 6.0, 8: 10.0}, {2: 4.0, 8: 10.0}), corner=0.5) == 0.0
    assert base_of(Profile({8: 10.0}, {2: 4.0, 8: 10.0}), corner=4.0) == 0.0


def test_of_many_moves_of_one_price_the_one_that_gets_there_is_found() -> None:
    # Twelve layers lose the same share each; a clock sees the first of them alone.
    moves = [plan.Move(group, 1, 0.5) for group in range(12)]
    assert plan.meet_budget(moves, 12, lambda counts: 1 - 0.5 * counts[0], 0.5) == (1, *[0] * 11)


def test_the_last_move_ends_closest_below() -> None:
    # Of what may come next, the second group's 0.3 reaches 0.7, nearer to 0.75 than the first group's 0.5.
    moves = [plan.Move(0, 1, 0.1), plan.Move(1, 1, 0.2)]
    assert plan.meet_budget(moves, 2, lambda counts: 1 - 0.5 * counts[0] - 0.3 * counts[1], 0.75) == (0, 1)

"""How alarms are counted: over all comparisons, and over those that nothing disturbed."""

from __future__ import annotations

from edgewise.measure.conditions import Conditions
from edgewise.studies.false_alarms import Rate, Timed, _rates


def timed(low: float, high: float, cpu_share: float = 1.0) -> Timed:
    conditions = Conditions(cpu_share=cpu_share, clock_change=0.0, drift=0.0, outliers=0.0)
    return Timed(ratio=(low + high) / 2, interval=(low, high), p50_ms=1.0, conditions=conditions)


def counted(rates: list[Rate]) -> dict[tuple[str, str], tuple[int, int]]:
    return {(rate.name, rate.method): (rate.alarms, rate.trials) for rate in rates}


def test_a_file_that_is_certainly_but_hardly_slower_than_itself_is_no_alarm() -> None:
    assert not timed(1.005, 1.01).fails(1.0) and timed(1.03, 1.04).fails(1.0)
    assert timed(1.005, 1.01).word == "cannot tell" and timed(1.03, 1.04).word == "slower"
    assert not timed(1.03, 1.04, cpu_share=0.5).fails(1.0), "others used the processor"


def test_alarms_are_counted_over_all_and_over_what_was_undisturbed() -> None:
    some = [timed(1.03, 1.05), timed(0.9, 0.95), timed(0.99, 1.01), timed(1.03, 1.05, cpu_share=0.5)]
    found = counted(list(_rates("x", some, "false alarms")))
    assert found == {
        ("x", "faster"): (1, 4), ("x", "slower"): (1, 4), ("x", "latency gate, 1 allowed"): (1, 4),
        ("x, undisturbed", "faster"): (1, 3), ("x, undisturbed", "slower"): (1, 3),
        ("x, undisturbed", "latency gate, 1 allowed"): (1, 3),
    }  # fmt: skip
    assert set(counted(list(_rates("x", some[:1], "power")))) == {("x", "slower"), ("x", "latency gate, 1 allowed")}


def test_a_rate_above_what_is_stated_does_not_fit() -> None:
    rate = Rate(name="x", alarms=16, trials=200, wanted="false alarms", method="m")
    assert rate.interval[0] > 0.04 and rate.fits, "not certainly above 5 %"
    assert not Rate(name="x", alarms=20, trials=200, wanted="false alarms", method="m").fits
    assert Rate(name="x", alarms=0, trials=200, wanted="power", method="m").fits

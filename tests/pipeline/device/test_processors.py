"""Which processors a measurement takes: the fastest, where they differ, and it says which."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgewise.device.runner import system


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight processors: four slow ones first, as a phone counts them, then three faster ones and one of the fastest."""
    for cpu, (capacity, clock) in enumerate([(250, 1_800_000)] * 4 + [(760, 2_400_000)] * 3 + [(1024, 3_000_000)]):
        folder = tmp_path / f"cpu{cpu}"
        (folder / "cpufreq").mkdir(parents=True)
        (folder / "cpu_capacity").write_text(f"{capacity}\n")
        (folder / "cpufreq/cpuinfo_max_freq").write_text(f"{clock}\n")
    monkeypatch.setattr(system, "_CPUS", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("pin", "threads", "wanted"),
    [
        (None, 1, [7]),
        (None, 3, [7, 4, 5]),
        (None, 8, [7, 4, 5, 6, 0, 1, 2, 3]),
        ("big", 2, [7]),
        ("little", 2, [0, 1]),
        ("2,4-5", 1, [2, 4, 5]),
    ],
)
def test_the_fastest_processors_are_the_default(phone: Path, pin: str | None, threads: int, wanted: list[int]) -> None:
    assert system.choose(pin, threads) == wanted


def test_without_capacities_the_clocks_decide(phone: Path) -> None:
    (phone / "cpu3/cpu_capacity").unlink()
    (phone / "cpu5/cpufreq/cpuinfo_max_freq").write_text("3200000\n")
    assert system.choose(None, 2) == [5, 7]


def test_where_one_tells_nothing_the_first_are_taken(phone: Path) -> None:
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        (phone / "cpu3" / name).unlink()
    assert system.choose(None, 2) == [0, 1]
    with pytest.raises(ValueError, match="do not differ in speed"):
        system.choose("big", 1)


def test_processors_that_are_not_to_be_used_are_not_the_fastest(phone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5})
    assert system.choose(None, 1) == [5] and system.choose("big", 1) == [5]


def test_two_of_one_core_are_taken_last(phone: Path) -> None:
    for cpu in (6, 7):
        (phone / f"cpu{cpu}/topology").mkdir()
        (phone / f"cpu{cpu}/topology/thread_siblings_list").write_text("6-7\n")
    assert system.choose(None, 8)[-1] == 7


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ([7], "on processor 7, of the fastest"),
        ([0, 1], "on processors 0, 1, not of the fastest"),
        ([], "on processors that it cannot choose"),
    ],
)
def test_the_choice_is_told(phone: Path, chosen: list[int], words: str) -> None:
    assert system.describe_choice(chosen, range(8)) == words


def test_where_all_are_alike_their_speed_is_not_told(phone: Path) -> None:
    assert system.describe_choice([1], [0, 1, 2]) == "on processor 1"

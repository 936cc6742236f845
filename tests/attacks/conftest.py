"""Attacks are counted: how many were tried, how many were caught, and none may be lost.

``EDGEWISE_ATTACKS=all`` tries many more of each kind, and ``EDGEWISE_ATTACKS_TABLE=FILE`` writes the table into a Markdown
file, between its two marks; lines of kinds that were not tried stay.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Protocol

import pytest

MARKS = ("<!-- attacks -->\n", "<!-- end of attacks -->\n")
_COUNTS: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))


class Tally(Protocol):
    def __call__(self, kind: str, outcome: str = "caught") -> None: ...


@pytest.fixture(scope="session")
def tally() -> Tally:
    """Counts one trial of a kind of attack: ``caught``, ``harmless`` (nothing that matters changed), or ``lost``."""

    def count(kind: str, outcome: str = "caught") -> None:
        _COUNTS[kind][outcome] += 1

    return count


@pytest.fixture(scope="session")
def many() -> bool:
    """Whether every attack is tried, not the share that fits into every test run."""
    return os.environ.get("EDGEWISE_ATTACKS") == "all"


OUTCOMES = ("caught", "harmless", "lost")


def table(before: str = "") -> str:
    """Markdown: one line a kind of attack. ``before``: an earlier table, whose lines of kinds not tried now are kept."""
    counts = _read(before) | {kind: tuple(found[name] for name in OUTCOMES) for kind, found in _COUNTS.items()}
    lines = ["| attack | trials | caught | harmless | lost |", "|---|---:|---:|---:|---:|"]
    for kind, numbers in sorted(counts.items()):
        lines.append(f"| {kind} | {' | '.join(f'{n:,}' for n in (sum(numbers), *numbers))} |")
    total = [sum(numbers[place] for numbers in counts.values()) for place in range(len(OUTCOMES))]
    lines.append(f"| **all** | {' | '.join(f'**{n:,}**' for n in (sum(total), *total))} |")
    return "\n".join(lines) + "\n"


def _read(text: str) -> dict[str, tuple[int, ...]]:
    found = {}
    for line in text.splitlines()[2:]:
        kind, *numbers = (cell.strip() for cell in line.strip("|").split("|"))
        if not kind.startswith("**"):
            found[kind] = tuple(int(number.replace(",", "")) for number in numbers[1:])
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _COUNTS:
        return
    terminalreporter.write(table())
    if place := os.environ.get("EDGEWISE_ATTACKS_TABLE"):
        path = Path(place)
        before, rest = path.read_text(encoding="utf-8").split(MARKS[0])
        kept, after = rest.split(MARKS[1])
        path.write_text(before + MARKS[0] + table(kept) + MARKS[1] + after, encoding="utf-8")

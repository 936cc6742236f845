"""Attacks are counted: how many were tried, how many were caught, and none may be lost.

``EDGEWISE_ATTACKS=all`` tries many more of each kind, and ``EDGEWISE_ATTACKS_TABLE=FILE`` writes the table into a Markdown
file, between its two marks.
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


def table() -> str:
    """Markdown: one line a kind of attack."""
    lines = ["| attack | trials | caught | harmless | lost |", "|---|---:|---:|---:|---:|"]
    for kind, found in sorted(_COUNTS.items()):
        numbers = (sum(found.values()), found["caught"], found["harmless"], found["lost"])
        lines.append(f"| {kind} | {' | '.join(f'{n:,}' for n in numbers)} |")
    total = [sum(found[name] for found in _COUNTS.values()) for name in ("caught", "harmless", "lost")]
    lines.append(f"| **all** | {' | '.join(f'**{n:,}**' for n in (sum(total), *total))} |")
    return "\n".join(lines) + "\n"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _COUNTS:
        return
    terminalreporter.write(table())
    if place := os.environ.get("EDGEWISE_ATTACKS_TABLE"):
        path = Path(place)
        before, after = (
            path.read_text(encoding="utf-8").split(MARKS[0])[0],
            path.read_text(encoding="utf-8").split(MARKS[1])[1],
        )
        path.write_text(before + MARKS[0] + table() + MARKS[1] + after, encoding="utf-8")

"""A plan that survives a kill: one that rests on a clock must not come out differently when its step goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pipeline.rows import decode
from pipeline.separate.plan import Candidate
from pipeline.store import write_whole


def kept_plan(folder: Path, subject: str, make: Callable[[], tuple[Candidate, ...]]) -> tuple[Candidate, ...]:
    """The plan for ``subject`` (a digest) that ``folder`` holds; where there is none it is made and kept there."""
    path = folder / f"plan-{subject[:16]}.json"
    if path.is_file():
        return tuple(decode(Candidate, entry, "plan") for entry in json.loads(path.read_text(encoding="utf-8")))
    plan = make()
    write_whole(path, json.dumps([candidate.to_json() for candidate in plan]).encode())
    return plan

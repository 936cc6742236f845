"""The processes that lower, when the run they belong to fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from edgewise.files import workers

SCRIPT = """
import multiprocessing
from edgewise.files import workers

def hold() -> None:
    global lock
    lock = multiprocessing.RLock()  # as progress bars of libraries do

if __name__ == "__main__":
    with workers.start_workers(1) as pool:
        pool.submit(hold).result()
        raise ValueError("nothing can be removed")
"""


def test_an_error_ends_them_without_a_warning(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    known = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=known, timeout=120)
    assert done.returncode == 1
    assert "nothing can be removed" in done.stderr and "leaked" not in done.stderr


def test_runs_that_share_their_workers_take_the_same_and_new_ones_where_those_are_broken() -> None:
    with workers.share_workers():
        with workers.start_workers() as first, workers.start_workers() as second:
            assert first is second
        first._broken = "a file took a process with it"  # type: ignore[attr-defined]
        with workers.start_workers() as third:
            assert third is not first
    with workers.start_workers() as alone:
        assert alone is not third

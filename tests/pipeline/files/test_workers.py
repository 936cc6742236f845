"""The processes that lower, when the run they belong to fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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

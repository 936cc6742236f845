"""A search in a real PostgreSQL: two workers in processes of their own, each with its own store, one folder shared.

Debian's package ``postgresql`` brings the server; without it, or without a driver, these skip.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

optuna = pytest.importorskip("optuna")
pytest.importorskip("psycopg", reason="psycopg, PostgreSQL's driver, is not installed")
pytestmark = pytest.mark.slow

SPACE = (
    (Path(__file__).parent / "test_command.py")
    .read_text(encoding="utf-8")
    .partition('SPACE = """')[2]
    .partition('"""')[0]
)
TRIALS = 4


def find_program(name: str) -> str | None:
    """A program of PostgreSQL: on the path, or where Debian puts it."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(installed[-1]) if installed else None)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server of this module's own."""
    programs = {name: find_program(name) for name in ("initdb", "postgres")}
    if missing := [name for name, path in programs.items() if path is None]:
        pytest.skip(f"{' and '.join(missing)} of PostgreSQL not installed (Debian's package postgresql)")
    user = None
    if os.getuid() == 0:  # the server refuses to run as root
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = next((name for name in ("postgres", "nobody") if name in names), None)
        if user is None:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")
    folder = Path(tempfile.mkdtemp(prefix="edgewise-pg-"))
    if user is not None:
        shutil.chown(folder, user)
    data = folder / "data"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = subprocess.run(
        [str(programs["initdb"]), "-D", str(data), "-U", "searcher", "-A", "trust", "--no-sync"],
        user=user, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    process = subprocess.Popen(
        [str(programs["postgres"]), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder), "-F"],
        user=user, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"postgresql://searcher@127.0.0.1:{port}/postgres"
    try:
        wait_for(address)
        yield address
    finally:
        process.send_signal(signal.SIGINT)  # a fast shutdown
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(address: str) -> None:
    import psycopg

    end = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(address, connect_timeout=5).close()
            return
        except psycopg.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def start(folder: Path, store: str, address: str, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "edgewise",
        "search",
        "space.py:small",
        "--storage",
        address,
        "--out",
        "shared",
        *more,
    ]
    environment = os.environ | {"EDGEWISE_STORE": str(folder / store), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def trials_of(address: str) -> list[Any]:
    """What the study holds; nothing where it is not made yet."""
    url = address.replace("postgresql://", "postgresql+psycopg://")
    try:
        return list(optuna.load_study(study_name="small", storage=url).get_trials(deepcopy=False))
    except KeyError:
        return []


def test_two_workers_with_stores_of_their_own_and_one_that_is_killed(server: str, tmp_path: Path) -> None:
    (tmp_path / "space.py").write_text(SPACE, encoding="utf-8")
    first = start(tmp_path, "store-a", server, "--trials", str(TRIALS))
    killed = start(tmp_path, "store-b", server, "--worker")
    end = time.monotonic() + 900
    while not any(t.user_attrs.get("edgewise:worker", {}).get("pid") == killed.pid for t in trials_of(server)):
        assert time.monotonic() < end and first.poll() is None, first.communicate()[1]
        time.sleep(0.5)
    killed.kill()
    killed.communicate()
    second = start(tmp_path, "store-b", server, "--worker")
    for process in (first, second):
        _, told = process.communicate(timeout=max(1.0, end - time.monotonic()))
        assert process.returncode == 0, told

    trials = trials_of(server)
    ended = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    assert len(ended) == TRIALS
    assert max(Counter(trial.user_attrs["edgewise:digest"] for trial in ended).values()) == 1
    left = [trial for trial in trials if trial.user_attrs.get("edgewise:worker", {}).get("pid") == killed.pid]
    assert [trial.state.name for trial in left] == ["FAIL"]
    assert any(trial.system_attrs.get("failed_trial") == left[0].number for trial in trials)  # its values came up again
    document = json.loads((tmp_path / "shared" / "report.json").read_text(encoding="utf-8"))
    assert document["finished"] == TRIALS and document["best"]["looked_at"] == TRIALS
    assert all(
        (tmp_path / "shared" / trial["folder"] / "report.html").is_file()
        for trial in document["trials"]
        if trial["fate"] == "whole"
    )


def test_another_search_under_the_same_name_is_refused(server: str, tmp_path: Path) -> None:
    (tmp_path / "space.py").write_text(SPACE.replace("epochs=1", "epochs=3"), encoding="utf-8")
    before = len(trials_of(server))
    other = start(tmp_path, "store", server, "--trials", "1")
    _, told = other.communicate(timeout=300)
    assert other.returncode == 2 and "holds the trials of another search" in told
    assert before and len(trials_of(server)) == before

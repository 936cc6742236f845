"""Runs that are killed at every kind of write: the same command goes on, ends with the same bytes, and leaves no scrap."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
import edgewise
from edgewise.stages.training.augment import Augment

PLAIN = Augment(crop=0, flip=False)


def short():
    how = edgewise.Training(epochs=2, lr=0.05, batch_size=256, augment=PLAIN)
    return edgewise.Recipe(
        name="short",
        model="tiny_resnet",
        data="digits",
        baseline=edgewise.Train(training=how),
        stages=(edgewise.Prune(channels=0.6), edgewise.Fold()),
        targets=TARGETS,
        limits=edgewise.Limits(max_drop=1, max_latency_ratio=1000, max_step_ratio=1000, same_work_ratio=1000, min_agreement=0),
    )
"""

RUN = '''
"""Runs the command line and kills the process at the write that is named: ``kind`` the how-manieth."""
import os
import signal
import sys

kind, count = sys.argv[1], int(sys.argv[2])
seen = 0


def writes(event, arguments):
    if event == "open":
        return isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR) != 0
    return event == kind


def hook(event, arguments):
    global seen
    if event == kind and writes(event, arguments):
        seen += 1
        if seen == count:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":  # a worker that is started anew imports this file
    if count:
        sys.addaudithook(hook)
    from edgewise.__main__ import main

    sys.exit(main(sys.argv[3:]))
'''

KILLS = {
    "open": range(1, 66, 7), "os.rename": range(1, 16, 2), "os.mkdir": range(1, 51, 7), "os.chmod": range(1, 5),
    "os.remove": range(1, 4), "shutil.copyfile": range(1, 5), "shutil.rmtree": range(1, 28, 5), "os.utime": range(1, 22, 4),
    "fcntl.flock": range(1, 38, 6),
}  # fmt: skip
"""Audit events of Python by which anything gets onto the disk, goes from it or is locked there -> at which of them a run is
killed. One of which every step is kept already still comes to so many of all but ``os.chmod``."""


class Folder:
    """Runs in a folder of its own, with its own store."""

    def __init__(self, root: Path, name: str, targets: tuple[str, ...]) -> None:
        self.root, self.out, self.store = root, root / name / "out", root / name / "store"
        self.temporary = root / name / "tmp"
        (root / "run.py").write_text(RUN, encoding="utf-8")
        (root / "recipe.py").write_text(RECIPE.replace("TARGETS", repr(targets)), encoding="utf-8")

    def start(self, kind: str = "open", count: int = 0) -> subprocess.Popen[bytes]:
        self.temporary.mkdir(parents=True, exist_ok=True)
        own = {"EDGEWISE_STORE": str(self.store), "TMPDIR": str(self.temporary)}
        environment = os.environ | own | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        recipe = f"{self.root / 'recipe.py'}:short"
        command = [sys.executable, str(self.root / "run.py"), kind, str(count), "run", recipe, "--out", str(self.out)]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )

    def run(self, kind: str = "open", count: int = 0) -> int:
        """The exit status; the run is killed at a write."""
        process = self.start(kind, count)
        said, _ = process.communicate()
        # A worker that was being started when its parent died may say so in Python's own words.
        assert process.returncode == -signal.SIGKILL or b"Traceback" not in said, said.decode()
        return process.returncode

    def export(self, target: str, after: float | None = None) -> tuple[int, float]:
        """The exit status, and the seconds from when it starts to write the target's files; killed with its workers
        ``after`` so many."""
        process, started, said = self.start(), 0.0, b""
        timer: threading.Timer | None = None
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            if not started and f"writing {target}".encode() in line:
                started = time.monotonic()
                if after is not None:
                    timer = threading.Timer(after, os.killpg, (process.pid, signal.SIGKILL))
                    timer.start()
            elif started and after is None:
                break  # the next thing that it tells
        took = time.monotonic() - started if started else 0.0
        rest, _ = process.communicate()
        if timer is not None:
            timer.cancel()
        assert b"Traceback" not in said + rest, (said + rest).decode()
        return process.returncode, took

    def bytes(self) -> dict[str, bytes]:
        """What was delivered, but for what holds times: files, golden images and networks."""
        files = [*self.out.glob("artifacts/**/*"), *self.out.glob("checkpoints/**/*")]
        timed = (".card.json", ".sha256", ".md")
        return {
            str(file.relative_to(self.out)): file.read_bytes()
            for file in sorted(files)
            if file.is_file() and not file.name.endswith(timed)
        }

    def scraps(self) -> list[str]:
        left = [*self.out.rglob(".*"), *(self.store / "partial").rglob("*"), *self.store.glob("new-*")]
        scratch = [folder for folder in (self.store / "scratch").glob("*") if folder.is_dir()]
        return [str(path) for path in (*left, *scratch)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A run for ONNX that was not killed."""
    pytest.importorskip("onnxruntime")
    folder = Folder(tmp_path_factory.mktemp("runs"), "whole", ("onnx",))
    assert folder.run() == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KILLS)
def test_a_run_killed_at_its_writes_ends_as_one_that_was_not(kind: str, whole: Folder, many: bool, tally: Any) -> None:
    """Killed again and again, each time a little later, until it comes to its end."""
    killed = Folder(whole.root, kind, ("onnx",))
    for count in KILLS[kind] if many else KILLS[kind][1::3]:
        status = killed.run(kind, count)
        if status != -signal.SIGKILL:
            break
        tally(f"SIGKILL at a write ({kind})")
    for unnamed in killed.store.glob("new-*"):  # one killed at its room's birth: taken for living for a minute
        os.utime(unnamed, (0, 0))
    assert killed.run() == 0
    assert killed.bytes() == whole.bytes() and killed.scraps() == []
    report = json.loads((killed.out / "report.json").read_text(encoding="utf-8"))
    assert {artifact["target"] for artifact in report["artifacts"]} == {"onnx"}


@pytest.mark.slow
@pytest.mark.parametrize(("target", "module"), [("xnnpack", "executorch"), ("coreml", "coremltools")])
def test_a_run_killed_while_it_exports(tmp_path: Path, target: str, module: str, many: bool, tally: Any) -> None:
    """Killed with its workers at moments spread over the time that writing the files takes."""
    pytest.importorskip(module)
    whole, killed = Folder(tmp_path, "whole", (target,)), Folder(tmp_path, "killed", (target,))
    status, seconds = whole.export(target)
    assert status == 0 and seconds > 0
    trials, before = 6 if many else 2, tmp_path / "before"
    for trial in range(trials):
        status, _ = killed.export(target, after=seconds * (trial + 0.5) / trials)
        assert status in (0, -signal.SIGKILL)
        tally(f"SIGKILL while {target} is written", "caught" if status else "harmless")
        if not before.exists():
            assert status, "killed at once"
            shutil.copytree(killed.store, before)
        if status == 0:  # it was faster this time; what it wrote is taken away again
            shutil.rmtree(killed.store)
            shutil.rmtree(killed.out)
            shutil.copytree(before, killed.store)
    assert killed.run() == 0
    assert killed.bytes() == whole.bytes() and killed.scraps() == []

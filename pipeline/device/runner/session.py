"""A measurement from top to bottom: each file looked at, each runtime's files timed together, one result."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from . import FAILED, PASSED, RUNNER
from . import system as runner_system
from .apart import Failed, apart
from .contents import Contents
from .feed import feed
from .look import loaded, look, summary
from .measure import Plan, measure
from .progress import Progress, write_whole
from .runtimes import MissingRuntime, Run, need


class Session:
    """One measurement of a bundle's files."""

    def __init__(self, contents: Contents, options: argparse.Namespace, mode: dict[str, Any]) -> None:
        self.contents, self.options, self.mode = contents, options, mode
        self.device = runner_system.describe()
        self.have = runner_system.allowed()
        self.cpus = runner_system.choose(options.pin, options.threads)
        self.files = [file for file in contents.files if not options.only or file["name"] in options.only]
        settings = {"threads": options.threads, "pinned": self.cpus, "any_version": options.any_version, "mode": mode}
        key = {"bundle": contents.digest, "runner": RUNNER, "settings": settings, "only": options.only}
        self.progress = Progress(options.progress, key)

    def run(self) -> int:
        """Measure all and write the result; returns the exit status. Raises MissingRuntime where no file can be run."""
        if self.cpus and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.cpus)
        _say(runner_system.describe_choice(self.cpus, self.have))
        rows = [self._row(file) for file in self.files]
        _refuse_if_nothing_runs(rows)
        groups = self._timed(rows)
        write_whole(self.options.out, json.dumps(self._document(rows, groups), allow_nan=False) + "\n")
        for row in rows:
            print(_line(row))
        print(f"result: {self.options.out}")
        return FAILED if any(row["error"] for row in rows) else PASSED

    def _document(self, rows: list[dict[str, Any]], groups: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "schema": 1,
            "kind": "device",
            "bundle_sha256": self.contents.digest,
            "runner": RUNNER,
            "finished": True,
            "mode": self.mode,
            "device": self.device,
            "governor": runner_system.governor(self.cpus),
            "threads": self.options.threads,
            "pinned": self.cpus,
            "groups": groups,
            "rows": rows,
        }

    def _row(self, file: dict[str, Any]) -> dict[str, Any]:
        """Everything of one file but its times."""
        _say(f"looking at {file['name']}")
        row: dict[str, Any] = {"target": file["target"], "file": file["name"], "error": None, "missing": False}
        row["latency"] = None
        try:
            row.update(self.progress.once(f"look {file['name']}", lambda: apart(lambda: self._look(file))))
        except MissingRuntime as error:
            row.update(error=str(error), missing=True)
        except Failed as error:
            row.update(error=str(error))
        return row

    def _look(self, file: dict[str, Any]) -> dict[str, Any]:
        runtime, version = need(file["target"], self.contents.manifest["wanted"], self.options.any_version)
        facts = look(self.contents, file, runtime, self.options.threads)
        facts["runtime"] = {"name": runtime.package, "version": version, "provider": runtime.provider}
        facts["accuracy"] = summary(facts, self.contents.labels())
        return facts

    def _timed(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Time the files of each target together, and put each file's times into its row."""
        groups = [self._time_group(target, rows) for target in dict.fromkeys(row["target"] for row in rows)]
        return [group for group in groups if group is not None]

    def _time_group(self, target: str, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
        own = {row["file"]: row for row in rows if row["target"] == target and row["error"] is None}
        if not own:
            return None
        _say(f"timing {', '.join(own)}")
        try:
            rows_timed = self.progress.once(f"time {target}", lambda: apart(lambda: self._time(target, list(own))))
        except (Failed, MissingRuntime) as error:
            for row in own.values():
                row["error"] = f"while it was timed: {error}"
            return None
        for name, row in own.items():
            row["latency"] = rows_timed["files"][name]
        return {"target": target, "blocks": rows_timed["blocks"]}

    def _time(self, target: str, names: list[str]) -> dict[str, Any]:
        image = self.contents.slice()[:1]
        files = [file for file in self.files if file["name"] in names]
        with tempfile.TemporaryDirectory(prefix="edgewise-") as folder:
            calls = {file["name"]: _call(self._open(file, Path(folder)), feed(image, file)) for file in files}
            # A sustained measurement shares its minutes among the files; the others take theirs for each.
            share = len(files) if self.mode["name"] == "sustained" else 1
            plan = Plan(calls=self.mode["calls"], seconds=self.mode["seconds"] / share, blocks=self.mode["blocks"])
            times = measure(calls, plan, self.cpus)
        if target == "coreml":
            # It works on other processors than this process's, so that the share of one tells nothing.
            for block in times["blocks"]:
                block["cpu_ms"] = None
        return times

    def _open(self, file: dict[str, Any], folder: Path) -> Run:
        runtime, _ = need(file["target"], self.contents.manifest["wanted"], self.options.any_version)
        return loaded(runtime, self.contents.unpack(file, folder), self.options.threads)[0]


def _say(text: str) -> None:
    print(f"edgewise: {text}", file=sys.stderr, flush=True)


def _refuse_if_nothing_runs(rows: list[dict[str, Any]]) -> None:
    if rows and all(row["missing"] for row in rows):
        raise MissingRuntime("; ".join(dict.fromkeys(row["error"] for row in rows)))


def _call(run: Run, image: np.ndarray[Any, Any]) -> Any:
    return lambda: run(image)


def _line(row: dict[str, Any]) -> str:
    if row["error"]:
        return f"{row['file']}: {row['error']}"
    times = np.array([time for block in row["latency"]["times_ns"] for time in block]) / 1e6
    accuracy = f"top-1 {row['accuracy']['top1']:.4f} of {row['accuracy']['n']:,}"
    return f"{row['file']}: {accuracy}, {np.median(times):.4g} ms in {row['latency']['calls']:,} calls"

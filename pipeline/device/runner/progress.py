"""What is finished so far, a line each, so that the same command goes on after a kill; and files that are whole."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: str) -> None:
    """Write a file whole or not at all."""
    handle, aside = tempfile.mkstemp(prefix=".edgewise-", dir=path.absolute().parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink()
        raise


class Progress:
    """Finished steps of one measurement, in a file; in memory alone where ``path`` is None."""

    def __init__(self, path: Path | None, key: dict[str, Any]) -> None:
        self.path = path
        self._steps: dict[str, Any] = {}
        self._key = json.dumps(key, sort_keys=True)
        if path is not None:
            self._steps = self._read(path)
            # Whole again: a kill may have left half a line at its end.
            write_whole(path, "".join(f"{line}\n" for line in [self._key, *map(_line, self._steps.items())]))

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return {}
        if not lines or lines[0] != self._key:
            return {}
        steps = {}
        for line in lines[1:]:
            try:
                entry = json.loads(line)
                steps[entry["step"]] = entry["found"]
            except (ValueError, KeyError, TypeError):
                break
        return steps

    def once(self, step: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``work`` gave, now or before a kill."""
        if step not in self._steps:
            self._steps[step] = work()
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(_line((step, self._steps[step])) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
        step_result: dict[str, Any] = self._steps[step]
        return step_result


def _line(entry: Any) -> str:
    return json.dumps({"step": entry[0], "found": entry[1]})

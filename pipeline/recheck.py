"""Re-checking a written file: run it again, in its runtime, over a whole test set."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import calib_data
import targets
from pipeline import statistics, verify
from pipeline.errors import RequestError
from pipeline.images import logits
from pipeline.recipe import Limits
from pipeline.report.numbers import percent
from pipeline.rows import Accuracy, Grade, Verdict
from pipeline.store import file_digest
from targets import Runner, Target


@dataclass(frozen=True, kw_only=True)
class Recheck:
    """What a file does now."""

    path: Path
    target: str
    sha256: str
    grade: Grade
    accuracy: Accuracy | None
    verdict: Verdict
    reason: str

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {
            "artifact": str(self.path),
            "target": self.target,
            "sha256": self.sha256,
            "verification": self.grade,
            "accuracy": None
            if self.accuracy is None
            else {"top1": self.accuracy.top1, "n": self.accuracy.n, "ci95": list(self.accuracy.ci95)},
            "verdict": self.verdict,
            "reason": self.reason,
        }

    def __str__(self) -> str:
        lines = [f"{self.path} ({self.target}, sha256 {self.sha256[:16]}…)"]
        if self.accuracy is not None:
            low, high = self.accuracy.ci95
            lines.append(
                f"top-1 {percent(self.accuracy.top1)} on {self.accuracy.n:,} images "
                f"(95 % interval {percent(low)} to {percent(high)})"
            )
        return "\n".join([*lines, f"graded {self.grade}: {self.verdict}, {self.reason}"])


def recheck(path: Path, data_name: str) -> Recheck:
    """Evaluate a file over the test part of a data set, and hold it against what its report says of it.

    Raises RequestError for a path that is no file of any target, or that no report beside it describes.
    """
    if not path.exists():
        raise RequestError(f"there is no file {path}")
    target = target_of(path)
    kept = _recorded(path)
    data = calib_data.load(data_name, kept["seed"])
    grade, runner = _open(target, path)
    digest = file_digest(path)
    if runner is None:
        why = f"{target.name} can be neither run nor evaluated on this machine"
        return Recheck(path=path, target=target.name, sha256=digest, grade="written", accuracy=None,
                       verdict="not-checked", reason=why)  # fmt: skip
    answers = logits(runner, data.test, _Normalisation(tuple(kept["mean"]), tuple(kept["std"])), label=target.name)
    correct = (answers.argmax(1) == data.test.labels).numpy()
    accuracy = statistics.accuracy(correct, correct)
    finding = _judge(accuracy, digest, kept)
    return Recheck(path=path, target=target.name, sha256=digest, grade=grade, accuracy=accuracy,
                   verdict=finding.verdict, reason=finding.reason)  # fmt: skip


@dataclass(frozen=True)
class _Normalisation:
    mean: tuple[float, ...]
    std: tuple[float, ...]


def target_of(path: Path) -> Target:
    """The target whose files end as ``path`` does; a folder named as the target decides between several."""
    known = [name for name in targets.names() if name in path.resolve().parts[:-1]] or list(targets.names())
    for name in reversed(known):
        found = targets.get(name) if targets.peek(name).suffix == path.suffix else None
        if found is not None:
            return found
    endings = ", ".join(sorted({targets.peek(name).suffix for name in targets.names()}))
    raise RequestError(f"{path} is no file of a known target; wanted one that ends in {endings}")


def _open(target: Target, path: Path) -> tuple[Grade, Runner | None]:
    if target.load is not None:
        return "runtime", target.load(path, 1)
    if target.reference is not None:
        return "reference", target.reference(path)
    return "written", None


def _recorded(path: Path) -> dict[str, Any]:
    card = path.with_name(path.name + ".json")
    try:
        kept: dict[str, Any] = json.loads(card.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read {card}, which a run writes beside its file: {error}") from error
    missing = [key for key in ("sha256", "seed", "mean", "std", "top1", "n") if key not in kept]
    if missing:
        raise RequestError(f"{card} lacks {', '.join(missing)}")
    return kept


def _judge(accuracy: Accuracy, digest: str, kept: dict[str, Any]) -> verify.Finding:
    if digest != kept["sha256"]:
        return verify.Finding("fail", f"the file is not the one that was verified: its card says sha256 {kept['sha256'][:16]}…")
    if accuracy.n != kept["n"] or kept["top1"] is None:
        return verify.Finding("not-checked", f"another test set than the one it was verified on ({kept['n']:,} images)")
    allowed = Limits().max_drop
    if kept["top1"] - accuracy.top1 > allowed:
        return verify.Finding("fail", f"top-1 was {percent(kept['top1'])} when it was verified")
    return verify.Finding("pass", f"top-1 was {percent(kept['top1'])} when it was verified")


__all__ = ["Recheck", "recheck", "target_of"]

"""The rows of a report: what was measured on one step or one written file, and the verdict on it.

Every class is a value: its fields are the keys of ``report.json``, in that order. ``encode`` of ``store.json_values`` gives plain
JSON types, ``decode`` takes them back and raises ValueError, naming the place, for a key that is missing or unknown and for a
value of the wrong type. Accuracies are fractions, times milliseconds (``seconds`` excepted), sizes bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edgewise.files.open import Grade
from edgewise.measure.values import Accuracy, Agreement, Latency
from edgewise.targets import Precision

Verdict = Literal["pass", "fail", "not-checked"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One step or one written file. Raises ValueError when a file that was only written claims a pass."""

    step: str
    """``baseline``, a stage's name, or ``artifact``."""
    target: str | None
    params: int
    macs: int
    """Multiply-accumulates for one image."""
    bytes: int | None
    accuracy: Accuracy | None
    """None where nothing could run the file."""
    latency: Latency | None
    verification: Grade | None
    """None for a step, which is a PyTorch model and no file."""
    undelegated: tuple[str, ...]
    """Operators the target's accelerated backend left outside, one entry per occurrence."""
    verdict: Verdict
    reason: str
    seconds: float
    """What the step took, its checks included."""
    name: str = ""
    """A label for people; empty: the step's name."""
    precision: Precision | None = None
    agreement: Agreement | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the stage tells about its work, or the target about its file; JSON types."""
    load_ms: float | None = None
    peak_bytes: int | None = None
    """By which a fresh process grew when the file was loaded and answered one image; None where no runtime did."""
    first_call_ms: float | None = None
    """What that process's first answer took."""
    moved_bytes: int | None = None
    """What the network's operators read and write for one image, in the file's number format."""
    gates: Mapping[str, Verdict] = field(default_factory=dict)
    """Each gate's verdict."""
    kept: bool = True
    """False: a gate failed, the recipe chose to go on without this step, and nothing after it builds on it."""

    def __post_init__(self) -> None:
        if self.verification == "written" and self.verdict == "pass":
            raise ValueError(
                f"{self.step} row for target {self.target!r}: a file that was only written cannot pass; "
                "give the verdict 'not-checked' with its reason, or verify the file"
            )

    @property
    def label(self) -> str:
        """What to call the row on a page: its name, with the target for a file."""
        name = self.name or self.step
        return name if self.target is None or self.target in name else f"{name} {self.target}"


@dataclass(frozen=True, kw_only=True)
class ArtifactFile:
    """A written file or package as the report lists it."""

    target: str
    path: str
    """Relative to the report's folder where it lies inside."""
    sha256: str
    bytes: int

"""What a step or a file may cost, and the verdict on every measurement: pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Interval

from edgewise.files.open import Grade
from edgewise.measure.values import Accuracy, Agreement, Latency
from edgewise.report.rows import Verdict
from edgewise.settings import checked

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Finding:
    """One gate's answer."""

    verdict: Verdict
    reason: str


def judge(*findings: Finding) -> Finding:
    """The worst of several gates: a failure, else an undecided one, else a pass; with all their reasons of that kind."""
    verdicts: tuple[Verdict, ...] = ("fail", "not-checked", "pass")
    for verdict in verdicts:
        reasons = [finding.reason for finding in findings if finding.verdict == verdict]
        if reasons:
            return Finding(verdict, "; ".join(reasons))
    return Finding("not-checked", "no gate applies")


def on_accuracy(accuracy: Accuracy, limits: Limits, reference: str = "the baseline") -> Finding:
    """Non-inferiority: the loss from the baseline, on the same images, must be proven to lie within ``max_drop``.

    ``reference``: what the accuracy's difference is from, in words.
    """
    versus = accuracy.vs_baseline
    allowed = f"{_points(limits.max_drop)} allowed"
    if -versus.delta > limits.max_drop:
        return Finding(
            "fail", f"top-1 fell by {_points(-versus.delta)} from {reference}, {allowed} (n = {accuracy.n:,})"
        )
    if -versus.ci95[0] > limits.max_drop:
        return Finding(
            "not-checked",
            f"top-1 changed by {_signed(versus.delta)} from {reference}, {allowed}, but {accuracy.n:,} test images cannot "
            f"exclude a fall of {_points(-versus.ci95[0])}",
        )
    return Finding("pass", f"top-1 changed by {_signed(versus.delta)} from {reference}, {allowed} (n = {accuracy.n:,})")


def on_latency(latency: Latency, limits: Limits, *, same_work: bool = False) -> Finding:
    """The time relative to the baseline must be proven to lie within ``max_latency_ratio``.

    ``same_work``: as many multiply-accumulates as the baseline, in the same precision; then within ``same_work_ratio``.
    """
    allowed = max(limits.max_latency_ratio, limits.same_work_ratio) if same_work else limits.max_latency_ratio
    return _on_ratio(latency, "the baseline's time", allowed)


def on_input(latency: Latency, given: str, limits: Limits) -> Finding:
    """A step that changed the work must be proven to lie within ``max_step_ratio`` of the network it was given.

    ``latency`` was measured against that network, which is called ``given``.
    """
    finding = _on_ratio(latency, f"the time of its input, {given},", limits.max_step_ratio)
    return Finding("fail", f"not faster: {finding.reason}") if finding.verdict == "fail" else finding


def _on_ratio(latency: Latency, to: str, allowed: float) -> Finding:
    low, high = latency.ci95
    text = (
        f"{latency.ratio_to_baseline:.2f} of {to} on {latency.on} (95 % interval {low:.2f} to {high:.2f}, "
        f"{allowed:g} allowed)"
    )
    if high <= allowed:
        return Finding("pass", text)
    if low > allowed:
        return Finding("fail", text)
    return Finding("not-checked", f"{text}: the machine was too noisy to decide")


def on_agreement(agreement: Agreement, limits: Limits, where: str = "") -> Finding:
    """The file must put the test images into the classes that the PyTorch model puts them into.

    ``where``: a phrase before the reason, for what differs from the rest of the evaluation.
    """
    text = f"{where}same class as the PyTorch model on {agreement.top1:.2%} of {agreement.n:,} images"
    if agreement.top1 < limits.min_agreement:
        return Finding("fail", f"{text}, {limits.min_agreement:.2%} wanted")
    return Finding("pass", text)


def on_coverage(undelegated: tuple[str, ...], limits: Limits) -> Finding:
    """The backend must not leave more operators outside than allowed."""
    count = len(undelegated)
    text = f"{count} operators outside the backend" + (f" ({', '.join(sorted(set(undelegated)))})" if count else "")
    if limits.max_undelegated is not None and count > limits.max_undelegated:
        return Finding("fail", f"{text}, {limits.max_undelegated} allowed")
    return Finding("pass", text)


def on_covered_macs(facts: Mapping[str, Any], limits: Limits) -> Finding:
    """The backend must not leave a larger share of the MACs outside than allowed; ``facts``: the file's."""
    allowed, coverage = limits.max_undelegated_macs, facts.get("coverage")
    if coverage is None:
        verdict: Verdict = "pass" if allowed is None else "not-checked"
        return Finding(verdict, "the target does not tell which MACs its backend takes")
    share = float(coverage["undelegated_share"])
    text = f"{share:.1%} of {coverage['macs']:,} MACs outside the backend"
    if allowed is not None and share > allowed:
        left = {name: entry for name, entry in coverage["by_operator"].items() if entry["undelegated_macs"]}
        named = ", ".join(f"{name} {entry['undelegated_macs']:,}" for name, entry in left.items())
        return Finding("fail", f"{text} ({named}), {allowed:.1%} allowed")
    return Finding("pass", text)


def on_grade(grade: Grade, why: str) -> Finding:
    """A file that nothing here could evaluate is never a pass."""
    if grade == "written":
        return Finding("not-checked", f"written only: {why}")
    return Finding("pass", f"verified by {grade}")


def _points(fraction: float) -> str:
    return f"{100 * fraction:.2f} points"


def _signed(fraction: float) -> str:
    return f"{100 * fraction:+.2f} points"


@checked
@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a step or a file may cost; beyond it the gate fails. Fractions and ratios, all relative to the baseline."""

    max_drop: Annotated[float, Interval(ge=0, le=1)] = 0.01
    """Largest loss of top-1 accuracy (0.01 = one percentage point)."""
    max_latency_ratio: Annotated[float, Interval(ge=0, le=1e6)] = 1.0
    """Largest time of a compressed network over the baseline's, on the same runtime."""
    same_work_ratio: Annotated[float, Interval(ge=0, le=1e6)] = 1.05
    """The same for one that saved no multiply-accumulates and claims no speed, such as folded or fine-tuned: two files of
    equal work differ by where they lie in memory (Mytkowicz et al. 2009), and many rounds make that a certain difference."""
    max_step_ratio: Annotated[float, Interval(ge=0, le=1e6)] = 1.0
    """Largest time of a step that changed the number of MACs over the time of the network it was given."""
    min_agreement: Annotated[float, Interval(ge=0, le=1)] = 0.99
    """Smallest share of test images to which a file gives the same class as the PyTorch model it was made from."""
    max_undelegated: Annotated[int, Interval(ge=0, le=1_000_000_000)] | None = None
    """Largest number of operators that the target's backend may leave outside; None: reported, not limited."""
    max_undelegated_macs: Annotated[float, Interval(ge=0, le=1)] | None = None
    """Largest share of a file's MACs that the backend, or in an int8 file the int8 kernels, may leave outside."""

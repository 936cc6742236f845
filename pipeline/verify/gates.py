"""What a step or a file may cost, and the verdict on every measurement: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from annotated_types import Interval

from edgewise.files.open import Grade
from edgewise.measure.label_order import LabelOrder
from edgewise.measure.memory import ColdStart
from edgewise.measure.paired import fall_verdict, images_to_bound, images_to_decide, proportion_bounds
from edgewise.measure.soundness import Soundness
from edgewise.measure.speed import SMALLEST
from edgewise.measure.values import Accuracy, Agreement, Difference, Latency
from edgewise.report.rows import Verdict
from edgewise.settings import check_fields

FAR = 4.0
"""Times the explained noise beyond which no number of roundings reaches, whatever the layers show one by one."""


@dataclass(frozen=True)
class Finding:
    """One gate's answer."""

    verdict: Verdict
    reason: str
    gate: str = ""
    """Which gate; empty for what is no gate, such as the word on a control."""


def worst_finding(*findings: Finding) -> Finding:
    """The worst of several gates: a failure, else an undecided one, else a pass; with all their reasons of that kind."""
    verdicts: tuple[Verdict, ...] = ("fail", "not-checked", "pass")
    for verdict in verdicts:
        reasons = [finding.reason for finding in findings if finding.verdict == verdict]
        if reasons:
            return Finding(verdict, "; ".join(filter(None, reasons)))
    return Finding("not-checked", "no gate applies")


def gates_of(findings: Iterable[Finding]) -> dict[str, Verdict]:
    """Each gate's verdict, the worst where one was asked several times."""
    findings_by_gate: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.gate:
            findings_by_gate.setdefault(finding.gate, []).append(finding)
    return {gate: worst_finding(*each).verdict for gate, each in findings_by_gate.items()}


def on_soundness(soundness: Soundness | None) -> Finding:
    """Every answer must be numbers, and the answers more than one class where the images are."""
    if soundness is None:
        return Finding("pass", "answers were not looked at one by one", "answers")
    n = f"{soundness.n:,}"
    if soundness.not_finite:
        text = f"the answers to {soundness.not_finite:,} of {n} test images are no finite numbers"
        return Finding("fail", text, "answers")
    if soundness.classes_answered == 1 < soundness.classes_present:
        text = f"it answers one class only, to {n} test images of {soundness.classes_present} classes"
        return Finding("fail", text, "answers")
    return Finding("pass", f"{soundness.classes_answered} classes are answered, all in finite numbers", "answers")


def on_labels(order: LabelOrder) -> Finding:
    """The labels must mean the classes that the network's outputs mean."""
    if not order.misfit:
        return Finding("pass", "no other order of the labels fits the answers better", "labels")
    how = "in another order" if order.shift is None else f"raised by {order.shift}"
    text = f"top-1 is {order.top1:.1%} and would be {order.best:.1%} with the labels {how}: the data's classes are not the network's"
    return Finding("fail", text, "labels")


def on_told(accuracy: Accuracy, limits: Limits, classes: Sequence[str] = ()) -> list[Finding]:
    """The gates on what is told right: by sound answers, of all images, and of each class's (called ``classes``)."""
    return [
        on_soundness(accuracy.soundness),
        on_accuracy(accuracy, limits),
        on_classes(accuracy, limits, classes),
        on_top5(accuracy, limits),
        on_calibration(accuracy, limits),
    ]


def on_accuracy(accuracy: Accuracy, limits: Limits, reference: str = "the baseline") -> Finding:
    """Non-inferiority: the loss from the baseline, on the same images, must be proven to lie within ``max_drop``.

    It passes where the interval excludes a larger fall, and fails where it excludes a smaller one, or where a fall is
    certain and measured to be larger: from a network that lost nothing, in one case of forty at most. ``reference``: what
    the accuracy's difference is from, in words.
    """
    return _on_fall(accuracy.vs_baseline, accuracy.n, limits.max_drop, reference, "top-1", "accuracy")


def on_top5(accuracy: Accuracy, limits: Limits, reference: str = "the baseline") -> Finding:
    """The same for top-5 and ``max_top5_drop``, where that is limited."""
    if limits.max_top5_drop is None:
        return Finding("pass", "")
    if accuracy.top5_vs_baseline is None:
        return Finding("not-checked", "top-5 is limited, and is not told below 20 classes", "top-5")
    return _on_fall(accuracy.top5_vs_baseline, accuracy.n, limits.max_top5_drop, reference, "top-5", "top-5")


def _on_fall(versus: Difference, images: int, limit: float, reference: str, figure: str, gate: str) -> Finding:
    n, low, tolerance = f"{images:,}", versus.ci95[0], f"{_points(limit)} allowed"
    verdict = fall_verdict(versus.delta, versus.ci95, versus.p_value, limit)
    if verdict == "pass":
        return Finding(
            "pass", f"{figure} changed by {_signed_points(versus.delta)} from {reference}, {tolerance} (n = {n})", gate
        )
    if verdict == "fail":
        fell = f"{figure} fell by {_points(-versus.delta)} from {reference}"
        return Finding("fail", f"{fell}, {tolerance} (n = {n}, p = {versus.p_value:.2g})", gate)
    return Finding(
        "not-checked",
        f"{figure} changed by {_signed_points(versus.delta)} from {reference}, {tolerance}, but {n} test images cannot exclude a fall "
        f"of {_points(-low)}; {_would_decide(versus, images, limit)}",
        gate,
    )


def _would_decide(versus: Difference, n: int, limit: float) -> str:
    """How many images would settle it, were as many gained and lost among them."""
    number = images_to_decide(versus.gained, versus.lost, n, limit)
    return "no number of images decides a fall of just the limit" if number is None else f"{number:,} would decide"


def on_calibration(accuracy: Accuracy, limits: Limits, reference: str = "the baseline") -> Finding:
    """The interval of what the calibration error rose by must lie on one side of ``max_ece_rise``, where that is limited."""
    calibration, tolerance = accuracy.calibration, limits.max_ece_rise
    if tolerance is None:
        return Finding("pass", "")
    if calibration is None:
        return Finding("not-checked", "the calibration error is limited, and answers are no numbers", "calibration")
    low, high = calibration.ci95
    text = (
        f"the calibration error is {calibration.error:.2%}, {_signed_points(calibration.rise)} ({_signed_points(low)} to {_signed_points(high)}) from "
        f"{reference}'s, {_points(tolerance)} allowed (n = {accuracy.n:,})"
    )
    if high <= tolerance:
        return Finding("pass", text, "calibration")
    if low > tolerance:
        return Finding("fail", text, "calibration")
    return Finding("not-checked", f"{text}: too few images to decide", "calibration")


def on_sqnr(agreement: Agreement, limits: Limits) -> Finding:
    """The file's answers must stand out from their differences to PyTorch's by ``min_sqnr_db``, where that is limited."""
    minimum, value = limits.min_sqnr_db, agreement.sqnr_db
    if minimum is None:
        return Finding("pass", "")
    if agreement.not_finite:
        return Finding("fail", f"{agreement.not_finite:,} answers are no finite numbers, {minimum:g} dB wanted", "SQNR")
    if value is None:
        return Finding("pass", f"its answers are PyTorch's in every bit, {minimum:g} dB wanted", "SQNR")
    text = f"its answers lie {value:.1f} dB above their differences from PyTorch's, {minimum:g} dB wanted"
    return Finding("pass" if value >= minimum else "fail", text, "SQNR")


def on_classes(
    accuracy: Accuracy, limits: Limits, classes: Sequence[str] = (), reference: str = "the baseline"
) -> Finding:
    """No single class may certainly lose more than ``limits.class_drop`` of its images. ``classes``: their names."""
    if (tolerance := limits.class_drop) >= 1:
        return Finding("pass", "no class is limited", "classes")
    worst = [fall for fall in accuracy.falls if fall.fall > tolerance]
    if not worst:
        return Finding("pass", f"no class certainly fell by more than {_points(tolerance)}", "classes")
    names = ", ".join(
        f"{classes[fall.label] if classes else fall.label} by {_points(fall.fall)} of {fall.n}" for fall in worst[:5]
    )
    more = f" and {len(worst) - 5} more" if len(worst) > 5 else ""
    return Finding("fail", f"classes fell from {reference}: {names}{more}; {_points(tolerance)} allowed", "classes")


def on_latency(latency: Latency, limits: Limits, *, same_work: bool = False) -> Finding:
    """The time relative to the baseline must be proven to lie within ``max_latency_ratio``.

    ``same_work``: as many multiply-accumulates as the baseline, in the same precision; then within ``same_work_ratio``.
    """
    tolerance = max(limits.max_latency_ratio, limits.same_work_ratio) if same_work else limits.max_latency_ratio
    return _on_ratio(latency, "the baseline's time", tolerance, "latency")


def on_input(latency: Latency, input_kind: str, limits: Limits) -> Finding:
    """A step that changed the work must be proven to lie within ``max_step_ratio`` of the network it was given.

    ``latency`` was measured against that network, which is called ``input_kind``.
    """
    finding = _on_ratio(latency, f"the time of its input, {input_kind},", limits.max_step_ratio, "step time")
    return replace(finding, reason=f"not faster: {finding.reason}") if finding.verdict == "fail" else finding


def _on_ratio(latency: Latency, to: str, allowed: float, gate: str) -> Finding:
    """Whether the interval of the ratio lies on one side of what is allowed, also when the machine was disturbed.

    It fails only beyond what one file differs by from itself when it is loaded twice: that difference is of the place in
    memory, and as certain as any other.
    """
    low, high = latency.ci95
    text = (
        f"{latency.ratio_to_baseline:.2f} of {to} on {latency.on} (95 % interval {low:.2f} to {high:.2f}, "
        f"{allowed:g} allowed)"
    )
    disturbances = latency.conditions.disturbances if latency.conditions else ()
    leeway = latency.conditions.leeway if latency.conditions else 1.0
    if high * leeway <= allowed:
        return Finding("pass", text, gate)
    if low / leeway > allowed * SMALLEST:
        return Finding("fail", text, gate)
    placed = f"a file differs by up to {SMALLEST - 1:.0%} from itself, by where it lies in memory"
    why = "; ".join(disturbances) or (placed if low > allowed else "the machine was too noisy to decide")
    return Finding("not-checked", f"{text}: {why}", gate)


def on_agreement(agreement: Agreement, limits: Limits, where: str = "") -> Finding:
    """The file must put the test images into the classes that the PyTorch model puts them into, ties left aside.

    Where the layers were compared, they decide: with none apart, what is left is rounding that has added up, unless it is
    far more than that. Else the share of images that differ must be proven to lie within what is allowed (Clopper and
    Pearson 1934, one-sided, 95 %), and the answers must lie no further apart than roundings explain. ``where``: a phrase
    before the reason, for what differs from the rest of the evaluation.
    """
    text = f"{where}{_same_class(agreement)}"
    if agreement.not_finite:
        return Finding("fail", f"{text}; {agreement.not_finite:,} answers are no finite numbers", "agreement")
    if agreement.layers_apart is not None and not _too_far(agreement, FAR):
        return _on_layers(agreement, text)
    if _too_far(agreement):
        noise, unit = f"{agreement.noise:.2g}", agreement.noise_unit
        text = f"{text}; its answers lie {noise} {unit} from PyTorch's in the mean, {agreement.noise_allowed:g} explained by rounding"
        return Finding("fail", text, "agreement")
    return _on_differing(agreement, limits, text)


def _on_layers(agreement: Agreement, text: str) -> Finding:
    if agreement.layers_apart:
        apart = f"{agreement.layers_apart} layers compute something else than PyTorch's, the first is {agreement.first_apart}"
        return Finding("fail", f"{text}; {apart}", "agreement")
    return Finding("pass", f"{text}; layer by layer the file computes what PyTorch does, but for rounding", "agreement")


def _on_differing(agreement: Agreement, limits: Limits, text: str) -> Finding:
    tolerance, count = 1 - limits.min_agreement, count_differing(agreement)
    low, high = proportion_bounds(count, agreement.n)
    sentence = f"{text}, {limits.min_agreement:.2%} wanted"
    if high <= tolerance or count == 0 == tolerance or tolerance >= 1:
        return Finding("pass", text, "agreement")
    if low > tolerance or tolerance == 0:
        return Finding("fail", sentence, "agreement")
    number = images_to_bound(count, agreement.n, tolerance)
    decide = "no number of images decides just the limit" if number is None else f"{number:,} images would decide"
    return Finding("not-checked", f"{sentence}; {decide}", "agreement")


def needs_layers(agreement: Agreement, limits: Limits) -> bool:
    """Whether the layers should be compared, since the answers alone do not pass."""
    return agreement.layers_apart is None and on_agreement(agreement, limits).verdict != "pass"


def count_differing(agreement: Agreement) -> int:
    """Images in another class, those aside that are known to be ties."""
    return round((1 - agreement.top1) * agreement.n) if agreement.differ is None else agreement.differ


def _too_far(agreement: Agreement, times: float = 1.0) -> bool:
    noise, tolerance = agreement.noise, agreement.noise_allowed
    return noise is not None and tolerance is not None and noise > times * tolerance


def _same_class(agreement: Agreement) -> str:
    text = f"same class as the PyTorch model on {agreement.top1:.2%} of {agreement.n:,} images"
    text = f"{text}, {agreement.ties:,} ties" if agreement.ties else text
    return text if agreement.sqnr_db is None else f"{text}, SQNR {agreement.sqnr_db:.1f} dB"


def on_coverage(undelegated: tuple[str, ...], limits: Limits) -> Finding:
    """The backend must not leave more operators outside than allowed."""
    count = len(undelegated)
    text = f"{count} operators outside the backend" + (f" ({', '.join(sorted(set(undelegated)))})" if count else "")
    if limits.max_undelegated is not None and count > limits.max_undelegated:
        return Finding("fail", f"{text}, {limits.max_undelegated} allowed", "coverage")
    return Finding("pass", text, "coverage")


def on_covered_macs(facts: Mapping[str, Any], limits: Limits) -> Finding:
    """The backend must not leave a larger share of the MACs outside than allowed; ``facts``: the file's."""
    tolerance, coverage = limits.max_undelegated_macs, facts.get("coverage")
    if coverage is None:
        verdict: Verdict = "pass" if tolerance is None else "not-checked"
        return Finding(verdict, "the target does not tell which MACs its backend takes", "coverage")
    share = float(coverage["undelegated_share"])
    text = f"{share:.1%} of {coverage['macs']:,} MACs outside the backend"
    if tolerance is not None and share > tolerance:
        operators = {name: entry for name, entry in coverage["by_operator"].items() if entry["undelegated_macs"]}
        listing = ", ".join(f"{name} {entry['undelegated_macs']:,}" for name, entry in operators.items())
        return Finding("fail", f"{text} ({listing}), {tolerance:.1%} allowed", "coverage")
    return Finding("pass", text, "coverage")


def on_file(limits: Limits, size: int, moved: int | None, cold: ColdStart | None) -> list[Finding]:
    """What a file costs beside its answers and their time. ``cold`` None: no runtime on this machine starts it."""
    return [
        on_bytes(size, limits),
        on_moved_bytes(moved, limits),
        on_memory(cold.peak_bytes if cold else None, limits),
        on_load(cold.load_ms if cold else None, limits),
        on_first_call(cold.first_call_ms if cold else None, limits),
    ]


def on_bytes(size: int | None, limits: Limits) -> Finding:
    """The file must not be larger than allowed."""
    return _on_most(size, limits.max_bytes, "size", "{:,.0f} bytes")


def on_memory(peak_bytes: int | None, limits: Limits) -> Finding:
    """Loading it and answering one image must not take more memory than allowed."""
    return _on_most(peak_bytes, limits.max_peak_bytes, "memory", "{:,.0f} bytes of memory at most")


def on_moved_bytes(moved: int | None, limits: Limits) -> Finding:
    """Its operators must not read and write more than allowed."""
    return _on_most(moved, limits.max_moved_bytes, "bytes moved", "{:,.0f} bytes moved for one image")


def on_load(load_ms: float | None, limits: Limits) -> Finding:
    """A fresh process must not take longer to load it than allowed."""
    return _on_most(load_ms, limits.max_load_ms, "load time", "{:.3g} ms to load")


def on_first_call(first_call_ms: float | None, limits: Limits) -> Finding:
    """The first answer must not take longer than allowed."""
    return _on_most(first_call_ms, limits.max_first_call_ms, "first call", "{:.3g} ms to the first answer")


def _on_most(value: float | None, allowed: float | None, gate: str, words: str) -> Finding:
    if allowed is None:
        return Finding("pass", "")
    if value is None:
        return Finding("not-checked", f"{gate} is limited and was not measured here", gate)
    text = f"{words.format(value)}, {words.format(allowed)} allowed"
    return Finding("fail" if value > allowed else "pass", text, gate)


def on_grade(grade: Grade, why: str) -> Finding:
    """A file that nothing here could evaluate is never a pass."""
    if grade == "written":
        return Finding("not-checked", f"written only: {why}", "grade")
    return Finding("pass", f"verified by {grade}", "grade")


def _points(fraction: float) -> str:
    return f"{100 * fraction:.2f} points"


def _signed_points(fraction: float) -> str:
    return f"{100 * fraction:+.2f} points"


@check_fields
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
    max_class_drop: Annotated[float, Interval(ge=0, le=1)] | None = None
    """Largest certain loss of a single class, as a share of its images; None: five times ``max_drop``."""
    max_top5_drop: Annotated[float, Interval(ge=0, le=1)] | None = None
    """Largest loss of top-5 accuracy, from 20 classes on; None: reported, not limited."""
    max_ece_rise: Annotated[float, Interval(ge=0, le=1)] | None = None
    """Largest rise of the expected calibration error over the baseline's (0.01 = one percentage point); None: reported,
    not limited."""
    min_agreement: Annotated[float, Interval(ge=0, le=1)] = 0.99
    """Smallest share of test images to which a file gives the class that the PyTorch model it was made from gives, those
    left aside between which PyTorch sees a tie."""
    min_sqnr_db: Annotated[float, Interval(ge=-300, le=300)] | None = None
    """Smallest signal-to-noise ratio of a file's answers against those of the PyTorch model that it was made from, in
    decibels; None: reported, not limited."""
    max_undelegated: Annotated[int, Interval(ge=0, le=1_000_000_000)] | None = None
    """Largest number of operators that the target's backend may leave outside; None: reported, not limited."""
    max_undelegated_macs: Annotated[float, Interval(ge=0, le=1)] | None = None
    """Largest share of a file's MACs that the backend, or in an int8 file the int8 kernels, may leave outside."""
    max_leaked: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Largest share of test images that are among the training or calibration images too."""
    max_repeated: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Largest share of test images that come again in the test part."""
    max_bytes: Annotated[int, Interval(ge=0, le=10**15)] | None = None
    """Largest file. This and the following limit files alone; None: reported, not limited."""
    max_peak_bytes: Annotated[int, Interval(ge=0, le=10**15)] | None = None
    """Most memory by which a fresh process may grow when it loads the file and answers one image."""
    max_moved_bytes: Annotated[int, Interval(ge=0, le=10**15)] | None = None
    """Most bytes that the network's operators read and write for one image, in the file's number format."""
    max_load_ms: Annotated[float, Interval(ge=0, le=1e9)] | None = None
    """Longest that a fresh process may take to load the file."""
    max_first_call_ms: Annotated[float, Interval(ge=0, le=1e9)] | None = None
    """Longest that its first answer may take, after loading."""

    @property
    def class_drop(self) -> float:
        """What a single class may lose."""
        return 5 * self.max_drop if self.max_class_drop is None else self.max_class_drop

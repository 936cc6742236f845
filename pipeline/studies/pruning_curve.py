"""``python -m edgewise.studies.pruning_curve``: one network pruned to several budgets, each with the same fine-tune, as a curve.

Every point is a run of its own, in a folder of its own, from the step store where it was done before; what was killed goes
on from its last epoch. After each point the table is written anew.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.errors import RequestError, StageError
from edgewise.measure.values import Difference
from edgewise.report import numbers
from edgewise.report.document import Report, Section
from edgewise.report.markdown import markdown_table
from edgewise.report.rows import Row
from edgewise.store.json_values import encode_fields
from edgewise.studies.siblings import Against, compare_with_siblings, markdown_of, parse_sibling, sibling_files

if TYPE_CHECKING:
    from edgewise.recipe import Recipe
    from edgewise.run.job import Job


DEFAULT_POINTS = (
    "macs=1/2,shortcuts=False", "macs=1/2.57,shortcuts=False", "macs=1/4,shortcuts=False,round_to=4", "latency=1/2",
)  # fmt: skip
PUBLISHED: tuple[dict[str, Any], ...] = (
    # Fang et al. 2023 (arXiv 2301.12900), table 1: ResNet-56 on CIFAR-10, from 93.53 %.
    {"name": "DepGraph, sparse learning", "from": 0.9353, "top1": 0.9377, "speed_up": 2.13},
    {"name": "DepGraph, sparse learning", "from": 0.9353, "top1": 0.9364, "speed_up": 2.57},
    {"name": "DepGraph, no sparse learning", "from": 0.9353, "top1": 0.9346, "speed_up": 2.11},
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One budget's outcome, in the declared runtime's own files where there are some."""

    asked: str
    top1: float
    n: int
    ci95: tuple[float, float]
    delta: float
    """Of top-1 from the unpruned network, a fraction."""
    delta_ci95: tuple[float, float]
    macs: int
    params: int
    macs_ratio: float
    """Of the unpruned network's."""
    time_ratio: float
    """Of the unpruned network's time, interleaved in one run."""
    before_tuning: float
    """Top-1 as it is cut."""
    budget: Mapping[str, Any]
    """What the step told: asked, predicted, measured."""
    to_first: Difference | None = None
    """Paired difference in top-1 from the first point, on the same images; None for the first."""

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return dataclasses.asdict(self)


def parse(text: str) -> dict[str, Any]:
    """The fields of a ``Prune`` from text like "macs=1/2.57" or "latency=0.5,scope=layer,round_to=4".

    Raises RequestError for what is no field or no value of one.
    """
    from edgewise.stages.prune import Prune

    fields: dict[str, Any] = {}
    field_names = {field.name for field in dataclasses.fields(Prune)}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in field_names or not value:
            raise RequestError(f"a point is FIELD=VALUE[,FIELD=VALUE …] with fields of Prune, found {text!r}")
        fields[name] = _parse_value(value)
    Prune(**fields)
    return fields


def _parse_value(text: str) -> Any:
    top, slash, bottom = text.partition("/")
    try:
        return float(top) / float(bottom) if slash else ast.literal_eval(text)
    except (ValueError, SyntaxError, ZeroDivisionError):
        return text


def recipe_of(options: argparse.Namespace, point: str) -> Recipe:
    """The recipe of one point: (sparse learning), pruning, fine-tuning with distillation, folding; float files."""
    from edgewise.catalogue import find_recipe
    from edgewise.run.request import override_fields
    from edgewise.stage import Stage
    from edgewise.stages.finetune import Finetune
    from edgewise.stages.fold import Fold
    from edgewise.stages.prune import Prune
    from edgewise.stages.prune.sparsify import Sparsify
    from edgewise.stages.training.augment import Augment
    from edgewise.stages.training.settings import Training
    from edgewise.verify.gates import Limits

    changes = {key: getattr(options, key) for key in ("model", "weights", "data", "device")}
    base = override_fields(find_recipe(options.recipe), changes)
    augment = base.baseline.training.augment if isinstance(base.baseline.training.augment, Augment) else Augment()
    tune = Training(
        epochs=options.epochs, lr=options.lr, warmup=options.warmup, distill=options.distill, views=options.views,
        mirrored_teacher=options.mirrored_teacher, augment=augment, ema=options.ema, decay=options.decay,
        label_smoothing=options.label_smoothing,
    )  # fmt: skip
    sparse = Training(epochs=max(options.sparse_epochs, 1), lr=0.01, augment=augment)
    stages: list[Stage] = [Sparsify(training=sparse, strength=options.sparse)] if options.sparse_epochs else []
    common = {"reconstruct": options.reconstruct, "recover_steps": options.recover_steps}
    stages += [Prune(**common | parse(point)), Finetune(training=tune), Fold()]
    return dataclasses.replace(
        base,
        name=f"{base.model}-{_file_stem(point)}" if "/" not in base.model else _file_stem(point),
        stages=tuple(stages),
        quantize=None,
        candidates=("float",),
        targets=(base.runtime,),
        # A curve shows what is lost; nothing is to end a point before it is fine-tuned.
        limits=Limits(max_drop=1, max_latency_ratio=1e6, max_step_ratio=1e6, min_agreement=0),
    )


def _file_stem(point: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", point.replace("1/", "1over"))


def outcome(asked: str, report: Report) -> Point:
    """A point from its run's rows: the file in the runtime that executes it."""
    rows = {row.step: row for row in report.rows}
    baseline, pruned = rows["baseline"], rows["prune"]
    last = rows.get("artifact", report.rows[-1])
    assert last.accuracy and last.latency and pruned.accuracy
    versus = last.accuracy.vs_baseline
    return Point(
        asked=asked,
        top1=last.accuracy.top1,
        n=last.accuracy.n,
        ci95=last.accuracy.ci95,
        delta=versus.delta,
        delta_ci95=versus.ci95,
        macs=last.macs,
        params=last.params,
        macs_ratio=last.macs / baseline.macs,
        time_ratio=last.latency.ratio_to_baseline,
        before_tuning=pruned.accuracy.top1,
        budget=pruned.facts.get("budget", {}),
    )


def compare_points(points: Sequence[Point], answers: Sequence[Any]) -> list[Point]:
    """The points with their paired difference from the first; ``answers[i]``: which test images point i got right."""
    from edgewise.measure.statistics import paired_difference

    rest = zip(points[1:], answers[1:], strict=True)
    return [*points[:1], *(dataclasses.replace(p, to_first=paired_difference(a, answers[0])) for p, a in rest)]


def markdown(network: str, baseline: Row, points: Sequence[Point], setting: str) -> str:
    """The table."""
    assert baseline.accuracy is not None
    top1, macs = f"{100 * baseline.accuracy.top1:.2f}", f"{baseline.macs / 1e6:.1f}M"
    lines = [
        f"# {network} pruned to several budgets",
        "",
        f"Unpruned: top-1 {top1} % (n = {baseline.accuracy.n:,}), {macs} MACs. {setting}",
        "",
        *markdown_table(_HEAD, map(_cells, points)),
    ]
    return "\n".join([*lines, "", *_published_lines(network)]) + "\n"


_HEAD = (
    "asked", "top-1 %", "change, points (95 %)", "MACs", "fewer MACs", "time left", "as it is cut",
    "asked / predicted / measured", "to the first, points (95 %)",
)  # fmt: skip


def _cells(point: Point) -> list[str]:
    budget = point.budget
    figures = (
        " / ".join(f"{budget[key]:.4g}" for key in ("wanted", "predicted", "measured")) + f" {budget['budget']}"
        if "measured" in budget
        else "–"
    )
    first = point.to_first
    versus = "–" if first is None else _change_text(first.delta, first.ci95) + f", p {first.p_value:.2g}"
    return [
        point.asked,
        f"{100 * point.top1:.2f}",
        _change_text(point.delta, point.delta_ci95),
        f"{point.macs / 1e6:.1f}M",
        f"{1 / point.macs_ratio:.2f}x",
        f"{point.time_ratio:.3f}",
        f"{100 * point.before_tuning:.2f}",
        figures,
        versus,
    ]


def _change_text(delta: float, interval: tuple[float, float]) -> str:
    return f"{100 * delta:+.2f} ({100 * interval[0]:+.2f} to {100 * interval[1]:+.2f})"


def _published_lines(network: str) -> list[str]:
    if network != "resnet56":
        return []
    lines = ["Published (Fang et al. 2023, arXiv 2301.12900), from another training of the same network:", ""]
    return lines + [
        f"- {entry['name']}: {100 * float(entry['from']):.2f} to {100 * float(entry['top1']):.2f} % at {entry['speed_up']}x fewer MACs"
        for entry in PUBLISHED
    ]


def figure(network: str, baseline: Row, points: Sequence[Point]) -> dict[str, Any]:
    """Change of top-1 against how many times fewer MACs, and against the time left."""
    assert baseline.accuracy is not None
    ours = sorted(points, key=lambda point: 1 / point.macs_ratio)
    errors = {
        "type": "data",
        "symmetric": False,
        "array": [100 * (p.delta_ci95[1] - p.delta) for p in ours],
        "arrayminus": [100 * (p.delta - p.delta_ci95[0]) for p in ours],
    }
    text = [f"{p.asked}: {100 * p.top1:.2f} %, {p.time_ratio:.2f} of the time" for p in ours]
    data: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "lines+markers", "name": f"measured, n {baseline.accuracy.n}", "hovertext": text}
        | {"x": [1 / p.macs_ratio for p in ours], "y": [100 * p.delta for p in ours], "error_y": errors}
    ]
    if network == "resnet56":
        reference = {"x": [e["speed_up"] for e in PUBLISHED], "hovertext": [e["name"] for e in PUBLISHED]}
        rises = [100 * (float(e["top1"]) - float(e["from"])) for e in PUBLISHED]
        data.append({"type": "scatter", "mode": "markers", "name": "DepGraph, published", **reference, "y": rises})
    axes = {
        "xaxis": {"title": {"text": "times fewer MACs"}},
        "yaxis": {"title": {"text": "top-1, points from unpruned"}},
    }
    return {"data": data, "layout": {"height": 430, "showlegend": True, **axes}}


def write(
    out: Path, network: str, reports: Mapping[str, Report], points: Sequence[Point], setting: str,
    beside: Sequence[Against] = (),
) -> None:  # fmt: skip
    """``curve.json``, ``curve.md`` and ``report.html`` in ``out``."""
    from edgewise.report.page import write_html

    first = next(iter(reports.values()))
    baseline = first.rows[0]
    document: dict[str, Any] = {"network": network, "setting": setting, "baseline": encode_fields(baseline)}
    document |= {"points": [point.to_json() for point in points], "published": [*PUBLISHED]}
    document["siblings"] = [dataclasses.asdict(against) | {"verdict": against.verdict} for against in beside]
    out.mkdir(parents=True, exist_ok=True)
    (out / "curve.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text = markdown(network, baseline, points, setting) + "\n".join([*markdown_of(beside), ""] if beside else [])
    (out / "curve.md").write_text(text, encoding="utf-8")
    rows = [baseline]
    for budget_text, report in reports.items():
        last = {row.step: row for row in report.rows}["fold"]
        note = f"{setting} {numbers.count(last.macs)} MACs. A curve holds nothing to a limit."
        rows.append(dataclasses.replace(last, name=budget_text, verdict="not-checked", reason=note))
    page = Report(
        recipe={"name": f"{network}, pruned", "points": list(reports)}, environment=first.environment, rows=rows
    )
    page.sections.append(Section(title="Accuracy against work", figure=figure(network, baseline, points)))
    if beside:
        page.sections.append(Section(title="Beside the family's smaller members", html=_sibling_lines(beside)))
    write_html(page, out)


def _sibling_lines(comparisons: Sequence[Against]) -> str:
    rows = "".join(
        f"<tr><td>{escape(a.point)}</td><td>{escape(a.sibling)}</td><td>{_change_text(a.difference.delta, a.difference.ci95)}</td>"
        f"<td>{a.time_ratio:.3f}</td><td>{escape(a.verdict)}</td></tr>"
        for a in comparisons
    )
    head = "".join(
        f"<th>{cell}</th>" for cell in ("asked", "sibling", "points over it (95 %)", "time over its", "so it is")
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit status as ``python -m edgewise run``."""
    from edgewise.commands.console import run_guarded

    options = _parser().parse_args(arguments)
    return run_guarded(lambda: _run_study(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edgewise.studies.pruning_curve",
        description="Prunes one network to several budgets, each with the same fine-tune, and writes the curve as JSON, "
        "Markdown and a page. Goes on where it was stopped.",
    )
    parser.add_argument("--recipe", default="cifar_resnet56", help="whose baseline is taken (%(default)s)")
    parser.add_argument("--model", metavar="M", help="a name from 'list models', or path/to/net.py:function")
    parser.add_argument("--weights", metavar="F", help="safetensors or a weights-only checkpoint")
    parser.add_argument("--data", metavar="D", help="a data set: reader or reader:PATH")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to train")
    parser.add_argument(
        "--point", action="append", metavar="P", help=f"fields of Prune; repeat (default: {', '.join(DEFAULT_POINTS)})"
    )
    parser.add_argument("--epochs", type=int, default=100, help="of every fine-tune (%(default)s)")
    parser.add_argument("--lr", type=float, default=0.05, help="its peak learning rate (%(default)s)")
    parser.add_argument("--warmup", type=float, default=0.0, help="its warm-up in epochs (%(default)s)")
    parser.add_argument(
        "--distill", type=float, default=0.9, help="weight of the unpruned network's answers (%(default)s)"
    )
    parser.add_argument(
        "--views",
        type=int,
        default=0,
        metavar="N",
        help="random changes that each image takes turns in, so that the unpruned network is asked about each once; "
        "0: ever new ones (%(default)s)",
    )
    parser.add_argument(
        "--mirrored-teacher",
        action="store_true",
        help="the unpruned network answers with the mean over an image and its mirror image",
    )
    parser.add_argument(
        "--reconstruct",
        type=int,
        default=1024,
        metavar="N",
        help="images on which every layer is fitted anew after the cut; 0: none (%(default)s)",
    )
    parser.add_argument(
        "--recover-steps",
        type=int,
        default=0,
        metavar="N",
        help="steps of block-wise distillation before the fine-tune (%(default)s)",
    )
    parser.add_argument(
        "--ema", type=float, default=0.0, help="decay per step of averaged weights; 0: off (%(default)s)"
    )
    parser.add_argument(
        "--decay", choices=("cosine", "linear"), default="cosine", help="of the learning rate (%(default)s)"
    )
    parser.add_argument("--label-smoothing", type=float, default=0.0, metavar="E", help="(%(default)s)")
    parser.add_argument("--sparse-epochs", type=int, default=0, help="of sparse learning before pruning (%(default)s)")
    parser.add_argument("--sparse", type=float, default=5e-4, help="its strength (%(default)s)")
    parser.add_argument(
        "--sibling",
        action="append",
        default=[],
        metavar="MODEL=F",
        help="a smaller member of the family and its weights, to hold every point against; repeat",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/prune_curve"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output, nothing else")
    return parser


def _run_study(options: argparse.Namespace) -> int:
    from edgewise.library_noise import quieten_libraries

    quieten_libraries()
    from edgewise.report.page import write_html
    from edgewise.report.watch import Watch
    from edgewise.run import run
    from edgewise.run.job import resolve_recipe

    point_texts, siblings = options.point or DEFAULT_POINTS, [parse_sibling(text) for text in options.sibling]
    watch = Watch(quiet=False)
    jobs = {point: resolve_recipe(recipe_of(options, point), options.out / _file_stem(point)) for point in point_texts}
    reports: dict[str, Report] = {}
    points: list[Point] = []
    right: list[Any] = []
    has_failed = False
    for point, job in jobs.items():
        watch.say(f"== {point}")
        try:
            report = run(job, watch)
        except StageError as error:  # the other points stand
            has_failed = True
            watch.say(f"{point}: {error}")
            continue
        reports[point] = report
        write_html(reports[point], job.out)
        points.append(outcome(point, reports[point]))
        right.append(_correct_images(reports[point], job))
        network = job.recipe.model
        setting = _setting_words(options)
        write(options.out, network, reports, compare_points(points, right), setting)
    if not points:
        return 1
    if siblings:
        beside = _held_against(siblings, {point: jobs[point] for point in reports}, reports)
        write(options.out, network, reports, compare_points(points, right), setting, beside)
    text = (options.out / ("curve.json" if options.json else "curve.md")).read_text(encoding="utf-8")
    print(text)
    return 1 if has_failed else 0


def _setting_words(options: argparse.Namespace) -> str:
    """What every point gets, in words."""
    fitting = f"layers fitted anew on {options.reconstruct:,} images, " if options.reconstruct else ""
    taught = f"{options.recover_steps:,} steps of block-wise distillation, " if options.recover_steps else ""
    sparse = f", after {options.sparse_epochs} epochs of sparse learning" if options.sparse_epochs else ""
    views = f" about {options.views} views of an image" if options.views else ""
    mirrored = " and its mirror images" if options.mirrored_teacher else ""
    tuning = f"{options.epochs} epochs at {options.lr:g}, distillation {options.distill:g}{views}{mirrored}"
    tuning += ", linear decay" if options.decay == "linear" else ""
    tuning += f", averaged weights {options.ema:g}" if options.ema else ""
    tuning += f", labels smoothed by {options.label_smoothing:g}" if options.label_smoothing else ""
    return f"Each point: {fitting}{taught}{tuning}{sparse}."


def _held_against(siblings: Sequence[tuple[str, Path]], jobs: Mapping[str, Job], reports: Mapping[str, Report]) -> Any:
    """Every point's file against every sibling's."""
    import tempfile

    from edgewise.files.open import open_runtime

    first = next(iter(jobs.values()))
    files = {
        point: open_runtime(job.runtime, job.out / reports[point].artifacts[0].path, job.recipe.threads)
        for point, job in jobs.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        others = sibling_files(siblings, first, Path(folder))
        return compare_with_siblings(files, others, first.data, first.spec, first.recipe.threads)


def _correct_images(report: Report, job: Any) -> Any:
    """Which test images the written file gets right, [n]."""
    from edgewise.files.open import open_runtime
    from edgewise.measure.answers import compute_logits

    path = job.out / report.artifacts[0].path
    runner = open_runtime(job.runtime, path, job.recipe.threads)
    return (compute_logits(runner, job.data.test, job.spec).argmax(1) == job.data.test.labels).numpy()


if __name__ == "__main__":
    sys.exit(main())

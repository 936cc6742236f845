"""What substitution costs and saves on one network, stage by stage: ``python -m edgewise.studies.substitution RECIPE``.

The recipe's first ``Separate`` stage is taken apart: the plan, the same layers with fresh filters, with fitted ones, after
block-wise distillation, then the rest of the recipe. Every network is judged on the whole test set, the last one also in
its files' runtimes. Everything lies in the step store: the same command goes on where an earlier one was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.errors import RequestError
from edgewise.report import numbers
from edgewise.report.markdown import markdown_table
from edgewise.report.rows import Row
from edgewise.store.whole import write_whole

if TYPE_CHECKING:
    from edgewise.recipe import Recipe
    from edgewise.report.document import Report
    from edgewise.report.watch import Watch
    from edgewise.run.job import Job
    from edgewise.run.session import Session
    from edgewise.stage import Stage
    from edgewise.stages.separate import Separate


FITTED, FRESH, DISTILLED = "fitted filters", "fresh filters", "distilled block by block"


@dataclass(frozen=True, kw_only=True)
class Study:
    """The outcome: the rows of the report, and what they come to."""

    report: Report
    plan: Mapping[str, Any]
    """The facts of the plan: which layers, and their multiply-accumulates before and after."""

    def to_json(self) -> dict[str, Any]:
        """One JSON document: the goal, what the substituted layers saved, a row a network, a row a file."""
        document = self.report.to_json()
        return {
            "model": document["recipe"]["model"],
            "environment": document["environment"],
            "layers": {key: self.plan[key] for key in ("accepted", "dense_macs", "new_macs")}
            | {"of": len(self.plan["layers"]), "fewer": self.plan["dense_macs"] / self.plan["new_macs"]},
            "rows": [
                {key: row[key] for key in ("name", "target", "params", "macs", "bytes", "accuracy", "latency", "verdict", "reason")}
                for row in document["rows"]
            ],
        }  # fmt: skip

    def markdown(self) -> str:
        """The same as a table."""
        layers = self.to_json()["layers"]
        lines = [
            f"{layers['accepted']} of {layers['of']} convolutions replaced; in them {numbers.count(layers['dense_macs'])} "
            f"multiply-accumulates became {numbers.count(layers['new_macs'])}, {layers['fewer']:.2f} times fewer.",
            "",
            *markdown_table(_HEAD, map(_cells, self.report.rows)),
        ]
        return "\n".join(lines) + "\n"


_HEAD = ("network", "top-1, %", "change, points", "n", "params", "MACs", "time", "verdict")


def _cells(row: Row) -> list[str]:
    name = f"{row.target} file" if row.target else row.label
    top1 = change = count = "–"
    if row.accuracy is not None:
        top1, count = numbers.percent(row.accuracy.top1), f"{row.accuracy.n:,}"
        change = numbers.points(row.accuracy.vs_baseline.delta)
    time = "–"
    if (latency := row.latency) is not None:
        low, high = map(numbers.ratio, latency.ci95)
        time = f"{numbers.significant(latency.p50_ms)} ms on {latency.on}, {numbers.ratio(latency.ratio_to_baseline)} ({low} to {high})"
    return [name, top1, change, count, numbers.count(row.params), numbers.count(row.macs), time, row.verdict]


def study_stages(job: Job, watch: Watch) -> Study:
    """Do it; ``report.json`` on disk grows by a row after each network. Raises RequestError for a recipe without it."""
    from edgewise.run import open_session

    with open_session(job, watch) as session:
        plan = _make_rows(session, job.recipe)
        return Study(report=session.report, plan=plan)


def _make_rows(session: Session, recipe: Recipe) -> Mapping[str, Any]:
    from edgewise.run.grids import share_grids

    stage, before, after = _taken_apart(recipe)
    baseline = model = session.baseline()
    for earlier in before:
        model = session.step(earlier, model, baseline, after=(stage, *after))
    planned_model = session.step(replace(stage, recover_steps=0), model, baseline, after=after)
    _rename_last_row(session, FITTED)
    plan: Mapping[str, Any] = planned_model.facts["plan"]
    same = _same_layers(stage, plan)
    session.step(replace(same, init="fresh", recover_steps=0), model, baseline, after=after)
    _rename_last_row(session, FRESH)
    if stage.recover_steps:
        model = session.step(same, model, baseline, after=after)
        _rename_last_row(session, DISTILLED)
    else:
        model = planned_model
    for index, later in enumerate(after):
        model = session.step(later, model, baseline, after=after[index + 1 :])
    for _, group in share_grids(session.job.targets):
        session.artifacts(model, group, baseline)
    return plan


def _taken_apart(recipe: Recipe) -> tuple[Separate, Sequence[Stage], Sequence[Stage]]:
    from edgewise.stages.separate import Separate

    for index, stage in enumerate(recipe.stages):
        if isinstance(stage, Separate):
            return stage, recipe.stages[:index], recipe.stages[index + 1 :]
    raise RequestError(f"recipe {recipe.name!r} has no Separate stage to study; choose one that substitutes layers")


def _same_layers(stage: Separate, plan: Mapping[str, Any]) -> Separate:
    """The stage with a plan's layers as its own wish, so that every variant replaces exactly those."""
    names = tuple(layer["name"] for layer in plan["layers"] if layer["accepted"])
    return replace(stage, layers=names, keep=(), max_error=10.0, max_drop=None, max_layers=None, measure_time=False)


def _rename_last_row(session: Session, name: str) -> None:
    session.report.rows[-1] = replace(session.report.rows[-1], name=name)
    session.report.write(session.job.out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit status as ``python -m edgewise run``."""
    from edgewise.commands.console import run_guarded

    options = _parser().parse_args(arguments)
    return run_guarded(lambda: _run_study(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edgewise.studies.substitution",
        description="What substitution costs and saves on one network, stage by stage: a table and a report.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe with a Separate stage, as separate_resnet20")
    parser.add_argument("--model", metavar="M", help="a name from 'list models', or path/to/net.py:function")
    parser.add_argument("--weights", metavar="F", help="safetensors or a weights-only checkpoint")
    parser.add_argument("--data", metavar="D", help="a data set: reader or reader:PATH")
    parser.add_argument("--target", action="append", metavar="T", help="write for this target; repeat for several")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to train")
    parser.add_argument("--epochs", type=int, metavar="N", help="of the fine-tuning, instead of the recipe's own")
    parser.add_argument("--out", type=Path, metavar="DIR", help="report and tables (default: runs/substitution/RECIPE)")
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output, nothing else")
    return parser


def _run_study(options: argparse.Namespace) -> int:
    from edgewise.library_noise import quieten_libraries

    quieten_libraries()
    from edgewise.catalogue import find_recipe
    from edgewise.commands.console import FAILED, PASSED
    from edgewise.report.page import write_html
    from edgewise.report.watch import Watch
    from edgewise.run.job import resolve_recipe
    from edgewise.run.request import override_fields

    changes = {key: getattr(options, key) for key in ("model", "weights", "data", "device")}
    changes["targets"] = tuple(options.target) if options.target else None
    recipe = _shorten_training(override_fields(find_recipe(options.recipe), changes), options.epochs)
    out = options.out or Path("runs") / "substitution" / recipe.name
    outcome = study_stages(resolve_recipe(recipe, out), Watch(quiet=False))
    write_html(outcome.report, out)
    document = json.dumps(outcome.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(out / "substitution.json", f"{document}\n".encode())
    write_whole(out / "substitution.md", outcome.markdown().encode())
    print(document if options.json else outcome.markdown())
    return FAILED if any(row.verdict == "fail" for row in outcome.report.rows) else PASSED


def _shorten_training(recipe: Recipe, epochs: int | None) -> Recipe:
    from edgewise.stages.finetune import Finetune

    if epochs is None:
        return recipe
    stages = [
        replace(stage, training=dataclasses.replace(stage.training, epochs=epochs))
        if isinstance(stage, Finetune)
        else stage
        for stage in recipe.stages
    ]
    return replace(recipe, stages=tuple(stages))


if __name__ == "__main__":
    sys.exit(main())

"""A run that has been run: answered by the report it wrote, where nothing that counts has changed since."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.store import finished
from edgewise.store.entries import store_folder
from edgewise.store.finished import FinishedRun

if TYPE_CHECKING:
    from edgewise.report.rows import Row

_ASIDE = frozenset(("run", "parser", "command", "json", "debug", "dry_run", "log", "sign"))
"""Options that change nothing of what a run does; one that signs, or only plans, is never answered so."""
_WRITTEN = ("report.json", "report.html", "outcomes.safetensors", "artifacts", "checkpoints")


def recall_finished(options: argparse.Namespace) -> FinishedRun | None:
    """The finished run that answers this request; None where there is none, or anything has changed."""
    if options.sign is not None or options.dry_run:
        return None
    root = store_folder()
    with contextlib.suppress(OSError):
        run = finished.recall_run(root, _words(options))
        if run is not None and run.is_unchanged() and _made_alike(options, run) and run.touch_results(root):
            return run
    return None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a run that begins rests on."""

    words: dict[str, Any]
    ground: dict[str, Any]
    stamp: str
    began: float


def survey_request(options: argparse.Namespace, recipe: Any) -> Survey | None:
    """What the run of a recipe will rest on, before anything of it is read; None where that cannot all be looked at again:
    weights of a package's own, a graphics processor, files that cannot be read (the run says so), a signature."""
    if options.sign is not None or recipe.device != "cpu" or recipe.weights == "pretrained":
        return None
    with contextlib.suppress(OSError, ValueError):
        files = _files_read(options, recipe)
        began, stamp = time.time(), finished.stamp_files(files)
        return Survey(words=_words(options), ground=finished.survey_ground(files), stamp=stamp, began=began)
    return None


def remember_finished(
    survey: Survey | None, options: argparse.Namespace, recipe: Any, job: Any, rows: Sequence[Row]
) -> None:
    """Keep that the run ended, unless something that it rests on has changed meanwhile, or a busy machine left a row
    undecided: the same command again measures that anew."""
    if survey is None or any(map(_left_open_by_the_machine, rows)):
        return
    files = [Path(path) for path in survey.ground["files"]]
    with contextlib.suppress(OSError):
        if not finished.is_ground_still(survey.ground) or finished.stamp_files(files) != survey.stamp:
            return
        run = FinishedRun(
            ground=survey.ground,
            made=_made(options, recipe, len(job.data.classes), job.data.shape[0]),
            out=job.out.absolute(),
            written=finished.digest_written(job.out, _WRITTEN),
            used=finished.results_used_since(job.store, survey.began),
            ended=time.time(),
        )
        finished.remember_run(job.store, survey.words, run)


def _left_open_by_the_machine(row: Row) -> bool:
    conditions = row.latency.conditions if row.latency else None
    return row.gates.get("latency") == "not-checked" and conditions is not None and bool(conditions.disturbances)


def say_unchanged(run: FinishedRun) -> str:
    """What to say of a run that answers again."""
    when = time.strftime("%d %B %Y, %H:%M", time.localtime(run.ended))
    return (
        f"This run ended on {when}, and nothing has changed since, by digests: the request, this program, packages, machine, "
        "images, weights and every file that it wrote. Its report, as it was kept:"
    )


def _words(options: argparse.Namespace) -> dict[str, Any]:
    """The request as it was typed, and where: what relative paths mean."""
    words = {name: value for name, value in vars(options).items() if name not in _ASIDE}
    return {"where": str(Path.cwd()), **{name: str(v) if isinstance(v, Path) else v for name, v in words.items()}}


def _own_code(options: argparse.Namespace) -> list[Path]:
    """The user's files of code that the request names."""
    names = [name for name in (options.recipe, options.model) if name and ".py:" in name]
    return [Path(name.rpartition(":")[0]) for name in names]


def _files_read(options: argparse.Namespace, recipe: Any) -> list[Path]:
    """Every file and folder that the run of a recipe reads: the user's code, images, weights."""
    from edgewise.calib_data import places_read

    own = _own_code(options) + ([Path(recipe.model.rpartition(":")[0])] if ".py:" in recipe.model else [])
    code = [file for path in dict.fromkeys(own) for file in finished.code_files(path)]
    weights = [] if recipe.weights is None else [Path(recipe.weights), Path(recipe.weights.rpartition("#")[0])]
    return list(dict.fromkeys([*code, *places_read(recipe.data), *(path for path in weights if path.is_file())]))


def _made(options: argparse.Namespace, recipe: Any, classes: int, channels: int) -> dict[str, Any]:
    """What the user's code makes of the request, as JSON types; empty where no code is the user's."""
    if not _own_code(options) and ".py:" not in recipe.model:
        return {}
    from edgewise.run.user_made import describe_made

    made: dict[str, Any] = json.loads(json.dumps(describe_made(recipe, classes, channels)))
    return made


def _made_alike(options: argparse.Namespace, run: FinishedRun) -> bool:
    """Whether the user's code, run again, makes what it made then."""
    if not run.made:
        return True
    from edgewise.commands.request import request_recipe

    return run.made == _made(options, request_recipe(options), run.made["classes"], run.made["channels"])

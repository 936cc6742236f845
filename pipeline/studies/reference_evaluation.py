"""Whether a target's reference evaluation of a file answers as PyTorch does, over a whole test set.

``python -m edgewise.studies.reference_evaluation --data digits``: every architecture, reduced as in the tests and briefly
trained, is written float and int8, and the file's evaluation is held against the network it was written from, image by
image, as a run holds it. A class that differs although PyTorch prefers its own by more than a tie is a fault, unless it is
the declared float16 alone that makes it: such a file is evaluated once more without that rounding, as PyTorch runs its
graph. Where classes still differ, every layer is held against PyTorch's on those images, from the file's own inputs to
it: if none is more than a step away, the file's instructions are the network's, and roundings at ties have added up.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from edgewise import calib_data, library_noise, models, targets
from edgewise.calib_data import Data, Part
from edgewise.commands.console import FAILED, PASSED, run_guarded
from edgewise.images import resized
from edgewise.images.normalise import normalise
from edgewise.measure.agreement import compare_answers, differing_images
from edgewise.measure.answers import compute_logits
from edgewise.measure.values import Agreement
from edgewise.models import Spec
from edgewise.network import captured, float16_constants
from edgewise.report import markdown
from edgewise.stage import Context
from edgewise.stages.fitting.batch_norms import batch_norms, reestimate_norms
from edgewise.stages.fold import Fold
from edgewise.stages.training.augment import Augment
from edgewise.stages.training.loop import fit
from edgewise.stages.training.settings import Training
from edgewise.store.whole import write_whole
from edgewise.studies.architectures.cells import PRECISIONS, FileKind
from edgewise.studies.architectures.network import capture_network
from edgewise.studies.architectures.table import why_unmeasured
from edgewise.targets import Runner, Target
from edgewise.verify import layerwise
from edgewise.verify.gates import Limits, on_agreement

_TRAINING = Training(
    epochs=10, steps=40, lr=2e-3, batch_size=32, optimizer="adamw", weight_decay=0.05, warmup=1, clip=1.0,
    augment=Augment(crop=0), precision="32-true",
)  # fmt: skip
"""One round, its rate risen and fallen."""
_ROUNDS = 4
_LEARNT = 0.97
"""Share of the calibration images told right after which no further round follows."""
_CALIBRATION = 128
"""Images that the ranges of the int8 graph are observed on."""
_STATISTICS = 512
"""Training images that batch norms' statistics are estimated on after training."""
_LOOKED_INTO = 16
"""Images that may differ for the layers to be compared on all of them; a file with more is at fault."""
_STRICT = Limits(min_agreement=1.0)
"""No image may differ but by a tie."""


@dataclass(frozen=True)
class _Channels:
    """A part whose images have as many channels as the network takes: gray repeated, colours averaged."""

    source: Part
    count: int

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""
        return self.source.labels

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, index: Tensor) -> Tensor:
        """The images at ``index`` (int64 [B]) as uint8 [B, count, H, W]."""
        images = self.source.batch(index)
        if images.shape[1] == self.count:
            return images
        return images.float().mean(1, keepdim=True).round().to(torch.uint8).expand(-1, self.count, -1, -1)


@dataclass(frozen=True)
class Found:
    """How a file's evaluation compares with the network it was written from."""

    model: str
    target: str
    precision: FileKind
    agreement: Agreement
    """As a run compares a file with its network; layers are compared on the images that differ, where some do."""
    accuracy: float
    """Top-1 of the network in PyTorch."""
    seconds: float
    unrounded: Agreement | None = None
    """As ``agreement``, evaluated without float16's rounding; None: not looked at, nothing differed."""

    @property
    def agrees(self) -> bool:
        """No class differs but by a tie, and the logits lie within what rounding explains."""
        return _passes(replace(self.agreement, layers_apart=None))

    @property
    def by_rounding(self) -> bool:
        """Classes differ, and none would by more than a tie if nothing were rounded to float16."""
        return not self.agrees and self._near and self.unrounded is not None and self.unrounded.differ == 0

    @property
    def by_layers(self) -> bool:
        """Classes differ, but no layer computes anything else than PyTorch's from what it is given."""
        return not self.agrees and self._near and self.agreement.layers_apart == 0

    @property
    def _near(self) -> bool:
        """Whether the logits as a whole lie within what rounding explains, whatever their classes."""
        return _passes(replace(self.agreement, differ=0, layers_apart=None))


def _passes(agreement: Agreement) -> bool:
    return on_agreement(agreement, _STRICT).verdict == "pass"


def examine_files(
    name: str, data: Data, target: Target, precisions: Sequence[FileKind], folder: Path
) -> Iterable[Found]:
    """Train the reduced network, write its files, and compare every image's logits."""
    spec = models.get(name)
    network, context = _train_network(spec, data, folder)
    floating = Fold()(network, context)
    for precision in precisions:
        yield _hold_file(floating, precision, context, target)


def _hold_file(floating: nn.Module, precision: FileKind, context: Context, target: Target) -> Found:
    """Write the network in ``precision`` and compare the file's answers with its own."""
    start = time.perf_counter()
    test, spec, kind = context.data.test, context.spec, _kind(precision)
    network = floating if precision == "float" else _quantize_network(floating, context, target)
    program, path = (
        capture_network(network, context.data.shape),
        context.scratch / f"{spec.name}-{precision}{target.suffix}",
    )
    target.export(program, path, targets.USUAL)
    assert target.reference is not None
    expected = compute_logits(network, test, spec, batch=100)
    answers = compute_logits(target.reference(path), test, spec, batch=100)
    rounded_result, exact_count = compare_answers(answers.numpy(), expected.numpy(), kind), None
    if rounded_result.differ and (exact := _exact_evaluation(target)):
        plain = compute_logits(exact(path), test, spec, batch=100)
        exact_count = compare_answers(plain.numpy(), expected.numpy(), kind)
    if 0 < (rounded_result.differ or 0) <= _LOOKED_INTO and not (exact_count and exact_count.differ == 0):
        differing = torch.from_numpy(differing_images(answers.numpy(), expected.numpy(), rounded_result.margin))
        apart = layers_apart(target, path, program, normalise(test.batch(differing), spec), precision)
        rounded_result = replace(rounded_result, layers_apart=apart)
    return Found(
        model=spec.name, target=target.name, precision=precision, agreement=rounded_result, accuracy=_share_correct(expected, test),
        seconds=time.perf_counter() - start, unrounded=exact_count,
    )  # fmt: skip


def _kind(precision: FileKind) -> targets.Precision:
    """What the evaluated files of a kind compute in: Core ML's float ones in float16."""
    return "float16" if precision == "float" else "int8"


def layers_apart(
    target: Target, path: Path, program: ExportedProgram, images: Tensor, precision: FileKind
) -> int | None:
    """Layers of the file that differ from the program's by more than a step, each from the file's own inputs to it.

    ``images``: normalised, [N, C, H, W]. None where the target lets no intermediate value out, or none that both have.
    """
    layers = layerwise.layers_apart(target, path, program, images, _kind(precision))
    return None if layers is None else len(layers)


def _exact_evaluation(target: Target) -> Callable[[Path], Runner] | None:
    """The target's evaluation without rounding between operators, where it has one."""
    if target.name != "coreml":
        return None
    from edgewise.targets.coreml import exact

    return exact.reference


def _train_network(spec: Spec, data: Data, folder: Path) -> tuple[nn.Module, Context]:
    torch.manual_seed(0)
    network = spec.build(**{**spec.small, "num_classes": len(data.classes)})
    channels, height, width = spec.small_input or spec.input_shape
    sized = resized.resize_data(data, (height, width))
    view = replace(
        sized,
        train=_Channels(sized.train, channels),
        calib=_Channels(sized.calib, channels),
        test=_Channels(sized.test, channels),
        shape=(channels, height, width),
    )
    context = Context(spec=spec, data=view, scratch=folder)
    for number in range(_ROUNDS):
        scratch = folder / f"{spec.name}-round-{number}"
        scratch.mkdir(parents=True, exist_ok=True)
        fit(network, _TRAINING, replace(context, scratch=scratch, seed=number), None)
        _catch_up(network, context)
        if _share_correct(compute_logits(network, view.calib, spec, batch=100), view.calib) >= _LEARNT:
            break
    return network, context


def _share_correct(answers: Tensor, part: Part) -> float:
    return float((answers.argmax(1) == part.labels).float().mean())


def _catch_up(network: nn.Module, context: Context) -> None:
    """Estimate batch norms' statistics anew: so short a training leaves them behind the weights."""
    if norms := batch_norms(network):
        index = torch.arange(min(_STATISTICS, len(context.data.train)))
        parts = [context.data.train.batch(part) for part in torch.split(index, 64)]
        reestimate_norms(network, norms, [normalise(part, context.spec) for part in parts])
    network.eval()


@torch.no_grad()
def _quantize_network(network: nn.Module, context: Context, target: Target) -> GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    graph = captured.export_graph(network, context.data.shape, batch=None)
    index = torch.arange(min(_CALIBRATION, len(context.data.calib)))
    with library_noise.quiet_capture():
        observed = prepare_pt2e(graph, target.quantizer(target.grids[0]))
        observed(normalise(context.data.calib.batch(index), context.spec))
        float16_constants.round_prepared(observed)  # as every quantized network of a run is, before any file is written
        return captured.convert(observed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, as ``python -m edgewise`` has them."""
    options = _parser().parse_args(arguments)
    return run_guarded(lambda: _run_study(options))


def _run_study(options: argparse.Namespace) -> int:
    """0 where every file agrees, but for roundings at most; 1 where one does not."""
    # Networks this small gain little from a second thread, and wait long for one whose core is taken.
    torch.set_num_threads(1)
    target, data = targets.get(options.target), calib_data.load(options.data)
    names = [models.get(name).name for name in options.models] or list(models.names())
    if target.reference is None:
        raise targets.TargetError(f"{options.target} has no reference evaluation on this host")
    out = options.out / f"{target.name}-{_reader_name(data)}.json"
    record = _read_results(out)
    precisions: Sequence[FileKind] = PRECISIONS[1:] if target.integers_only else PRECISIONS
    for number, name in enumerate(names, 1):
        if options.again or name not in record:
            record[name] = _stored_rows(name, data, target, precisions)
            write_whole(out, json.dumps(record, indent=1).encode())
        for row in record[name]:
            _print_note(f"{number}/{len(names)} {_in_words(name, row)}")
    write_whole(out.with_suffix(".md"), _markdown(target.name, data, record).encode())
    _print_note(f"written: {out.with_suffix('.md')}")
    return FAILED if any(_is_bad(row) for name in names for row in record[name]) else PASSED


def _reader_name(data: Data) -> str:
    """A data set's name without the place where it lies."""
    return data.name.partition(":")[0]


def _stored_rows(name: str, data: Data, target: Target, precisions: Sequence[FileKind]) -> list[dict[str, Any]]:
    if reason := models.get(name).cannot.get(target.name):
        return [{"cannot": reason}]
    with tempfile.TemporaryDirectory() as folder:
        try:
            rows = list(examine_files(name, data, target, precisions, Path(folder)))
        except Exception as error:
            # A backend raises what it likes; a row says so, and the other rows are measured.
            return [{"failed": f"{type(error).__name__}: {str(error)[:500]}"}]
    return [_row(one) for one in rows]


def _row(result: Found) -> dict[str, Any]:
    agreement, unrounded = result.agreement, result.unrounded
    return {
        "model": result.model,
        "target": result.target,
        "precision": result.precision,
        "images": agreement.n,
        "ties": agreement.ties,
        "differ": agreement.differ,
        "noise": agreement.noise,
        "noise_unit": agreement.noise_unit,
        "noise_allowed": agreement.noise_allowed,
        "sqnr_db": agreement.sqnr_db,
        "accuracy": result.accuracy,
        "seconds": result.seconds,
        "unrounded": None if unrounded is None else unrounded.differ,
        "layers_apart": agreement.layers_apart,
        "agrees": result.agrees,
        "by_rounding": result.by_rounding,
        "by_layers": result.by_layers,
    }


def _is_bad(row: dict[str, Any]) -> bool:
    return "failed" in row or ("agrees" in row and _verdict(row) == _NO)


_YES, _BUT, _LAYERS, _NO = "yes", "but for float16", "layer by layer", "**no**"
_SPOKEN = {_YES: "agrees", _BUT: "agrees but for float16", _LAYERS: "agrees layer by layer", _NO: "DIFFERS"}


def _verdict(row: dict[str, Any]) -> str:
    if row["agrees"]:
        return _YES
    return _BUT if row.get("by_rounding") else _LAYERS if row.get("by_layers") else _NO


def _in_words(name: str, row: dict[str, Any]) -> str:
    if reason := why_unmeasured(row):
        return f"{name}: {reason}"
    return (
        f"{name} {row['precision']}: {_SPOKEN[_verdict(row)]}, {row['images'] - row['ties'] - row['differ']:,} of {row['images']:,} "
        f"in the same class, {row['ties']} ties, noise {_noise(row)}, top-1 {row['accuracy']:.1%}, "
        f"{row['seconds']:.0f} s"
    )


def _markdown(target: str, data: Data, record: dict[str, list[dict[str, Any]]]) -> str:
    head = ["architecture, reduced", "precision", "images", "top-1", "same class", "ties", "differ", "noise", "agrees"]
    rows = []
    for name in sorted(record):
        for row in record[name]:
            reason = why_unmeasured(row)
            rows.append([name, reason, *[""] * (len(head) - 2)] if reason else _columns(name, row))
    intro = (
        f"# {target}: the reference evaluation against PyTorch, {_reader_name(data)}\n\n"
        "Written by `nox -s evaluator`. Each architecture is reduced as in the tests and trained in a minute or two; its files' "
        "own instructions are evaluated over every test image and compared with the PyTorch network they were written "
        "from. **top-1**: that network's own. Ties, images that differ and **noise** are [a run's own](how-results-are-judged.md"
        "#agreement-of-a-file-with-its-network); none may differ here. **but for float16**: no class differs by more than a tie "
        "once the evaluation leaves out the rounding to float16 that the file declares and PyTorch's graph lacks. "
        "**layer by layer**: classes differ even then, but on those images no layer is more than a step away from "
        "PyTorch's, given the same inputs.\n"
    )
    return "\n".join([intro, *markdown.markdown_table(head, rows), ""])


def _columns(name: str, row: dict[str, Any]) -> list[str]:
    same = row["images"] - row["ties"] - row["differ"]
    counts = [f"{row['images']:,}", f"{row['accuracy']:.1%}", f"{same:,}", str(row["ties"]), str(row["differ"])]
    return [name, row["precision"], *counts, _noise(row), _verdict(row)]


def _noise(row: dict[str, Any]) -> str:
    return f"{row['noise']:.2f} steps" if row["noise_unit"] == "steps" else f"{row['noise']:.3%}"


def _read_results(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        record: dict[str, list[dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    # Rows of before agreement was told as runs tell it are measured again.
    return {name: rows for name, rows in record.items() if all("noise" in row or len(row) == 1 for row in rows)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edgewise.studies.reference_evaluation",
        description="Holds a target's reference evaluation of written files against PyTorch, over a whole test set, for "
        "every architecture. Goes on where it was stopped.",
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="only these (default: every registered one)")
    parser.add_argument("--target", default="coreml", metavar="T", help="a target with a reference (%(default)s)")
    parser.add_argument("--data", default="digits", metavar="D", help="digits, or reader:PATH (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluator"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--again", action="store_true", help="also what was measured before")
    return parser


def _print_note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""Whether a target's reference evaluation of a file answers as PyTorch does, over a whole test set.

``python -m edgewise.studies.reference_evaluation --data digits``: every architecture, reduced as in the tests and briefly
trained, is written float and int8, and the file's evaluation is held against the network it was written from, image by
image. A class that differs although PyTorch prefers its own by more than a tie is a fault, unless it is the declared
float16 alone that makes it: such a file is evaluated once more without that rounding, as PyTorch runs its graph. Where
classes still differ, every layer is held against PyTorch's on those images, from the file's own inputs to it: if none
is more than a step away, the file's instructions are the network's, and roundings at ties have added up.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
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
from edgewise.measure.agreement import differing_images
from edgewise.measure.answers import compute_logits
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
from edgewise.studies.architectures.network import agreement, capture
from edgewise.studies.architectures.table import why_unmeasured
from edgewise.targets import Runner, Target
from edgewise.verify import layerwise

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
_TIE = {"float": 0.01, "int8": 0.02}
"""How far apart PyTorch's two logits may lie, as a share of the spread of all, for the files' order to be a matter of
rounding: some units in the last place of float16, or a few steps of an 8-bit grid."""
_LOOKED_INTO = 16
"""Images that may differ for the layers to be compared on all of them; a file with more is at fault."""
_ERROR = {"float": 0.02, "int8": 0.1}
"""Largest accepted ‖a − b‖ / ‖b − mean(b)‖ over all logits."""


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
    images: int
    error: float
    """‖a − b‖ / ‖b − mean(b)‖ over all logits of all images."""
    ties: int
    """Images in another class, between which PyTorch sees a tie."""
    differ: int
    """Images in another class, between which it does not."""
    accuracy: float
    """Top-1 of the network in PyTorch."""
    seconds: float
    unrounded: int | None = None
    """As ``differ``, evaluated without float16's rounding; None: not looked at, nothing differed."""
    layers_apart: int | None = None
    """Layers that compute something else than PyTorch's on the images that differ; None: not looked at."""

    @property
    def agrees(self) -> bool:
        """No class differs but by a tie, and the logits lie within the tolerance."""
        return self.differ == 0 and self.error <= _ERROR[self.precision]

    @property
    def by_rounding(self) -> bool:
        """Classes differ, and none would by more than a tie if nothing were rounded to float16."""
        return self.differ > 0 and self.unrounded == 0 and self.error <= _ERROR[self.precision]

    @property
    def by_layers(self) -> bool:
        """Classes differ, but no layer computes anything else than PyTorch's from what it is given."""
        return self.differ > 0 and self.layers_apart == 0 and self.error <= _ERROR[self.precision]


@dataclass(frozen=True)
class Compared:
    """Two networks' logits on the same images."""

    error: float
    """‖a − b‖ / ‖b − mean(b)‖."""
    ties: int
    """Images in another class by a tie."""
    differing: Tensor
    """Numbers of the images in another class otherwise, int64 [n]."""


def compare(found: Tensor, wanted: Tensor, tie: float) -> Compared:
    """Logits [N, classes] against the wanted ones.

    ``tie``: how far apart the two classes' logits may lie in ``wanted``, as a share of the spread of all its logits.
    """
    margin = tie * float(wanted.max() - wanted.min())
    differing = torch.from_numpy(differing_images(found.numpy(), wanted.numpy(), margin))
    other = int((wanted.argmax(1) != found.argmax(1)).sum())
    return Compared(agreement(found, wanted).error, other - len(differing), differing)


def examine(name: str, data: Data, target: Target, precisions: Sequence[FileKind], folder: Path) -> Iterable[Found]:
    """Train the reduced network, write its files, and compare every image's logits."""
    spec = models.get(name)
    network, context = _trained(spec, data, folder)
    floating = Fold()(network, context)
    for precision in precisions:
        yield _held(floating, precision, context, target)


def _held(floating: nn.Module, precision: FileKind, context: Context, target: Target) -> Found:
    """Write the network in ``precision`` and compare the file's answers with its own."""
    started = time.perf_counter()
    test, spec, tie = context.data.test, context.spec, _TIE[precision]
    network = floating if precision == "float" else _quantized(floating, context, target)
    program, path = capture(network, context.data.shape), context.scratch / f"{spec.name}-{precision}{target.suffix}"
    target.export(program, path, targets.USUAL)
    assert target.reference is not None
    wanted = compute_logits(network, test, spec, batch=100)
    seen = compare(compute_logits(target.reference(path), test, spec, batch=100), wanted, tie)
    differ = len(seen.differing)
    unrounded = layers = None
    if differ and (exact := _exact(target)):
        unrounded = len(compare(compute_logits(exact(path), test, spec, batch=100), wanted, tie).differing)
    if 0 < differ <= _LOOKED_INTO and unrounded != 0:
        layers = layers_apart(target, path, program, normalise(test.batch(seen.differing), spec), precision)
    return Found(
        model=spec.name, target=target.name, precision=precision, images=len(wanted), error=seen.error, ties=seen.ties,
        differ=differ, accuracy=_right(wanted, test), seconds=time.perf_counter() - started,
        unrounded=unrounded, layers_apart=layers,
    )  # fmt: skip


def layers_apart(
    target: Target, path: Path, program: ExportedProgram, images: Tensor, precision: FileKind
) -> int | None:
    """Layers of the file that differ from the program's by more than a step, each from the file's own inputs to it.

    ``images``: normalised, [N, C, H, W]. None where the target lets no intermediate value out, or none that both have.
    """
    kind: targets.Precision = "float16" if precision == "float" else "int8"
    found = layerwise.layers_apart(target, path, program, images, kind)
    return None if found is None else len(found)


def _exact(target: Target) -> Callable[[Path], Runner] | None:
    """The target's evaluation without rounding between operators, where it has one."""
    if target.name != "coreml":
        return None
    from edgewise.targets.coreml import exact

    return exact.reference


def _trained(spec: Spec, data: Data, folder: Path) -> tuple[nn.Module, Context]:
    torch.manual_seed(0)
    network = spec.build(**{**spec.small, "num_classes": len(data.classes)})
    channels, height, width = spec.small_input or spec.input_shape
    sized = resized.resize_data(data, (height, width))
    shown = replace(
        sized,
        train=_Channels(sized.train, channels),
        calib=_Channels(sized.calib, channels),
        test=_Channels(sized.test, channels),
        shape=(channels, height, width),
    )
    context = Context(spec=spec, data=shown, scratch=folder)
    for number in range(_ROUNDS):
        scratch = folder / f"{spec.name}-round-{number}"
        scratch.mkdir(parents=True, exist_ok=True)
        fit(network, _TRAINING, replace(context, scratch=scratch, seed=number), None)
        _catch_up(network, context)
        if _right(compute_logits(network, shown.calib, spec, batch=100), shown.calib) >= _LEARNT:
            break
    return network, context


def _right(answers: Tensor, part: Part) -> float:
    return float((answers.argmax(1) == part.labels).float().mean())


def _catch_up(network: nn.Module, context: Context) -> None:
    """Estimate batch norms' statistics anew: so short a training leaves them behind the weights."""
    if norms := batch_norms(network):
        index = torch.arange(min(_STATISTICS, len(context.data.train)))
        parts = [context.data.train.batch(part) for part in torch.split(index, 64)]
        reestimate_norms(network, norms, [normalise(part, context.spec) for part in parts])
    network.eval()


@torch.no_grad()
def _quantized(network: nn.Module, context: Context, target: Target) -> GraphModule:
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
    return run_guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    """0 where every file agrees, but for roundings at most; 1 where one does not."""
    # Networks this small gain little from a second thread, and wait long for one whose core is taken.
    torch.set_num_threads(1)
    target, data = targets.get(options.target), calib_data.load(options.data)
    names = [models.get(name).name for name in options.models] or list(models.names())
    if target.reference is None:
        raise targets.TargetError(f"{options.target} has no reference evaluation on this host")
    out = options.out / f"{target.name}-{_reader(data)}.json"
    kept = _read(out)
    precisions: Sequence[FileKind] = PRECISIONS[1:] if target.integers_only else PRECISIONS
    for number, name in enumerate(names, 1):
        if options.again or name not in kept:
            kept[name] = _rows(name, data, target, precisions)
            write_whole(out, json.dumps(kept, indent=1).encode())
        for row in kept[name]:
            _say(f"{number}/{len(names)} {_in_words(name, row)}")
    write_whole(out.with_suffix(".md"), _markdown(target.name, data, kept).encode())
    _say(f"written: {out.with_suffix('.md')}")
    return FAILED if any(_bad(row) for name in names for row in kept[name]) else PASSED


def _reader(data: Data) -> str:
    """A data set's name without the place where it lies."""
    return data.name.partition(":")[0]


def _rows(name: str, data: Data, target: Target, precisions: Sequence[FileKind]) -> list[dict[str, Any]]:
    if reason := models.get(name).cannot.get(target.name):
        return [{"cannot": reason}]
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = list(examine(name, data, target, precisions, Path(folder)))
        except Exception as error:
            # A backend raises what it likes; a row says so, and the other rows are measured.
            return [{"failed": f"{type(error).__name__}: {str(error)[:500]}"}]
    return [
        asdict(one) | {"agrees": one.agrees, "by_rounding": one.by_rounding, "by_layers": one.by_layers}
        for one in found
    ]


def _bad(row: dict[str, Any]) -> bool:
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
        f"in the same class, {row['ties']} ties, error {row['error']:.2%}, top-1 {row['accuracy']:.1%}, "
        f"{row['seconds']:.0f} s"
    )


def _markdown(target: str, data: Data, kept: dict[str, list[dict[str, Any]]]) -> str:
    head = ["architecture, reduced", "precision", "images", "top-1", "same class", "ties", "differ", "error", "agrees"]
    rows = []
    for name in sorted(kept):
        for row in kept[name]:
            reason = why_unmeasured(row)
            rows.append([name, reason, *[""] * (len(head) - 2)] if reason else _columns(name, row))
    intro = (
        f"# {target}: the reference evaluation against PyTorch, {_reader(data)}\n\n"
        "Written by `nox -s evaluator`. Each architecture is reduced as in the tests and trained in a minute or two; its files' "
        "own instructions are evaluated over every test image and compared with the PyTorch network they were written "
        "from. **top-1**: that network's own. **Tie**: another class, but PyTorch's two logits lie within "
        f"{_TIE['float']:.0%} (int8: {_TIE['int8']:.0%}) of the spread of all. **error**: ‖a − b‖ / ‖b − mean(b)‖ over "
        f"all logits; {_ERROR['float']:.0%} (int8: {_ERROR['int8']:.0%}) allowed. **but for float16**: no class differs by more "
        "than a tie once the evaluation leaves out the rounding to float16 that the file declares and PyTorch's graph lacks. "
        "**layer by layer**: classes differ even then, but on those images no layer is more than a step away from "
        "PyTorch's, given the same inputs.\n"
    )
    return "\n".join([intro, *markdown.table(head, rows), ""])


def _columns(name: str, row: dict[str, Any]) -> list[str]:
    same = row["images"] - row["ties"] - row["differ"]
    counts = [f"{row['images']:,}", f"{row['accuracy']:.1%}", f"{same:,}", str(row["ties"]), str(row["differ"])]
    return [name, row["precision"], *counts, f"{row['error']:.3%}", _verdict(row)]


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        kept: dict[str, list[dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept


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


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

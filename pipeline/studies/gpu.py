"""Whether training on a GPU does what it does on the processor, and how fast: ``python -m edgewise.studies.gpu``.

Fine-tuning and quantization-aware training, each by the code of a run: a few steps in float32 on both, whose answers are
compared, and then more in the device's mixed precision, timed. ``torch.compile`` is tried on the same two networks.
Under ten minutes. Without a GPU, ``--device cpu`` tries the script itself.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from edgewise import calib_data
from edgewise.errors import first_line
from edgewise.library_noise import quieten_libraries
from edgewise.network.fold_norms import without_norms
from edgewise.network.weights import load_weights
from edgewise.stage import Context
from edgewise.stages.fitting.image_batches import draw_batches
from edgewise.stages.training.loop import fit
from edgewise.stages.training.settings import Training, resolve_precision
from edgewise.store.whole import write_whole
from edgewise.studies.noise import noise_context
from edgewise.studies.training_step import Setting, make_step, prepare_graph

_COMPARED = 20
"""Steps of float32 training on both devices."""
_JUDGED = 512
_WARM = 5
NO_GPU = 3
"""Exit status where no GPU is at hand: a backend is missing."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one kind of training."""

    name: str
    alike: float
    """Share of the images that both devices' networks put into one class."""
    apart: float
    """Distance of their logits, relative to the logits'."""
    speed: float
    """Images a second of a run's own training."""
    peak: int | None
    """Bytes on the device at most; None on a processor."""
    stepped: float
    """Images a second of bare steps."""
    compiled: str
    """The same compiled, or why not."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table, and append it to ``--log``."""
    parser = argparse.ArgumentParser(prog="python -m edgewise.studies.gpu", description=__doc__)
    parser.add_argument("model", nargs="?", default="resnet56")
    parser.add_argument("--weights", type=Path, metavar="F", help="trained weights (default: drawn)")
    parser.add_argument("--data", metavar="D", help="as for run (default: noise)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=300, help="timed training steps of each kind")
    parser.add_argument("--log", type=Path, metavar="F", help="append the table to this file, as LOG.md")
    options = parser.parse_args(arguments)
    quieten_libraries()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: there is no GPU here that PyTorch can use; --device cpu tries the script itself", file=sys.stderr)
        return NO_GPU
    with tempfile.TemporaryDirectory() as folder:
        ctx = noise_context(options.model, options.device, Path(folder))
        if options.data:
            ctx = replace(ctx, data=calib_data.load(options.data))
        network = ctx.spec.build(num_classes=len(ctx.data.classes)).eval()
        if options.weights:
            load_weights(network, options.weights)
        outcomes = [_examine(name, network, ctx, options.batch, options.steps) for name in ("fine-tuning", "int8")]
    text = _table(outcomes, options.model, options.batch, options.device)
    print(text)
    if options.log:
        before = options.log.read_text(encoding="utf-8") if options.log.exists() else ""
        write_whole(options.log, f"{before.rstrip()}\n\n{text}\n")
    return 0


def _examine(name: str, network: nn.Module, ctx: Context, batch: int, steps: int) -> Outcome:
    start = _begin(name, network, ctx)
    images = torch.cat([*draw_batches(ctx.data.test, _JUDGED, replace(ctx, device="cpu"))])
    few = _training(batch, _COMPARED, "32-true")
    answers: list[Tensor] = []
    for device in ("cpu", ctx.device):
        here = _in_folder(replace(ctx, device=device), f"{name}-{device}-{len(answers)}")
        answers.append(_answer(_train(start, few, here)[0], images))
    ours, theirs = answers
    trained, seconds, peak = _train(start, _training(batch, steps, "auto"), _in_folder(ctx, f"{name}-timed"))
    stepped, compiled = _try_compiling(trained, ctx, batch)
    return Outcome(
        name=name, alike=float((ours.argmax(1) == theirs.argmax(1)).float().mean()),
        apart=float((ours - theirs).norm() / ours.norm()), speed=steps * batch / seconds, peak=peak, stepped=stepped,
        compiled=compiled,
    )  # fmt: skip


def _begin(name: str, network: nn.Module, ctx: Context) -> nn.Module:
    """The network that is trained: as it is, or folded with fake quantizers."""
    if name == "fine-tuning":
        return network
    images = draw_batches(ctx.data.calib, 64, replace(ctx, device="cpu"))[0]
    return prepare_graph(without_norms(network, images[:2]), ctx.input_shape, images, "frozen")


def _training(batch: int, steps: int, precision: str) -> Training:
    return Training(epochs=1, steps=steps, lr=1e-3, batch_size=batch, precision=precision)  # type: ignore[arg-type]


def _in_folder(ctx: Context, name: str) -> Context:
    folder = ctx.scratch / name
    folder.mkdir()
    return replace(ctx, scratch=folder)


def _train(start: nn.Module, how: Training, ctx: Context) -> tuple[nn.Module, float, int | None]:
    """The trained network, the seconds that took, and the most bytes on the device."""
    network = copy.deepcopy(start)
    on_gpu = ctx.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    fit(network, how, ctx, None)
    return network, time.perf_counter() - begin, torch.cuda.max_memory_allocated() if on_gpu else None


@torch.no_grad()
def _answer(network: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([network(part) for part in torch.split(images, 64)])


def _try_compiling(network: nn.Module, ctx: Context, batch: int) -> tuple[float, str]:
    """Images a second of bare steps, and the same with ``torch.compile``, or why it does not."""
    images = torch.randn(batch, *ctx.input_shape, device=ctx.device)
    labels = torch.zeros(batch, dtype=torch.int64, device=ctx.device)
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    precision = mixed.get(resolve_precision("auto", ctx.device), torch.float32)
    setting = Setting(model=ctx.spec.name, batch=batch, device=ctx.device, precision=precision, seconds=0)
    plain = copy.deepcopy(network).to(ctx.device)
    speed = _time_steps(make_step(plain, images, labels, setting), batch)
    begin = time.perf_counter()
    try:
        step = make_step(torch.compile(copy.deepcopy(network).to(ctx.device)), images, labels, setting)  # type: ignore[arg-type]
        step()
        compiling = time.perf_counter() - begin
        return speed, f"{_time_steps(step, batch):,.0f} (compiled in {compiling:.0f} s)"
    except Exception as error:  # the compiler's, of whatever kind: that it does not is the result
        return speed, f"no: {type(error).__name__}: {first_line(error)[:120]}"


def _time_steps(step: Callable[[], None], batch: int, steps: int = 30) -> float:
    for _ in range(_WARM):
        step()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * batch / (time.perf_counter() - begin)


def _table(outcomes: Sequence[Outcome], model: str, batch: int, device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else "the processor (no GPU: the script alone is tried)"
    lines = [
        f"## Training on {name}",
        f"{model}, batch {batch}, {resolve_precision('auto', device)}, torch {torch.__version__}; compared after {_COMPARED} "
        "steps of float32 on the processor and there.",
        "",
        "| | same class | logits apart | images/s | peak memory | bare steps, images/s | compiled, images/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        peak = "–" if outcome.peak is None else f"{outcome.peak / 1e6:,.0f} MB"
        lines.append(
            f"| {outcome.name} | {100 * outcome.alike:.1f} % | {outcome.apart:.2g} | {outcome.speed:,.0f} | {peak} | "
            f"{outcome.stepped:,.0f} | {outcome.compiled} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

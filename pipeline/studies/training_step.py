"""What a step of quantization-aware training costs beside a float one: ``python -m edgewise.studies.training_step``.

Forward, backward and optimizer on random images, interleaved in one run. The float step is that of the network as it is
trained, with its batch norms; the folded one has none, as the quantized graph has none. In bfloat16 on a processor the float
step is timed again with the gradients as PyTorch computes them (``training.grouped_gradients``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from edgewise import models, targets
from edgewise.library_noise import quieten_libraries
from edgewise.measure import latency, statistics
from edgewise.network.captured import Prepare
from edgewise.network.fold_norms import without_norms
from edgewise.stages.quantize import freeze_ranges
from edgewise.stages.quantize.calibrate import activation_quantizers, set_ranges
from edgewise.stages.training.grouped_gradients import FloatGradients
from edgewise.targets import Grid

_BLOCKS = 12


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is timed."""

    model: str
    batch: int
    device: str
    precision: torch.dtype
    seconds: float

    @property
    def is_mixed(self) -> bool:
        """Whether weights are kept in float32 and computed with in a narrower type."""
        return self.precision != torch.float32


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table: milliseconds and images a second of each kind of step, and its ratio to the float step."""
    parser = argparse.ArgumentParser(prog="python -m edgewise.studies.training_step", description=__doc__)
    parser.add_argument("model", nargs="?", default="resnet56")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args(arguments)
    quieten_libraries()
    setting = Setting(**{**vars(options), "precision": getattr(torch, options.precision)})
    print(
        f"{setting.model}, batch {setting.batch}, {setting.device}, {options.precision}, {torch.get_num_threads()} threads"
    )
    times = latency.interleave_calls(_steps(setting), seconds=setting.seconds, blocks=_BLOCKS)
    reference = times["float"]
    for name, samples in times.items():
        ratio, (low, high) = statistics.ratio_interval(samples.blocks, reference.blocks)
        middle = samples.percentile(50)
        print(
            f"{name:16} {middle:9.2f} ms {1000 * setting.batch / middle:10.0f} images/s"
            f"   {ratio:.2f}x float, 95 % interval {low:.2f} to {high:.2f}"
        )
    return 0


def _steps(setting: Setting) -> Mapping[str, Callable[[], None]]:
    spec = models.get(setting.model)
    torch.manual_seed(0)
    shape = spec.input_shape
    images = torch.randn(setting.batch, *shape, device=setting.device)
    labels = torch.randint(0, 10, (setting.batch,), device=setting.device)
    network = spec.build().train().to(setting.device)
    folded = without_norms(network, images[:2]).to(setting.device)
    kinds: dict[str, nn.Module] = {"float": network, "float, folded": folded}
    for name in ("observing", "frozen", "learned ranges"):
        kinds[f"int8, {name}"] = prepare_graph(folded, shape, images, name)
    steps = {name: make_step(model, images, labels, setting) for name, model in kinds.items()}
    if setting.is_mixed and setting.device == "cpu":
        steps["float, bf16 grad"] = make_step(network, images, labels, setting, mended=False)
    return steps


def prepare_graph(folded: nn.Module, shape: tuple[int, int, int], images: Tensor, kind: str) -> GraphModule:
    """``folded`` with fake quantizers, ranges from ``images``; ``kind``: observing, frozen or learned ranges."""
    grid = Grid(weight_bits=7, operators=targets.COMMON_OPERATORS | targets.GATES | targets.PRODUCTS)
    prepared = Prepare(grid.to_json(), shape).capture(folded)
    set_ranges(prepared, [images[:8]], "minmax")
    if kind == "learned ranges":
        for module in activation_quantizers(prepared).values():
            module.learn()
    if kind != "observing":
        freeze_ranges(prepared)
    return prepared


def make_step(
    model: nn.Module, images: Tensor, labels: Tensor, setting: Setting, *, mended: bool = True
) -> Callable[[], None]:
    """Forward, backward and optimizer, in channels-last memory; ``mended``: with the gradients that a training has."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, nesterov=True)
    gradients = FloatGradients if mended and setting.is_mixed and setting.device == "cpu" else nullcontext

    def step() -> None:
        with torch.autocast(setting.device, setting.precision, enabled=setting.is_mixed), gradients():
            outputs = model(images)
        torch.autograd.backward(F.cross_entropy(outputs.float(), labels))
        optimizer.step()
        optimizer.zero_grad()
        if setting.device == "cuda":
            torch.cuda.synchronize()

    return step


if __name__ == "__main__":
    sys.exit(main())

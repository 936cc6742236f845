"""An architecture made ready for its files: plausible weights, folded, captured, quantized after calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from edgewise import library_noise
from edgewise.images.normalise import normalise
from edgewise.measure.cost.layers import analyze
from edgewise.models import Spec
from edgewise.network import captured
from edgewise.stage import Context
from edgewise.stages.fitting.batch_norms import batch_norms, reestimate_norms
from edgewise.stages.fold import Fold
from edgewise.studies.architectures.photographs import photograph_crops

_CALIBRATION = 4
"""Images that the ranges of the int8 graph are observed on."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A network with weights, and the images it is judged on."""

    spec: Spec
    model: nn.Module
    """As it is trained: in evaluation mode, batch norms in place."""
    context: Context

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of its images."""
        return self.context.data.shape

    @cached_property
    def folded(self) -> nn.Module:
        """The same without batch norms."""
        return Fold()(self.model, self.context)

    @cached_property
    def images(self) -> tuple[Tensor, ...]:
        """Normalised test images, [1, C, H, W] each."""
        return self.normalised("test")

    @cached_property
    def logits(self) -> Tensor:
        """What the folded network answers to ``images``, [N, classes]."""
        return answer_images(self.folded, self.images)

    @cached_property
    def calibration(self) -> tuple[Tensor, ...]:
        """Normalised calibration images, [1, C, H, W] each."""
        return self.normalised("calib")[:_CALIBRATION]

    def normalised(self, part: Literal["train", "calib", "test"]) -> tuple[Tensor, ...]:
        """Every image of a part, [1, C, H, W] each."""
        images = getattr(self.context.data, part)
        return torch.split(normalise(images.batch(torch.arange(len(images))), self.spec), 1)


def network_costs(spec: Spec) -> dict[str, Any]:
    """Input shape, parameters as trained (``params``) and as deployed, and MACs of one image."""
    model = spec.build()
    analysis = analyze(model, spec.input_shape)
    idle = set(analysis.unused)
    aids = sum(parameter.numel() for name, parameter in model.named_parameters() if name in idle)
    totals = analysis.totals
    return {
        "input_shape": list(spec.input_shape),
        "params": totals.params,
        "deployed": totals.params - aids,
        "macs": totals.macs,
    }


def prepare_network(spec: Spec, *, small: bool = False, images: int = 8) -> Prepared:
    """The architecture with its own initialisation, and batch norms that have seen photographs.

    ``small``: the reduced network of the tests. Without statistics of images, activations would fade or explode
    through the layers, and no agreement could be told.
    """
    torch.manual_seed(0)
    shape = (spec.small_input or spec.input_shape) if small else spec.input_shape
    model = spec.build(**(spec.small if small else {}))
    data = photograph_crops(shape, spec.num_classes, images)
    prepared = Prepared(spec=spec, model=model.eval(), context=Context(spec=spec, data=data, scratch=Path("unused")))
    _wake_branches(model)
    if norms := batch_norms(model):
        reestimate_norms(model, norms, [torch.cat(prepared.normalised("train"))])
    return prepared


@torch.no_grad()
def _wake_branches(model: nn.Module) -> None:
    """Set learned scales of residual branches, which start near zero, to one: a silent branch would prove nothing."""
    for name, parameter in model.named_parameters():
        if name.endswith("layer_scale"):
            parameter.fill_(1.0)


def capture_network(model: nn.Module, shape: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """The program of ``model`` for one image, as a target's ``export`` wants it."""
    with library_noise.quiet_capture():
        return torch.export.export(model, (torch.zeros(1, *shape),))


@torch.no_grad()
def calibrate_network(prepared: Prepared, quantizer: Any) -> GraphModule:
    """The folded network as integers on the quantizer's grid, its ranges observed on the calibration images."""
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    graph = captured.export_graph(prepared.folded, prepared.shape, batch=1)
    with library_noise.quiet_capture():
        observed = prepare_pt2e(graph, quantizer)
        for image in prepared.calibration:
            observed(image)
        return captured.convert(observed)


@torch.no_grad()
def answer_images(network: Callable[[Tensor], Tensor], images: Sequence[Tensor]) -> Tensor:
    """Logits [N, classes] of images given one by one."""
    return torch.cat([network(image).float() for image in images])


@dataclass(frozen=True)
class Agreement:
    """How near two sets of logits are."""

    error: float
    """‖a − b‖ / ‖b − mean(b)‖ over all logits of all images."""
    same: int
    """Images with the same largest logit."""
    images: int


def compare_logits(answers_of_file: Tensor, expected: Tensor) -> Agreement:
    """Logits [N, classes] of a file against those of what it was made from; only as many images as were found."""
    expected = expected[: len(answers_of_file)]
    spread = (expected - expected.mean(1, keepdim=True)).norm().clamp_min(torch.finfo(torch.float32).tiny)
    same = int((answers_of_file.argmax(1) == expected.argmax(1)).sum())
    return Agreement(float((answers_of_file - expected).norm() / spread), same, len(answers_of_file))


_MOVES = (
    "reshape", "view", "flatten", "permute", "transpose", "slice", "select", "unsqueeze", "squeeze", "expand", "clone",
    "contiguous", "dropout", "chunk", "split", "alias", "detach", "to", "pad", "constant_pad_nd", "cat",
)  # fmt: skip


def float_islands(graph: GraphModule) -> Counter[str]:
    """Operator -> count of those in a quantized graph that compute on floats, or give floats to another operator.

    An operator is int8's where all it reads was just dequantized and all that reads it quantizes it, behind a clipping
    of its range at most. Moving values about is no computation.
    """
    nodes = [node for node in graph.graph.nodes if node.op == "call_function" and _floats(node)]
    return Counter(_name(node) for node in nodes if not _is_plumbing(node) and not (_fed(node) and _drained(node)))


def _name(node: Node) -> str:
    return str(node.target).removeprefix("aten.").split(".")[0].strip("_")


def _floats(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_plumbing(node: Node) -> bool:
    return "quantize" in str(node.target) or _name(node) in _MOVES


_CLIPS = frozenset({"relu", "relu6", "hardtanh", "clamp"})


def _fed(node: Node) -> bool:
    sources = [source for source in node.all_input_nodes if source.op == "call_function" and _floats(source)]
    if _name(node) in _CLIPS and len(sources) == 1 and len(sources[0].users) == 1 and not _is_plumbing(sources[0]):
        return _fed(sources[0])
    return all(_dequantized(source) for source in sources)


def _dequantized(node: Node) -> bool:
    if "dropout" in str(node.target):  # idle: what it is given goes on
        return all(_dequantized(source) for source in node.all_input_nodes)
    return "dequantize" in str(node.target)


def _drained(node: Node) -> bool:
    readers = [user for user in node.users if user.op != "output"]
    if len(node.users) == 1 and readers and _name(readers[0]) in _CLIPS:
        return _drained(readers[0])
    return all("quantize" in str(user.target) and "dequantize" not in str(user.target) for user in readers)

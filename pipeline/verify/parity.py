"""Three-way parity of a written file, layer by layer: the float network, the graph that was exported, the running file.

The network is rebuilt from the checkpoint that a run delivers beside its files.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

from edgewise import targets
from edgewise.errors import RequestError
from edgewise.files import lower
from edgewise.images import resized
from edgewise.images.feed import feed_images
from edgewise.images.preprocess import OUTSIDE, Preprocess
from edgewise.images.wrapper import Wrapper
from edgewise.network import checkpoint
from edgewise.report.numbers import percent
from edgewise.verify import card, layerwise
from edgewise.verify.held import hold_copy
from edgewise.verify.layerwise import Layer

if TYPE_CHECKING:
    from rich.table import Table


IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class Parity:
    """A file held against the graph it was written from."""

    path: Path
    target: str
    images: int
    layers: tuple[Layer, ...]

    @property
    def first(self) -> Layer | None:
        """The first layer that the file computes otherwise."""
        return layerwise.first_divergent(self.layers)

    @property
    def sentence(self) -> str:
        """What was found, for people."""
        if self.first is None:
            return f"all {len(self.layers)} values that the file lets out follow from their inputs, on {self.images} images"
        layer = self.first
        return (
            f"first divergent layer: {layer.name} ({layer.operation}, node {layer.node}): off by "
            f"{_amount(layer.worst, layer.unit)} where {_amount(layer.tolerance, layer.unit)} is allowed, "
            f"{percent(layer.changed)} % of its elements changed"
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types; what is not finite becomes null."""
        return {
            "images": self.images,
            "verdict": "pass" if self.first is None else "fail",
            "first_divergent": None if self.first is None else _layer_entry(self.first),
            "layers": [_layer_entry(layer) for layer in self.layers],
        }


def make_inspector() -> Callable[..., Parity]:
    """``inspect_held``, for a process of its own."""
    return inspect_held


def _layer_entry(layer: Layer) -> dict[str, Any]:
    fields = asdict(layer) | {"diverges": layer.diverges}
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in fields.items()}


def inspect_held(
    path: Path, data_name: str, folder: Path | None = None, model: str | None = None, key: Path | None = None
) -> Parity:
    """As ``inspect``, of a copy whose every byte was held against the manifest; ``key``: as ``recheck_file`` takes it.

    Raises EvidenceError, too.
    """
    checkpoint.allow_model(card.checkpoint_of(path, card.read(path)) if folder is None else folder, model)
    with hold_copy(path, folder, key) as copy:
        return dataclasses.replace(inspect(copy, data_name, model=model), path=path)


def inspect(path: Path, data_name: str, folder: Path | None = None, model: str | None = None) -> Parity:
    """Hold the file at ``path`` against its checkpoint on the first test images of a data set.

    ``folder``: the checkpoint, where it does not lie beside the file as a run leaves it. ``model``: the user's own
    ``path/to/net.py:function`` that the checkpoint was made with; code named by a checkpoint alone is not run. Raises
    RequestError for a file that has none, and for a target that lets nothing out. The float network is compared where the
    file prepares nothing itself: its graph has nodes more otherwise.
    """
    own_card = card.read(path)
    target = targets.get(own_card.target)
    if target.inside is None:
        raise RequestError(f"target {target.name!r} lets no intermediate value out of its files; leave out --layers")
    folder = card.checkpoint_of(path, own_card) if folder is None else folder
    checkpoint.allow_model(folder, model)
    data = resized.resize_data(card.load_images(own_card, data_name), own_card.input_shape[1:])
    images = feed_images(data.test.batch(torch.arange(min(IMAGES, len(data.test)))), own_card, own_card.fed)
    baking = Wrapper(
        preprocess=Preprocess(fed=own_card.fed, softmax=own_card.softmax), mean=own_card.mean, std=own_card.std
    )
    program = lower.capture_program(folder, own_card.accepted, baking)
    values = target.inside(path, program, images)
    precision = own_card.row.precision or ("int8" if _is_quantized(folder) else "float32")
    plain = _float_values(folder, images) if baking.preprocess == OUTSIDE else {}
    plain = values_still_named(plain, program, values.program)
    layers = layerwise.compare(values, images, precision, plain)
    if not layers:
        raise RequestError(
            f"{path} and the graph rebuilt from {folder} have no value in common; they do not belong together"
        )
    return Parity(path=path, target=target.name, images=len(images), layers=tuple(layers))


def values_still_named(
    values: Mapping[str, Tensor], before: ExportedProgram, after: ExportedProgram
) -> dict[str, Tensor]:
    """Of ``values``, by ``before``'s names, those whose names ``after`` has left alone.

    Names are numbered by operation: anew, where a target's rewriting has added or removed one of a kind.
    """
    counts, rewritten = (
        Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")
        for program in (before, after)
    )
    kinds = {node.name: str(node.target) for node in after.graph.nodes}
    return {
        name: value for name, value in values.items() if counts[kinds.get(name, "")] == rewritten[kinds.get(name, "")]
    }


def _is_quantized(folder: Path) -> bool:
    return isinstance(checkpoint.load(folder, batch=1).model, GraphModule)


def _float_values(folder: Path, images: Tensor) -> dict[str, Tensor]:
    """What the network computes with its quantization switched off; nothing for a network that has none."""
    model = checkpoint.load(folder, batch=1).model
    if not isinstance(model, GraphModule):
        return {}
    from torchao.quantization.pt2e.fake_quantize import disable_fake_quant

    model.apply(disable_fake_quant)
    return layerwise.values_of(model, images)


def parity_table(layers: Sequence[Layer]) -> Table:
    """A Rich table, one line a value, the divergent ones in red."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    titles = ("layer", "operation", "file off by", "allowed", "changed %", "file to graph dB", "graph to float dB")
    for title in titles:
        table.add_column(
            title, justify="left" if title in ("layer", "operation") else "right", no_wrap=title != "layer"
        )
    for layer in layers:
        table.add_row(
            layer.name,
            layer.operation,
            _amount(layer.worst, layer.unit),
            _amount(layer.tolerance, layer.unit),
            percent(layer.changed),
            _decibels(layer.drift_db),
            _decibels(layer.quantization_db),
            style="red" if layer.diverges else None,
        )
    return table


def _amount(value: float, unit: str) -> str:
    return f"{value:.2f} steps" if unit == "steps" else f"{100 * value:.2g} %"


def _decibels(value: float | None) -> str:
    return "equal" if value is None else "–" if math.isnan(value) else f"{value:.1f}"

"""Parameters, MACs and memory of a whole network."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import nn

from edgewise.measure.cost.trace import Trace, Value, record_trace


@dataclass(frozen=True)
class Totals:
    """What a network costs at batch 1."""

    params: int
    """Numbers in ``parameters()``, a shared one counted once; buffers are not among them."""
    macs: int
    """Multiply-accumulates of convolutions, matrix products and attention; see ``count_costs``."""
    peak_activation_bytes: int
    """Largest sum of activations alive at once; see ``peak_activation_bytes``."""
    weight_bytes: int
    """Parameters and buffers, in the data types they have now."""
    moved_bytes: int
    """What all operators read and write; see ``moved_bytes``."""


def count_costs(model: nn.Module, input_shape: tuple[int, int, int]) -> Totals:
    """Parameters, MACs and peak activation memory of ``model`` for one image [channels, height, width].

    Works on what the network executes, so on any module: functions, branches, captured graphs with fake-quantization.
    ``model`` itself is left as it was. MACs follow the convention of fvcore and of the papers' multiply-adds
    (convolutions, also transposed, grouped and dilated; linear layers and matrix products; attention; nothing for
    batch norm, activations, pooling and additions).

    Raises RequestError when the image does not go through, naming the layer.
    """
    return sum_costs(record_trace(model, input_shape))


def sum_costs(trace: Trace) -> Totals:
    """The sums over one recorded forward pass, per image."""
    weights = [*trace.model.parameters(), *trace.model.buffers()]
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in weights}
    return Totals(
        params=sum(p.numel() for p in trace.model.parameters()),
        macs=sum(op.macs for op in trace.operations) // trace.batch,
        peak_activation_bytes=max(activation_bytes(trace), default=0),
        weight_bytes=sum(storages.values()),
        moved_bytes=moved_bytes(trace),
    )


def moved_bytes(trace: Trace) -> int:
    """Bytes that the operators read and write for one image: their inputs, weights and outputs, each operator by itself.

    Views move nothing, and fake-quantization is a number format. What a runtime saves by fusing operators, and what a
    cache keeps, is outside this figure.
    """
    nbytes = 0
    for operation in trace.operations:
        if operation.is_view or operation.is_rounding:
            continue
        if not any(value.storage in trace.activations for value in operation.outputs):
            continue  # weights made from weights, once for all images
        values = {value.storage: _nbytes(value) for value in (*operation.inputs, *operation.outputs)}
        nbytes += sum(n // trace.batch if key in trace.activations else n for key, n in values.items())
    return nbytes


def _nbytes(value: Value) -> int:
    return prod(value.shape) * value.itemsize


def activation_bytes(trace: Trace) -> list[int]:
    """Bytes of activations alive while each operation runs, per image.

    An activation lives from the operation that writes it to the last that reads it: the input from the start, the
    network's results to the end. Views share their storage and cost nothing; fake-quantization is a number format, not
    a second tensor; what is never read (the indices of a max pooling) is not kept. Weights, an operator's own
    workspace, and what a runtime saves by fusing or by working in place are outside this figure.
    """
    steps = len(trace.operations)
    born, dies = {trace.image: 0}, dict.fromkeys(trace.results, steps - 1)
    for step, operation in enumerate(trace.operations):
        for value in operation.outputs:
            born.setdefault(value.storage, step)
        for value in operation.inputs:
            dies[value.storage] = max(dies.get(value.storage, 0), step)
    change = [0] * (steps + 1)
    for key in trace.activations & born.keys() & dies.keys():
        change[born[key]] += trace.nbytes[key]
        change[dies[key] + 1] -= trace.nbytes[key]
    alive, sums = 0, []
    for step in range(steps):
        alive += change[step]
        sums.append(alive // trace.batch)
    return sums

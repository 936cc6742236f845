"""The table: one row per layer, with what it costs and what it has seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod

from torch import nn

from edgewise.measure.cost.geometry import Field, Window, checked_window, receptive_fields
from edgewise.measure.cost.totals import Totals, activation_bytes, sum_costs
from edgewise.measure.cost.trace import Operation, Trace, Value, record_trace

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Saving:
    """What depthwise k×k and pointwise 1×1 in place of a dense k×k convolution would save, at multiplier 1."""

    params: int
    """K²·Cin·Cout − (K²·Cin + Cin·Cout)."""
    macs: int
    """The same difference, at every output position."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One leaf module call, or one operator called as a function. Sums are for one image."""

    name: str
    """Unique: the module's dotted name, or that of the module around the operator and the operator."""
    module: str
    """Dotted name of the module that holds the weights, or that was running."""
    operator: str
    inputs: tuple[Shape, ...]
    """Shapes of the activations read."""
    output: Shape
    window: Window | None
    """Kernel, stride, padding, dilation and groups, of a convolution or pooling."""
    field: Field | None
    """Receptive field and jump of one position of the output; None where no image reaches."""
    params: int
    """A shared parameter is counted at its first use."""
    macs: int
    activation_bytes: int
    """Bytes of the output."""
    alive_bytes: int
    """Activations alive while this layer runs."""
    intensity: float
    """FLOPs (two per MAC) per byte moved: activations and weights read once, output written once."""
    params_share: float = 0.0
    macs_share: float = 0.0
    separable: Saving | None = None
    """None: not a dense convolution wider than one pixel, or nothing would be saved."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What a network costs at one input size."""

    model: str
    input_shape: tuple[int, int, int]
    layers: tuple[Layer, ...]
    totals: Totals
    unused: tuple[str, ...]
    """Parameters that inference does not use, such as those of an auxiliary classifier."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A dense convolution that a depthwise-separable one could replace."""

    module: str
    params: int
    macs: int
    params_saved: int
    macs_saved: int


def analyze(model: nn.Module, input_shape: tuple[int, int, int], *, name: str | None = None) -> Analysis:
    """Every layer that ``model`` runs for one image [channels, height, width], in the order of execution.

    Works on the executed operators, so on any module; a captured graph gives the same rows, named by its weights.
    Operators that compute nothing (views) and fake-quantization are no layers. ``name`` is what the network is called,
    its class by default. Raises RequestError, naming the layer, when the image does not go through.
    """
    trace = record_trace(model, input_shape)
    alive = activation_bytes(trace)
    fields = receptive_fields(trace, input_shape)
    builder = _Rows(trace)
    rows = []
    for steps in _group_steps(trace):
        operations = [trace.operations[i] for i in steps]
        rows.append(builder.row(operations, fields[steps[-1]], max(alive[i] for i in steps)))
    sums = sum_costs(trace)
    return Analysis(
        model=name or type(model).__name__,
        input_shape=input_shape,
        layers=tuple(_shared_out(row, sums) for row in _with_unique_names(rows)),
        totals=sums,
        unused=tuple(n for n, _ in trace.model.named_parameters() if n not in builder.used),
    )


def separable_candidates(model: nn.Module, input_shape: tuple[int, int, int]) -> list[Candidate]:
    """Dense convolutions that depthwise-separable ones could replace, the largest saving of MACs first.

    A module called more than once is one candidate; its MACs add up.
    """
    candidates_by_name: dict[str, Candidate] = {}
    for layer in analyze(model, input_shape).layers:
        if layer.separable is None:
            continue
        before = candidates_by_name.get(
            layer.module, Candidate(module=layer.module, params=0, macs=0, params_saved=0, macs_saved=0)
        )
        candidates_by_name[layer.module] = Candidate(
            module=layer.module,
            params=before.params + layer.params,
            macs=before.macs + layer.macs,
            params_saved=max(before.params_saved, layer.separable.params),
            macs_saved=before.macs_saved + layer.separable.macs,
        )
    return sorted(candidates_by_name.values(), key=lambda c: -c.macs_saved)


def _group_steps(trace: Trace) -> Iterator[list[int]]:
    """Steps that belong together: those of one call of a leaf from torch.nn; any other operator stands alone."""

    def key(step: int) -> tuple[str, int]:
        call = trace.operations[step].call
        return ("call", call.number) if call and _is_leaf(call.module) else ("step", step)

    for _, group in groupby(range(len(trace.operations)), key):
        steps = list(group)
        if any(_is_computation(trace.operations[i], trace) for i in steps):
            yield steps


def _is_leaf(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.") and not any(True for _ in module.children())


def _is_computation(operation: Operation, trace: Trace) -> bool:
    if operation.is_view or operation.is_rounding or not operation.outputs:
        return False
    return any(v.storage in trace.activations for v in operation.inputs)


class _Rows:
    """Makes rows in order, remembering which weights have been counted and which tensors anything reads."""

    def __init__(self, trace: Trace) -> None:
        self.used: set[str] = set()
        self._trace = trace
        self._sizes = {name: p.numel() for name, p in trace.model.named_parameters()}
        self._kept = trace.results | {v.storage for op in trace.operations for v in op.inputs}

    def row(self, operations: list[Operation], field: Field | None, alive: int) -> Layer:
        trace, batch = self._trace, self._trace.batch
        main = max((op for op in operations if _is_computation(op, trace)), key=lambda op: op.macs)
        read = _read_from_outside(operations)
        outputs = [v for v in operations[-1].outputs if v.storage in self._kept] or [operations[-1].outputs[0]]
        weights = [v for v in read if v.storage not in trace.activations]
        activations = [v for v in read if v.storage in trace.activations]
        names = frozenset().union(*(trace.origins.get(v.storage, frozenset()) for v in weights))
        macs, out = sum(op.macs for op in operations) // batch, sum(map(_nbytes, outputs)) // batch
        nbytes = out + sum(map(_nbytes, activations)) // batch + sum(map(_nbytes, weights))
        owner, operator, slid = _weight_owner(main, names), _operator_name(main, trace), checked_window(main)
        return Layer(
            name=_name(main, owner, names, operator),
            module=owner,
            operator=operator,
            inputs=tuple(_of_one(v.shape, batch) for v in activations),
            output=_of_one(outputs[0].shape, batch),
            window=slid,
            field=field,
            params=self._count_once(names),
            macs=macs,
            activation_bytes=out,
            alive_bytes=alive,
            intensity=2 * macs / nbytes if nbytes else 0.0,
            separable=_separable_saving(main, slid, batch),
        )

    def _count_once(self, names: frozenset[str]) -> int:
        fresh = (names & self._sizes.keys()) - self.used
        self.used |= fresh
        return sum(self._sizes[name] for name in fresh)


def _read_from_outside(operations: list[Operation]) -> list[Value]:
    """What the operations read that none of them made, each storage once, as it was first looked at."""
    first: dict[int, Value] = {}
    produced_keys: set[int] = set()
    for operation in operations:
        for value in operation.inputs:
            if value.storage not in produced_keys:
                first.setdefault(value.storage, value)
        if not operation.is_view:
            produced_keys.update(value.storage for value in operation.outputs)
    return list(first.values())


def _of_one(shape: Shape, batch: int) -> Shape:
    """The shape for one image, of a tensor whose first dimension runs over images (or over pieces of them)."""
    return (shape[0] // batch, *shape[1:]) if shape and shape[0] % batch == 0 else shape


def _nbytes(value: Value) -> int:
    return prod(value.shape) * value.itemsize


def _weight_owner(operation: Operation, weights: frozenset[str]) -> str:
    """The module that holds the weights the operator works with; without any, the one that was running."""
    weight_names = [name for name in weights if name.rpartition(".")[2] == "weight"]
    owners = weight_names or (sorted(weights) if operation.macs else [])
    if owners:
        return owners[0].rpartition(".")[0]
    return operation.call.name if operation.call else ""


def _name(operation: Operation, owner: str, weights: frozenset[str], operator: str) -> str:
    """The owner's name where the row is all of the owner; otherwise the owner's and the operator's."""
    is_leaf = operation.call is not None and _is_leaf(operation.call.module)
    is_whole = is_leaf or any(name in weights for name in (f"{owner}.weight", f"{owner}.in_proj_weight"))
    return owner if owner and is_whole else f"{owner}.{operator}".lstrip(".")


_CALLED = {
    "max_pool2d_with_indices": "max_pool2d",
    "scaled_dot_product_flash_attention_for_cpu": "attention",
    "scaled_dot_product_flash_attention": "attention",
    "scaled_dot_product_efficient_attention": "attention",
    "native_batch_norm": "batch_norm",
    "native_batch_norm_legit_no_training": "batch_norm",
    "cudnn_batch_norm": "batch_norm",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "constant_pad_nd": "pad",
}


def _operator_name(operation: Operation, trace: Trace) -> str:
    """The operator's name as users know it: the functional one of torch.nn."""
    here = checked_window(operation)
    if here is not None and "weight" in operation.arguments:
        return f"conv{'_transpose' if here.transposed else ''}{len(here.kernel)}d"
    plain = operation.name.strip("_")
    if plain in {"mm", "addmm", "bmm", "baddbmm"}:
        return "linear" if any(v.storage not in trace.activations for v in operation.inputs) else "matmul"
    if plain == "hardtanh" and (operation.arguments["min_val"], operation.arguments["max_val"]) == (0, 6):
        return "relu6"
    return _CALLED.get(plain, plain)


def _separable_saving(operation: Operation, here: Window | None, batch: int) -> Saving | None:
    """K²·Cin·Cout against K²·Cin + Cin·Cout (Howard et al. 2017, arXiv 1704.04861, section 3.1)."""
    if here is None or "weight" not in operation.arguments or here.transposed or here.groups != 1:
        return None
    out_channels, in_channels = operation.arguments["weight"].shape[:2]
    area = prod(here.kernel)
    macs_saved = area * in_channels * out_channels - in_channels * (area + out_channels)
    if area == 1 or macs_saved <= 0 or len(here.kernel) != 2:
        return None
    positions = prod(operation.outputs[0].shape) // out_channels // batch
    return Saving(params=macs_saved, macs=macs_saved * positions)


def _with_unique_names(rows: list[Layer]) -> Iterator[Layer]:
    counts: Counter[str] = Counter()
    for row in rows:
        counts[row.name] += 1
        yield row if counts[row.name] == 1 else replace(row, name=f"{row.name}#{counts[row.name]}")


def _shared_out(row: Layer, sums: Totals) -> Layer:
    return replace(row, params_share=row.params / max(sums.params, 1), macs_share=row.macs / max(sums.macs, 1))

"""The latency table: how long every kind of layer of a network takes at which widths, in the declared runtime.

A kind is all that determines a layer's time but its widths; layers of one kind are timed once, however often they occur.
Each is timed as a file of that one layer, at eight widths of its inputs with all outputs, at eight of its outputs with all
inputs, and with the least of both, interleaved in one run. With f and g the first two and b the share that no width changes
(the call itself), a layer of i inputs and o outputs takes b + (f(i) − b)·(g(o) − b) / (f(all) − b): a convolution's work is
a product of its widths, and what the kernels make of each (a vector half filled costs as much as a full one) is in f and g.
b is the value that gives the last measurement back.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from edgewise import targets
from edgewise.errors import StageError
from edgewise.files.in_runtime import write_and_load
from edgewise.measure.latency import interleave_calls
from edgewise.stage import Context, Keeper
from edgewise.stages.prune.channels import Side, is_multiplier
from edgewise.stages.prune.coupling import Group
from edgewise.store.entries import key_of
from edgewise.store.sources import code_of

POINTS = 8
"""Widths of a side that are timed."""
_FEW = 2
_MINOR = 0.02
"""A kind with a smaller share of the network's multiply-accumulates is timed at few widths."""
_SECONDS_EACH = 0.12
_FASTEST = 20.0
"""Percentile of the calls that counts as the layer's time: others on the machine can only add to it."""

_SETTINGS: Mapping[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("kernel_size", "stride", "padding", "dilation"),
    nn.ConvTranspose2d: ("kernel_size", "stride", "padding", "output_padding", "dilation"),
    nn.Linear: (),
}


@dataclass(frozen=True)
class Kind:
    """All that determines a layer's time but its widths, and the widths it has now."""

    type: str
    settings: str
    """Keyword arguments but the widths, as JSON."""
    places: tuple[int, ...]
    """Of its input: height and width for a convolution, the dimensions between batch and features for a linear layer."""
    inputs: int
    outputs: int
    grouping: Literal["dense", "depthwise", "grouped"]
    groups: int
    sides: tuple[Side, ...]
    """Which of its widths pruning can change."""

    def layer(self, inputs: int, outputs: int) -> nn.Module:
        """A layer of this kind with other widths."""
        layer_class = next(kind for kind in _SETTINGS if kind.__name__ == self.type)
        settings = {key: tuple(v) if isinstance(v, list) else v for key, v in json.loads(self.settings).items()}
        if layer_class is not nn.Linear:
            settings["groups"] = inputs if self.grouping == "depthwise" else self.groups
        layer: nn.Module = layer_class(inputs, outputs, **settings)
        return layer

    def image(self, inputs: int) -> Tensor:
        """Something to feed it: [1, inputs, H, W], or [1, …, inputs] for a linear layer."""
        shape = (1, *self.places, inputs) if self.type == "Linear" else (1, inputs, *self.places)
        return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Profile:
    """Milliseconds of a kind of layer at several widths."""

    inputs: Mapping[int, float]
    """Inputs -> time with all outputs."""
    outputs: Mapping[int, float]
    """Outputs -> time with all inputs."""
    base: float = 0.0
    """What no width changes."""

    def ms(self, inputs: int, outputs: int) -> float:
        """Time at these widths; linear between the timed ones."""
        f, g = _interpolate_time(self.inputs, inputs), _interpolate_time(self.outputs, outputs)
        whole = self.inputs[max(self.inputs)] - self.base
        return self.base + (f - self.base) * (g - self.base) / max(whole, 1e-9)


@dataclass(frozen=True)
class Timed:
    """A layer of the network, its profile, and what pruning takes of it."""

    name: str
    kind: Kind
    profile: Profile
    calls: int
    takes: tuple[tuple[int, int], ...] = ()
    """(group, inputs lost with each of its blocks)."""
    gives: tuple[tuple[int, int], ...] = ()
    """(group, outputs lost with each of its blocks)."""

    def ms(self, counts: Sequence[int]) -> float:
        """Milliseconds in one pass of the network when ``counts[g]`` blocks of group g are gone."""
        inputs = self.kind.inputs - sum(counts[group] * each for group, each in self.takes)
        outputs = self.kind.outputs - sum(counts[group] * each for group, each in self.gives)
        return self.calls * self.profile.ms(inputs, outputs)


@dataclass(frozen=True)
class Table:
    """Every layer of a network whose time is known."""

    layers: tuple[Timed, ...]
    _touched: Mapping[int, tuple[Timed, ...]] = field(default_factory=dict)

    def ms(self, counts: Sequence[int]) -> float:
        """The sum over all layers, in milliseconds."""
        return sum(layer.ms(counts) for layer in self.layers)

    def saved(self, counts: Sequence[int], group: int, count: int) -> float:
        """Milliseconds less when ``count`` blocks of ``group`` are gone instead of ``counts[group]``."""
        after = [*counts[:group], count, *counts[group + 1 :]]
        return sum(layer.ms(counts) - layer.ms(after) for layer in self._touched.get(group, ()))

    def to_json(self) -> list[dict[str, Any]]:
        """One entry a kind of layer: what it is, how many layers are of it, and its times."""
        kinds = {layer.kind: layer.profile for layer in self.layers}
        return [
            {
                "layer": f"{kind.type} {kind.inputs} to {kind.outputs}",
                "settings": json.loads(kind.settings) | {"groups": kind.groups, "input": list(kind.places)},
                "layers": sum(layer.calls for layer in self.layers if layer.kind == kind),
                "ms_by_inputs": _plain_keys(profile.inputs),
                "ms_by_outputs": _plain_keys(profile.outputs),
                "base_ms": profile.base,
            }
            for kind, profile in kinds.items()
        ]


def tabulate_layers(model: nn.Module, groups: Sequence[Group], ctx: Context) -> Table:
    """Time the layers of ``model`` that the groups are made of, and say what each takes at which widths.

    Kinds that ``ctx.store`` knows are not timed again. Raises StageError where no layer can be timed.
    """
    shapes = _inputs_of(model, ctx)
    sides = _sides_of_layers(groups)
    kinds = {name: kind for name, shape in shapes.items() if (kind := _layer_kind(model, name, shape[0], sides))}
    if not kinds:
        raise StageError("no convolution or linear layer here can be timed alone; give a budget in macs instead")
    weight = {kind: _macs(kind) * sum(shapes[n][1] for n in kinds if kinds[n] == kind) for kind in kinds.values()}
    all_of_it = sum(weight.values())
    profiles = {}
    for kind in ctx.track(list(weight), f"timing layers on {ctx.runtime}", len(weight)):
        points = POINTS if weight[kind] >= _MINOR * all_of_it else _FEW
        profiles[kind] = _stored_profile(kind, points, ctx)
    layers = tuple(
        Timed(
            name,
            kind,
            profiles[kind],
            shapes[name][1],
            *(_channel_losses(groups, name, kind, side) for side in ("in", "out")),
        )
        for name, kind in kinds.items()
    )
    layers_by_group = {
        index: tuple(layer for layer in layers if index in {g for g, _ in (*layer.takes, *layer.gives)})
        for index in range(len(groups))
    }
    return Table(layers, layers_by_group)


def _inputs_of(model: nn.Module, ctx: Context) -> dict[str, tuple[tuple[int, ...], int]]:
    """Layer -> shape of its input for one image, and how often it runs in one pass."""
    inputs: dict[str, tuple[tuple[int, ...], int]] = {}

    def listen(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs[name] = (tuple(args[0].shape), inputs.get(name, ((), 0))[1] + 1)

        return hook

    shapes = [
        (name, m) for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    ]
    hooks = [module.register_forward_pre_hook(listen(name)) for name, module in shapes]
    weight = next(model.parameters())
    try:
        with torch.no_grad():
            model(torch.zeros(1, *ctx.input_shape, device=weight.device, dtype=weight.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return inputs


def _sides_of_layers(groups: Sequence[Group]) -> dict[str, set[Side]]:
    sides_by_layer: dict[str, set[Side]] = {}
    for group in groups:
        for member in group.members:
            sides_by_layer.setdefault(member.name, set()).add(member.side)
    return sides_by_layer


def _layer_kind(model: nn.Module, name: str, shape: tuple[int, ...], sides: Mapping[str, set[Side]]) -> Kind | None:
    module: Any = model.get_submodule(name)
    layer_class = next(
        kind for kind in _SETTINGS if isinstance(module, kind)
    )  # a subclass takes about the time of its base
    settings = {key: getattr(module, key) for key in _SETTINGS[layer_class]} | {"bias": module.bias is not None}
    linear = layer_class is nn.Linear
    inputs, outputs = (module.in_features, module.out_features) if linear else (module.in_channels, module.out_channels)
    groups = 1 if linear else module.groups
    depthwise = groups > 1 and (groups == inputs == outputs or is_multiplier(module))
    if shape[0] != 1:
        return None  # patches folded into the batch: the runtime is not called so for one layer
    cut_sides: tuple[Side, ...] = tuple(side for side in ("in", "out") if side in sides.get(name, ()))
    return Kind(
        type=layer_class.__name__,
        settings=json.dumps(settings, sort_keys=True),
        places=shape[1:-1] if linear else shape[2:],
        inputs=inputs,
        outputs=outputs,
        grouping="depthwise" if depthwise else "grouped" if groups > 1 else "dense",
        groups=groups,
        sides=("in",) if depthwise and cut_sides else cut_sides,
    )


def _macs(kind: Kind) -> int:
    kernel = json.loads(kind.settings).get("kernel_size", [1])
    stride = json.loads(kind.settings).get("stride", [1])
    work = int(np.prod(kind.places)) * int(np.prod(kernel)) * kind.inputs * kind.outputs
    return max(1, work // (kind.groups * (int(np.prod(stride)) if kind.type == "Conv2d" else 1)))


def _channel_losses(groups: Sequence[Group], name: str, kind: Kind, side: Side) -> tuple[tuple[int, int], ...]:
    if kind.grouping == "depthwise":
        if side == "out":
            return ()
        filters = kind.outputs // kind.inputs
        parts = {g: m for g, group in enumerate(groups) for m in group.members if m.name == name}
        return tuple((g, m.channels.shape[1] // (filters if m.side == "out" else 1)) for g, m in parts.items())
    return tuple(
        (g, m.channels.shape[1])
        for g, group in enumerate(groups)
        for m in group.members
        if m.name == name and m.side == side
    )


def _stored_profile(kind: Kind, points: int, ctx: Context) -> Profile:
    """The times of a kind, from the store where it has them."""
    if ctx.store is None:
        return _measure_profile(kind, points, ctx)
    target = targets.get(ctx.runtime)
    key = key_of(
        kind="layer-time",
        layer=asdict(kind),
        points=points,
        runtime=[ctx.runtime, ctx.threads],
        machine=ctx.machine,
        versions=targets.versions(("torch", *targets.packages(target))),
        code=code_of(target.export, Kind),
    )

    def make(folder: Path, _: Path) -> None:
        profile = _measure_profile(kind, points, ctx)
        document = {
            "inputs": _plain_keys(profile.inputs),
            "outputs": _plain_keys(profile.outputs),
            "base": profile.base,
        }
        (folder / "profile.json").write_text(json.dumps(document), encoding="utf-8")

    return _read_profile(ctx.store, key, make)


def _read_profile(store: Keeper, key: str, make: Any) -> Profile:
    record = json.loads((store.keep(key, make).path / "profile.json").read_text(encoding="utf-8"))
    inputs, outputs = ({int(w): float(ms) for w, ms in record[side].items()} for side in ("inputs", "outputs"))
    return Profile(inputs, outputs, float(record["base"]))


def _measure_profile(kind: Kind, points: int, ctx: Context) -> Profile:
    unit = kind.groups if kind.grouping == "grouped" else 1
    ins = width_ladder(kind.inputs, points, unit) if "in" in kind.sides else [kind.inputs]
    outs = width_ladder(kind.outputs, points, unit) if "out" in kind.sides else [kind.outputs]
    if kind.grouping == "depthwise":
        filters = kind.outputs // kind.inputs
        times = _time_layers(kind, [(w, w * filters) for w in ins], ctx)
        return Profile({w: times[w, w * filters] for w in ins}, {kind.outputs: times[kind.inputs, kind.outputs]})
    corner = (ins[0], outs[0])
    pairs = dict.fromkeys([(w, kind.outputs) for w in ins] + [(kind.inputs, w) for w in outs] + [corner])
    times = _time_layers(kind, list(pairs), ctx)
    profile = Profile({w: times[w, kind.outputs] for w in ins}, {w: times[kind.inputs, w] for w in outs})
    return Profile(profile.inputs, profile.outputs, base_of(profile, times[corner]))


def base_of(profile: Profile, corner: float) -> float:
    """The base that gives ``corner``, the time with the fewest inputs and outputs; within 0 … the shortest time."""
    f, g = profile.inputs[min(profile.inputs)], profile.outputs[min(profile.outputs)]
    whole = profile.inputs[max(profile.inputs)]
    curvature = corner + whole - f - g
    if min(len(profile.inputs), len(profile.outputs)) == 1 or curvature <= 0:
        return 0.0
    return float(np.clip((corner * whole - f * g) / curvature, 0.0, min(corner, f, g)))


def width_ladder(width: int, points: int, unit: int = 1) -> list[int]:
    """Widths at equal distances up to ``width``, each a multiple of ``unit``, ascending."""
    return sorted({max(1, round(width / unit * k / points)) * unit for k in range(1, points + 1)})


def _time_layers(kind: Kind, pairs: Sequence[tuple[int, int]], ctx: Context) -> dict[tuple[int, int], float]:
    """Milliseconds of layers of one kind with these (inputs, outputs), interleaved in one run."""
    with tempfile.TemporaryDirectory(dir=ctx.scratch) as folder:
        calls = {}
        for inputs, outputs in pairs:
            image = kind.image(inputs)
            path = Path(folder) / f"{inputs}-{outputs}"
            runner, _ = write_and_load(kind.layer(inputs, outputs), image, path, ctx)
            calls[f"{inputs} {outputs}"] = partial(runner, image)
        times = interleave_calls(calls, seconds=_SECONDS_EACH * len(calls), blocks=20, threads=ctx.threads)
    return {(i, o): times[f"{i} {o}"].percentile(_FASTEST) for i, o in pairs}


def _interpolate_time(times: Mapping[int, float], width: int) -> float:
    if len(times) == 1:
        return next(iter(times.values()))
    widths = sorted(times)
    return float(np.interp(width, widths, [times[w] for w in widths]))


def _plain_keys(times: Mapping[int, float]) -> dict[str, float]:
    return {str(width): ms for width, ms in times.items()}

"""Every fault turns its gate red and no other, and without a fault all stay green; what caught what is docs/fault-matrix.md.

The network is small and fitted in closed form, the files are real ones in ONNX Runtime, and the gates are a run's own:
``prove_file`` for a written file, ``recheck`` for one on its way, the timing gates on measured or made-up times.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewise import calib_data, targets
from edgewise.calib_data import Data
from edgewise.calib_data._parts import MemoryPart
from edgewise.commands.console import run_guarded
from edgewise.errors import EdgewiseError
from edgewise.files import parts
from edgewise.files.open import Opened
from edgewise.images import resized
from edgewise.images.normalise import normalise
from edgewise.images.preprocess import Preprocess
from edgewise.images.wrapper import Wrapper
from edgewise.measure import statistics
from edgewise.measure.answers import compute_logits
from edgewise.measure.conditions import observe_conditions
from edgewise.measure.label_order import label_order
from edgewise.measure.latency import Interleaved, Samples, measure
from edgewise.measure.memory import ColdStart
from edgewise.measure.values import Latency
from edgewise.network.captured import Prepare, convert
from edgewise.report.rows import Row
from edgewise.run.artifacts import File
from edgewise.run.job import check_overlap
from edgewise.run.proofs import prove_file
from edgewise.run.steps import Model
from edgewise.stage import Context
from edgewise.stages.prune import Prune
from edgewise.stages.quantize import freeze_ranges
from edgewise.store.entries import Store
from edgewise.store.json_values import encode
from edgewise.targets import USUAL, Artifact, Grid, Inside
from edgewise.verify import card, gates, golden, layerwise, recheck
from edgewise.verify.card import Card
from edgewise.verify.gates import Finding, Limits

pytest.importorskip("onnxruntime")

MATRIX = Path(__file__).parents[2] / "docs" / "fault-matrix.md"
NEXT = "\n## Through the command line"
"""What ``test_command_line`` writes after the matrix."""
ONNX = targets.get("onnx")
BYTES = Preprocess(fed="bytes")
LIMITS = Limits(max_drop=0.02, max_step_ratio=1.0)


@dataclass(frozen=True)
class Spec:
    """What images are normalised with."""

    mean: tuple[float, ...] = (0.3, 0.3, 0.3)
    std: tuple[float, ...] = (0.4, 0.4, 0.4)
    name: str = "small"
    classifier: str = "5"
    cannot: tuple[str, ...] = ()


SPEC = Spec()


def colour(part: Any) -> MemoryPart:
    """The digits in colours that differ a little."""
    gray = part.batch(torch.arange(len(part))).float()
    shades = torch.cat([gray * 15 / 16, gray * 14 / 16 + 6, gray * 13 / 16 + 12], 1)
    return MemoryPart(shades.round().to(torch.uint8), part.labels)


@cache
def data() -> Data:
    """The digits in colour."""
    plain = calib_data.load("digits")
    made = {name: colour(getattr(plain, name)) for name in ("train", "calib", "test")}
    return dataclasses.replace(plain, shape=(3, 8, 8), **made)


@cache
def network(channels: int = 12) -> nn.Sequential:
    """Two random convolutions, and the linear layer that fits the training images best (ridge regression)."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, 24, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(24 * 4, 10),
    ).eval()  # fmt: skip
    train = data().train
    with torch.no_grad():
        features = net[:5](normalise(train.batch(torch.arange(len(train))), SPEC)).double()
        features = torch.cat([features, torch.ones(len(features), 1)], 1)
        wanted = 8 * nn.functional.one_hot(train.labels, 10).double()
        gram = features.T @ features + 0.1 * torch.eye(features.shape[1])
        fitted = torch.linalg.solve(gram, features.T @ wanted).T.float()
        net[5].weight.copy_(fitted[:, :-1])
        net[5].bias.copy_(fitted[:, -1])
    return net


@cache
def heavy() -> nn.Sequential:
    """The same with large weights side by side, at the two neighbouring features that are largest, for one class."""
    net = copy.deepcopy(network())
    with torch.no_grad():
        features = net[:5](normalise(data().calib.batch(torch.arange(128)), SPEC)).mean(0)
        pair = 2 * int(features.unflatten(0, (-1, 2)).amin(1).argmax())
        net[5].weight[3, pair : pair + 2] = net[5].weight.abs().max()
    return net


@cache
def quantized(weight_bits: int = 7) -> torch.fx.GraphModule:
    net = network() if weight_bits == 7 else heavy()
    prepared = Prepare(Grid(weight_bits=weight_bits).to_json(), (3, 8, 8)).capture(net)
    with torch.no_grad():
        prepared(normalise(data().calib.batch(torch.arange(128)), SPEC))
    freeze_ranges(prepared)
    return convert(prepared)


def baking(mean: tuple[float, ...] = SPEC.mean) -> Wrapper:
    return Wrapper(preprocess=BYTES, mean=mean, std=SPEC.std)


def export(module: nn.Module, path: Path, example: Tensor) -> Path:
    return ONNX.export(torch.export.export(module, (example,)), path, USUAL).path


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file, what it should answer, and how it is run."""

    path: Path
    module: nn.Module
    """What the file was meant to be written from, as it is fed."""
    fed: Preprocess
    precision: str
    answers: Tensor
    """PyTorch's."""
    baseline: Tensor
    labels: Tensor
    runner: Callable[[Tensor], Tensor] | None = None
    """In place of the file's own runtime."""
    limits: Limits = LIMITS
    inside: Callable[[Any, Tensor], Inside] | None = None
    """In place of what that lets out."""


def prove_case(case: Case) -> list[Finding]:
    """Every gate on the file, as a run asks them."""
    runner = case.runner or ONNX.load(case.path, 1)
    size = parts.size(case.path)
    made = File(Artifact(target="onnx", path=case.path, precision=case.precision), "", size, 0.0)
    bytes_fed = case.fed.fed == "bytes"

    def layers_apart(target: Any, made: File, source: Any, index: list[int]) -> list[str] | None:
        images = data().test.batch(torch.tensor(index))
        images = images.permute(0, 2, 3, 1).contiguous() if bytes_fed else normalise(images, SPEC)
        program = torch.export.export(case.module, (images[:1],))
        target = ONNX
        if case.inside is not None:
            target = dataclasses.replace(ONNX, inside=lambda _, program, images: case.inside(program, images))
        found = layerwise.layers_apart(target, case.path, program, images, case.precision)
        return None if found is None else [layer.name for layer in found]

    recipe = SimpleNamespace(preprocess=case.fed, packaging=SimpleNamespace(sizes=None))
    job = SimpleNamespace(
        recipe=recipe, data=dataclasses.replace(data(), test=MemoryPart(data().test.images, case.labels))
    )
    answers = compute_logits(runner, data().test, SPEC, fed=case.fed.fed)
    bench = SimpleNamespace(
        job=job,
        steps=SimpleNamespace(job=job, answers=lambda *_: (answers, 0.0)),
        files=SimpleNamespace(
            open=lambda *_: Opened(grade="runtime", runner=runner),
            evaluator=lambda *_: "",
            cold_start=lambda *_: (ColdStart(peak_bytes=1, load_ms=1.0, first_call_ms=1.0), 0.0),
            layers_apart=layers_apart,
        ),
        limits_of=lambda _: case.limits,
        judge_against=lambda found, base: statistics.accuracy_of(found, base.answers, case.labels),
    )
    model, base = (
        Model(name="m", folder=Path(), digest="", answers=a, params=1, macs=1, moved_bytes=1, seconds=0.0)
        for a in (case.answers, case.baseline)
    )
    return list(prove_file(bench, model, ONNX, made, base).findings)


def float_case(folder: Path, written: nn.Module | None = None) -> Case:
    """A float file that is fed bytes; ``written``: what lies in it in place of what should."""
    meant = baking().around(network())
    blank = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    path = export(meant if written is None else written, folder / "float.onnx", blank)
    answers = compute_logits(network(), data().test, SPEC)
    return Case(
        path=path, module=meant, fed=BYTES, precision="float32", answers=answers, baseline=answers,
        labels=data().test.labels,
    )  # fmt: skip


def int8_case(folder: Path, weight_bits: int = 7) -> Case:
    graph, net = quantized(weight_bits), network() if weight_bits == 7 else heavy()
    path = export(graph, folder / "int8.onnx", torch.zeros(1, 3, 8, 8))
    return Case(
        path=path, module=graph, fed=Preprocess(), precision="int8",
        answers=compute_logits(one_by_one(graph), data().test, SPEC), baseline=compute_logits(net, data().test, SPEC),
        labels=data().test.labels,
    )  # fmt: skip


def one_by_one(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda images: torch.cat([network(image[None]) for image in images])


# the faults: each gives the findings of all gates that look at its kind of thing


def clean_float(folder: Path) -> list[Finding]:
    return prove_case(float_case(folder))


def clean_int8(folder: Path) -> list[Finding]:
    return prove_case(int8_case(folder))


def wrong_mean(folder: Path) -> list[Finding]:
    return prove_case(float_case(folder, baking((0.32, 0.32, 0.32)).around(network())))


class Swapped(nn.Module):
    """Feeds blue where red belongs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        answers: Tensor = self.inner(torch.flip(images, (3,)))
        return answers


def blue_for_red(folder: Path) -> list[Finding]:
    return prove_case(float_case(folder, Swapped(baking().around(network()))))


def patch(path: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Alter the constants of a written file."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    held = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    before = {name: value.copy() for name, value in held.items()}
    change(held)
    changed = [name for name, value in held.items() if not np.array_equal(value, before[name])]
    assert changed, "the constant was not found"
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(held[tensor.name], tensor.name))
    onnx.save(model, path)


def first(held: dict[str, np.ndarray], kind: type, dims: int, size: int) -> np.ndarray:
    return next(v for v in held.values() if v.dtype == kind and v.ndim == dims and v.shape[0] == size)


def corrupted_scale(folder: Path) -> list[Finding]:
    """One channel's scale in the first convolution, a quarter larger."""
    case = int8_case(folder)

    def change(held: dict[str, np.ndarray]) -> None:
        first(held, np.float32, 1, 12)[3] *= 1.25

    patch(case.path, change)
    return prove_case(case)


def swapped_channel(folder: Path) -> list[Finding]:
    """The two most alike channels of the second convolution, each in the other's place, in a recipe that allows a fall."""
    case = dataclasses.replace(int8_case(folder), limits=Limits(max_drop=0.5))

    def change(held: dict[str, np.ndarray]) -> None:
        weight = first(held, np.int8, 4, 24)
        flat = weight.reshape(24, -1).astype(float)
        apart = np.square(flat[:, None] - flat).sum(2) + 1e9 * np.eye(24)
        one, other = np.unravel_index(apart.argmin(), apart.shape)
        weight[[one, other]] = weight[[other, one]]

    patch(case.path, change)
    return prove_case(case)


class Saturating(torch.fx.Interpreter):
    """Computes linear layers as a processor without VNNI does: u8 x s8, pairs of products cut off at 16 bits."""

    limit = 32_767

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.values: dict[str, Tensor] = {}

    @torch.no_grad()
    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if "linear" in str(n.target):
            values, weight, *bias = self.fetch_args_kwargs_from_env(n)[0]
            scale, zero = (float(v) for v in n.args[0].args[1:3])
            steps = self.fetch_args_kwargs_from_env(n.args[1])[0][1]
            unsigned = (values / scale).round().long() + int(zero) + 128
            signed = (weight / steps[:, None]).round().long()
            pairs = (unsigned[:, None] * signed).unflatten(2, (-1, 2)).sum(3).clamp(-self.limit - 1, self.limit)
            sums = pairs.sum(2) - (128 + int(zero)) * signed.sum(1)
            result = sums.float() * scale * steps + (bias[0] if bias else 0)
        if isinstance(result, Tensor):
            self.values[n.name] = result
        return result


class Wide(Saturating):
    """The same with sums of 32 bits: what the file should compute."""

    limit = 2**31 - 1


def emulated(folder: Path, kind: type[Saturating]) -> list[Finding]:
    case = int8_case(folder, 8)

    def inside(program: Any, images: Tensor) -> Inside:
        graph = layerwise.module_of(program)
        runs = [kind(graph) for _ in images]
        for run, image in zip(runs, images, strict=True):
            run.run(image[None])
        kept = [n.name for n in graph.graph.nodes if "dequantize_per_tensor" in str(n.target)]
        return Inside(program=program, values={name: torch.cat([run.values[name] for run in runs]) for name in kept})

    return prove_case(
        dataclasses.replace(case, runner=one_by_one(lambda image: kind(case.module).run(image)), inside=inside)
    )


def saturating(folder: Path) -> list[Finding]:
    return emulated(folder, Saturating)


def clean_emulation(folder: Path) -> list[Finding]:
    return emulated(folder, Wide)


def constant(folder: Path) -> list[Finding]:
    """A network that answers 0, on a set where nearly everything is a 0."""
    case = float_case(folder)
    labels = torch.zeros(len(case.labels)).long()
    labels[:14] = 1
    always = torch.zeros(len(labels), 10)
    always[:, 0] = 5 + torch.arange(len(labels)) % 3
    given = iter(torch.split(always, 256))
    return prove_case(
        dataclasses.replace(case, labels=labels, answers=always, baseline=always, runner=lambda _: next(given))
    )


def not_a_number(folder: Path) -> list[Finding]:
    """A network of NaN: file, network and baseline agree, and no class is told less well than before."""
    case = float_case(folder)
    nothing = torch.full((len(case.labels), 10), torch.nan)
    given = iter(torch.split(nothing, 256))
    return prove_case(dataclasses.replace(case, answers=nothing, baseline=nothing, runner=lambda _: next(given)))


def labels_off_by_one(folder: Path) -> list[Finding]:
    predicted = compute_logits(network(), data().test, SPEC).argmax(1).numpy()
    return [gates.on_labels(label_order(predicted, data().test.labels.numpy() + 1, 10))]


def right_labels(folder: Path) -> list[Finding]:
    predicted = compute_logits(network(), data().test, SPEC).argmax(1).numpy()
    return [gates.on_labels(label_order(predicted, data().test.labels.numpy(), 10))]


# files on their way


def keep(path: Path, shape: tuple[int, int, int]) -> Path:
    """The card and golden images that a run writes."""
    runner = ONNX.load(path, 1)
    part = resized.resize_data(data(), shape[1:]).test
    images, answers = golden.choose(part), compute_logits(runner, part, SPEC)
    record = golden.write(
        path, dataclasses.replace(images, answers=answers[images.index]), golden.tolerance(answers, answers)
    )
    row = Row(
        step="artifact", target="onnx", params=1, macs=1, bytes=parts.size(path), accuracy=None, latency=None,
        verification="runtime", undelegated=(), verdict="pass", reason="", seconds=0.0,
    )  # fmt: skip
    kept = Card(
        target="onnx", sha256=parts.digest(path), recipe="r", model="m", data_digest=data().digest, seed=0,
        input_shape=shape, mean=SPEC.mean, std=SPEC.std, classes=data().classes, max_drop=0.02, row=row, golden=record,
        answers=tuple(tuple(a) for a in answers[:16].tolist()),
    )  # fmt: skip
    card.path_of(path).write_text(json.dumps(encode(kept)), encoding="utf-8")
    return path


def recheck_file(path: Path, runner: Callable[[Tensor], Tensor] | None = None, images: Any = None) -> list[Finding]:
    """What re-checking asks of a file whose digest is the card's: its size, its golden answers, those to the test images."""
    kept = card.read(path)
    runner = runner or ONNX.load(path, 1)
    part = images or resized.resize_data(data(), kept.input_shape[1:]).test
    answers = compute_logits(runner, part, SPEC)
    unlike = recheck.on_card(path, kept)
    size = Finding("fail" if unlike else "pass", "; ".join(found.reason for found in unlike), gate="size")
    return [
        size,
        dataclasses.replace(recheck.on_golden(path, kept, runner), gate="card answers"),
        dataclasses.replace(recheck.on_answers(answers, kept), gate="card answers"),
    ]


def delivered(folder: Path) -> Path:
    return keep(int8_case(folder).path, (3, 8, 8))


def clean_recheck(folder: Path) -> list[Finding]:
    return recheck_file(delivered(folder))


def wrong_resize(folder: Path) -> list[Finding]:
    """Images brought to 12 x 12 by taking the nearest pixel, where bilinear was meant."""
    net = nn.Sequential(*network()[:4], nn.AdaptiveAvgPool2d(2), *network()[4:]).eval()
    path = keep(export(net, folder / "sized.onnx", torch.zeros(1, 3, 12, 12)), (3, 12, 12))
    images = nn.functional.interpolate(data().test.images.float(), (12, 12), mode="nearest").to(torch.uint8)
    return recheck_file(path, images=MemoryPart(images, data().test.labels))


def unpruned(folder: Path) -> list[Finding]:
    """The network before a prune that took unused channels: it answers the same, and the card names its digest."""
    path = keep(export(network(), folder / "pruned.onnx", torch.zeros(1, 3, 8, 8)), (3, 8, 8))
    small = network()
    wide = nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3, stride=2), nn.ReLU(), nn.Flatten(), small[5]
    ).eval()
    with torch.no_grad():
        wide[2].weight.zero_()
        wide[0].weight[:12], wide[0].bias[:12] = small[0].weight, small[0].bias
        wide[2].weight[:, :12], wide[2].bias[:] = small[2].weight, small[2].bias
    export(wide, path, torch.zeros(1, 3, 8, 8))
    return recheck_file(path)


def other_runtime(folder: Path) -> list[Finding]:
    """A version of the runtime that rounds otherwise: a step more here and there."""
    path = delivered(folder)
    usual = ONNX.load(path, 1)
    return recheck_file(path, lambda images: usual(images) + 0.05 * (torch.arange(10) % 3 == 0))


# steps and times


def no_op_prune(folder: Path) -> list[Finding]:
    """A prune that may remove nothing."""
    context = Context(spec=SPEC, data=data(), scratch=folder)
    try:
        Prune(channels=0.5, keep=("0", "2"))(network(), context)
    except EdgewiseError as error:
        return [Finding("fail", str(error), "step")]
    return [Finding("pass", "", "step")]


def timed(found: Interleaved) -> Latency:
    ratio, interval = statistics.ratio_interval(found.samples["ours"].blocks, found.samples["theirs"].blocks)
    return Latency(
        on="onnx", batch=1, threads=1, p50_ms=found.samples["ours"].percentile(50), p90_ms=1.0,
        ratio_to_baseline=ratio, ci95=interval, conditions=found.conditions("ours"),
    )  # fmt: skip


def slower_substitute(folder: Path) -> list[Finding]:
    """A cheaper-looking block of many layers, timed in its runtime against the one it replaces."""
    image = torch.zeros(1, 3, 8, 8)
    deep = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), *(nn.Conv2d(64, 64, 3, padding=1) for _ in range(6))).eval()
    calls = {}
    for name, module in (("ours", deep), ("theirs", network())):
        runner = ONNX.load(export(module, folder / f"{name}.onnx", image), 1)
        calls[name] = lambda runner=runner: runner(image)
    return [gates.on_input(timed(measure(calls, seconds=0.5)), "the step before", LIMITS)]


def made_up(ours: np.ndarray, course: np.ndarray, share: float = 1.0) -> list[Finding]:
    """Times of 30 blocks of 20 calls, ``ours`` to 1, on a machine whose clock took that ``course``."""
    noise = np.random.default_rng(0).normal(1, 0.005, (2, 30, 20))
    samples = {"ours": Samples((ours * course)[:, None] * noise[0]), "theirs": Samples(course[:, None] * noise[1])}
    found = Interleaved(samples=samples, reference_ms=course, cpu_share=np.full(30, share))
    assert found.conditions("ours") == observe_conditions(samples["ours"].times, course, found.cpu_share)
    return [gates.on_latency(timed(found), LIMITS)]


def steady_times(folder: Path) -> list[Finding]:
    return made_up(np.full(30, 0.96), np.ones(30))


def noisy_times(folder: Path) -> list[Finding]:
    return made_up(np.random.default_rng(1).uniform(0.6, 1.4, 30), np.ones(30))


def throttled_clock(folder: Path) -> list[Finding]:
    return made_up(np.full(30, 0.96), np.repeat([1.0, 1.2, 1.4], 10))


def competitor(folder: Path) -> list[Finding]:
    return made_up(np.full(30, 0.96), np.ones(30), share=0.5)


# data and store


def overlapping(repeated: bool) -> list[Finding]:
    test = MemoryPart(data().test.images.clone(), data().test.labels)
    test.images[0] = test.images[1] if repeated else data().train.images[0]

    def work() -> int:
        check_overlap(dataclasses.replace(data(), test=test), LIMITS)
        return 0

    status = run_guarded(work)
    return [Finding("fail" if status == 2 else "pass", "refused before anything was trained", "images")]


def repeated_image(folder: Path) -> list[Finding]:
    return overlapping(repeated=True)


def leaked_image(folder: Path) -> list[Finding]:
    return overlapping(repeated=False)


def clean_data(folder: Path) -> list[Finding]:
    check_overlap(data(), LIMITS)
    return [Finding("pass", "", "images")]


def stale_entry(folder: Path) -> list[Finding]:
    """A result in the store whose content changed after it was kept."""
    store = Store(folder / "store")
    entry = store.keep("a" * 64, lambda place, _: (place / "answers").write_text("right", encoding="utf-8") and None)
    (entry.path / "answers").chmod(0o644)
    (entry.path / "answers").write_text("wrong", encoding="utf-8")
    again = store.keep("a" * 64, lambda place, _: (place / "answers").write_text("right", encoding="utf-8") and None)
    healed = (again.path / "answers").read_text(encoding="utf-8") == "right"
    return [Finding("fail" if healed else "pass", "set aside and computed anew", "store")]


@dataclass(frozen=True)
class Fault:
    """One row of the matrix."""

    name: str
    inject: Callable[[Path], list[Finding]]
    gates: frozenset[str]
    """Those that must not pass; all others must."""
    verdict: str = "fail"
    status: int = 1


def fault(
    name: str, inject: Callable[[Path], list[Finding]], *red: str, verdict: str = "fail", status: int = 1
) -> Fault:
    return Fault(name, inject, frozenset(red), verdict, status)


def unsure(folder: Path) -> list[Finding]:
    """The same classes, a quarter of the logits: no gate on classes sees it."""
    answers, labels = compute_logits(network(), data().test, SPEC), data().test.labels
    found = statistics.accuracy_of(answers / 4, answers, labels)
    return gates.on_told(found, dataclasses.replace(LIMITS, max_ece_rise=0.02))


def calm(folder: Path) -> list[Finding]:
    answers, labels = compute_logits(network(), data().test, SPEC), data().test.labels
    found = statistics.accuracy_of(answers.clone(), answers, labels)
    return gates.on_told(found, dataclasses.replace(LIMITS, max_ece_rise=0.02))


def lost_places(folder: Path) -> list[Finding]:
    """Of 30 classes, the right one told as often as before, and put last where it is not."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 30
    answers = torch.randn(600, 30, generator=rng) + 1.5 * nn.functional.one_hot(labels, 30)
    missed = answers.argmax(1) != labels
    theirs = answers.clone()
    theirs[missed, labels[missed]] = answers.amin() - 1
    found = statistics.accuracy_of(theirs, answers, labels)
    return gates.on_told(found, dataclasses.replace(LIMITS, max_top5_drop=0.02))


def noisy_answers(folder: Path) -> list[Finding]:
    """Noise that is below what float32's rounding explains, in a recipe that allows less."""
    case = dataclasses.replace(float_case(folder), limits=dataclasses.replace(LIMITS, min_sqnr_db=100.0))
    usual, rng = ONNX.load(case.path, 1), torch.Generator().manual_seed(0)
    noise = 3e-4 * float(case.answers.std())

    def run(images: Tensor) -> Tensor:
        answers = usual(images)
        return answers + noise * torch.randn(answers.shape, generator=rng)

    return prove_case(dataclasses.replace(case, runner=run))


FAULTS = (
    fault("wrong mean in the file", wrong_mean, "agreement"),
    fault("blue fed for red", blue_for_red, "agreement"),
    fault("images resized by another rule", wrong_resize, "card answers"),
    fault("labels off by one", labels_off_by_one, "labels"),
    fault("a test image twice", repeated_image, "images", status=2),
    fault("a test image among the training images", leaked_image, "images", status=2),
    fault("one channel's scale a quarter larger", corrupted_scale, "agreement"),
    fault("two channels swapped", swapped_channel, "agreement"),
    fault("the file holds the unpruned network", unpruned, "size"),
    fault("a prune that removes nothing", no_op_prune, "step"),
    fault("a substitute that is slower", slower_substitute, "step time"),
    fault("a store entry altered after it was kept", stale_entry, "store", status=0),
    fault("another version of the runtime, which rounds otherwise", other_runtime, "card answers"),
    fault("sums of u8 x s8 cut off at 16 bits", saturating, "agreement"),
    fault("noise in the times", noisy_times, "latency", verdict="not-checked", status=0),
    fault("a clock that falls", throttled_clock, "latency", verdict="not-checked", status=0),
    fault("a competitor on the processor", competitor, "latency", verdict="not-checked", status=0),
    fault("always the same answer", constant, "answers"),
    fault("less sure of its answers than it is right", unsure, "calibration"),
    fault("the right class no longer among the first five", lost_places, "top-5"),
    fault("answers noisier than the recipe allows", noisy_answers, "SQNR"),
    fault("a network of NaN", not_a_number, "answers", "agreement"),
)
CLEAN = (clean_float, clean_int8, clean_emulation, clean_recheck, right_labels, clean_data, steady_times, calm)


def red(findings: Iterable[Finding]) -> dict[str, str]:
    return {gate: verdict for gate, verdict in gates.gates_of(findings).items() if verdict != "pass"}


@pytest.mark.parametrize("work", CLEAN, ids=lambda work: work.__name__)
def test_without_a_fault_every_gate_is_green(work: Callable[[Path], list[Finding]], tmp_path: Path) -> None:
    findings = work(tmp_path)
    assert red(findings) == {}, [finding.reason for finding in findings]


@pytest.mark.parametrize("planted", FAULTS, ids=lambda planted: planted.inject.__name__)
def test_a_fault_turns_its_gate_red_and_no_other(planted: Fault, tmp_path: Path) -> None:
    findings = planted.inject(tmp_path)
    found = red(findings)
    assert found == dict.fromkeys(planted.gates, planted.verdict), [finding.reason for finding in findings]
    if planted.status != 2 and planted.gates != {"store"}:
        assert planted.status == int(gates.worst_finding(*findings).verdict == "fail")


def matrix() -> str:
    lines = [
        "# Faults and the gates that catch them",
        "",
        "Written by `nox -s faults` from `tests/faults`, which plants each fault and checks that this gate, and no other, does "
        "not pass; without a fault all pass. Exit status: of the command that the gate belongs to.",
        "",
        "| fault | gate | verdict | exit status |",
        "|---|---|---|---|",
    ]
    for planted in FAULTS:
        verdict = {1: planted.verdict, 0: planted.verdict, 2: "refused before training"}[planted.status]
        verdict = "set aside, computed anew" if planted.gates == {"store"} else verdict
        lines.append(f"| {planted.name} | {', '.join(sorted(planted.gates))} | {verdict} | {planted.status} |")
    return "\n".join([*lines, ""])


def test_the_matrix_in_the_documentation_is_what_is_checked() -> None:
    if os.environ.get("EDGEWISE_WRITE_MATRIX"):
        rest = MATRIX.read_text(encoding="utf-8").partition(NEXT)[2]
        MATRIX.write_text(matrix() + (NEXT + rest if rest else ""), encoding="utf-8")
    assert MATRIX.read_text(encoding="utf-8").partition(NEXT)[0] == matrix(), "write it anew: nox -s faults"

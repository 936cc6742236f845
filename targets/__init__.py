"""Deployment targets: one file (or small folder) each, named as the target, its pip extra and its nox session.

A target's module defines ``TARGET = Target(...)`` and imports its backend only inside the functions that need it, so
that ``names()`` imports nothing and ``get(name)`` can say which package is missing.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, get_args, runtime_checkable

from annotated_types import Interval

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torchao.quantization.pt2e.quantizer import Quantizer


_FOLDER = Path(__file__).parent

COMMON_OPERATORS = frozenset({"conv", "linear", "relu", "add", "mul", "cat", "pool", "mean", "reshape"})
"""Operator patterns that every int8 runtime here has."""

GATES = frozenset({"sigmoid", "hardsigmoid", "hardswish"})
"""Activation functions that integer kernels compute: by a table, or as sums and products. SiLU is x·sigmoid(x) there."""

PRODUCTS = frozenset({"conv_transpose", "gelu", "matmul"})
"""Transposed convolutions, products of two activations, and GELU, whose readers want integers anyway."""


class TargetError(ValueError):
    """A request that names no target, or a file that the target cannot read."""


class MissingBackend(ImportError):
    """The target's backend is not installed; the message holds the line that installs it."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A quantization grid: the integers a tensor may take. Two targets that accept one grid share one QAT run.

    Weights: symmetric, per output channel, ``weight_bits`` wide, zero point 0. Activations: 8 bits per tensor.
    """

    weight_bits: int = 8
    """8: −127 … 127. 7: −63 … 63, which keeps 16-bit accumulators of u8×s8 kernels from saturating."""
    symmetric_activations: bool = False
    """True: zero point 0. False: affine (asymmetric), −128 … 127."""
    operators: frozenset[str] = COMMON_OPERATORS
    """Operator patterns that run in int8; the rest stays float."""

    def meet(self, other: Grid) -> Grid:
        """The widest grid inside both: what is trained on it, both represent exactly."""
        return Grid(
            weight_bits=min(self.weight_bits, other.weight_bits),
            symmetric_activations=self.symmetric_activations or other.symmetric_activations,
            operators=self.operators & other.operators,
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {
            "weight_bits": self.weight_bits,
            "symmetric_activations": self.symmetric_activations,
            "operators": sorted(self.operators),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Grid:
        """The grid that ``to_json`` described."""
        return cls(
            weight_bits=fields["weight_bits"],
            symmetric_activations=fields["symmetric_activations"],
            operators=frozenset(fields["operators"]),
        )


def common_grid(targets: Iterable[Target]) -> Grid | None:
    """The widest grid on which one training run serves all of ``targets``; None where they have none in common.

    Each target lists the grids it executes exactly; a narrower grid with the same kind of activations lies inside.
    """
    best: Grid | None = None
    for choice in itertools.product(*(target.grids for target in targets)):
        common = functools.reduce(Grid.meet, choice)
        if common.operators and (best is None or common.weight_bits > best.weight_bits):
            best = common
    return best


Precision = Literal["float32", "float16", "int8", "int8-weights", "palette"]
"""What a file computes with. int8-weights and palette keep activations in float and store weights smaller."""


LARGEST_SIDE = 8192
"""Pixels: beyond, one image's activations alone fill a computer's memory."""

Side = Annotated[int, Interval(ge=1, le=LARGEST_SIDE)]

SizeKind = Literal["fixed", "enumerated", "ranged"]
EVERY_SIZE: frozenset[SizeKind] = frozenset(get_args(SizeKind))
"""The sizes of a target that writes files for one, for a list and for a range."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The image sizes that a file accepts, each (height, width) in pixels; the first is the one it is captured at."""

    choices: tuple[tuple[Side, Side], ...]
    """The sizes one by one; with ``ranged``, sizes whose smallest and largest sides bound the range."""
    ranged: bool = False
    """True: every height and every width between the smallest and the largest of ``choices`` is accepted."""

    @property
    def kind(self) -> SizeKind:
        """How a runtime has to treat them: as one size, as a list, or as a range."""
        if len(set(self.choices)) == 1:
            return "fixed"
        return "ranged" if self.ranged else "enumerated"

    @property
    def heights(self) -> tuple[int, int]:
        """The smallest and the largest height."""
        return min(h for h, _ in self.choices), max(h for h, _ in self.choices)

    @property
    def widths(self) -> tuple[int, int]:
        """The smallest and the largest width."""
        return min(w for _, w in self.choices), max(w for _, w in self.choices)


@dataclass(frozen=True, kw_only=True)
class Packaging:
    """How a network is put into a file, beside the network itself. A target refuses what its format cannot hold."""

    precision: Precision | None = None
    """None: the program's own (int8 where it holds quantize nodes) in the target's usual float type."""
    sizes: Sizes | None = None
    """None: the one size the program was captured at."""
    labels: tuple[str, ...] = ()
    """Class names in the order of the outputs, for formats that carry them."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Written into the file where the format has a place for it."""
    palette_bits: Annotated[int, Interval(ge=1, le=8)] = 6
    """Width of a palette's indices: a weight tensor keeps 2 to this power different values."""
    minimum: Mapping[str, str] = field(default_factory=dict)
    """Target's name -> the oldest version that must read its file, as ``{"coreml": "iOS16"}``; others: the usual one."""


USUAL = Packaging()


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A written file and what is known of it without running it."""

    target: str
    path: Path
    precision: Precision
    undelegated: tuple[str, ...] = ()
    """Operators that the target's accelerated backend left outside, one entry per occurrence."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Target-specific, JSON-serialisable: opset, operator counts, fused convolutions, ..."""


class Runner(Protocol):
    """A loaded file. Call it with what the program it was written from takes."""

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised float32 [N, C, H, W], or bytes uint8 [N, H, W, C] -> float32 [N, classes], what the file answers.

        Runs one image at a time when the file's batch is 1.
        """


@runtime_checkable
class TellsInput(Protocol):
    """A loaded file that knows what it is fed."""

    @property
    def takes(self) -> tuple[tuple[int | None, ...], str]:
        """Sides of its first input, None where one is open, and what that holds: float, half or uint8."""


@dataclass(frozen=True, kw_only=True)
class Inside:
    """What a written file computes on the way from some images to its answers."""

    program: ExportedProgram
    """The program the file was lowered from, after the target's own rewriting of it."""
    values: Mapping[str, Tensor]
    """Node of ``program`` -> what the file has there for each image, [N, ...], as whatever reads it takes it: float32,
    integers multiplied by the scale of their reader. Nodes that leave no value in the running file are not there."""
    half: bool = False
    """Whether the file keeps its float values and scales in float16."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A vendor model's prediction, never a measurement."""

    cycles: int
    macs: int
    """Multiply-accumulates of one image as the vendor counts them, padding to its blocks included."""
    ms: float
    """Milliseconds for one image at ``clock_hz``."""
    clock_hz: int
    sram_bytes: int
    flash_bytes: int
    source: str
    """The model that predicts, and the hardware it predicts for."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime that a network is deployed to."""

    name: str
    summary: str
    suffix: str
    """Of the written file or package, with the dot."""
    extra: str
    """The pip extra that installs the backend."""
    needs: tuple[str, ...]
    """Importable modules the backend consists of; checked without importing them."""
    grids: tuple[Grid, ...]
    """The grids this runtime executes exactly, the widest first."""
    quantizer: Callable[..., Quantizer]
    """``quantizer(grid, qat=bool)``."""
    export: Callable[[ExportedProgram, Path, Packaging], Artifact]
    """Lower a program captured at batch 1 (float, or quantized with quantize/dequantize nodes) and write the file.

    Where ``packaging.sizes`` names several, the program was captured with height and width left open. Raises TargetError for a packaging that the target's format or runtime does not have.
    """
    load: Callable[[Path, int], Runner] | None
    """``load(path, threads)`` in the real runtime; None: it does not exist on this host."""
    npm: tuple[str, ...] = ()
    """Packages of npm that its runtime consists of, which node runs."""
    sizes: frozenset[SizeKind] = frozenset({"fixed"})
    """Which kinds of ``Packaging.sizes`` its files can have."""
    integers_only: bool = False
    """Whether it has no file for a float network."""
    precisions: tuple[Precision, ...] = ()
    """What a float network may be written as, the usual first; empty: in one way alone."""
    one_size: frozenset[Precision] = frozenset()
    """What it writes for one image size alone."""
    versions: tuple[str, ...] = ()
    """The versions that ``Packaging.minimum`` may name for it, the oldest first."""
    since: tuple[tuple[Precision, str], ...] = ()
    """Precisions that came with a later one of them than the first, each with it."""
    palette_bits: tuple[int, ...] = ()
    """Widths of a palette's indices that its runtime unpacks."""
    feeds: frozenset[str] = frozenset({"normalised"})
    """What its files can be fed: ``normalised`` float32 [1, C, H, W] by all, ``channels-last`` the same as [1, H, W, C], ``bytes``
    a camera's, uint8 [1, H, W, C]."""
    reference: Callable[[Path], Runner] | None = None
    """Evaluates the written file's own instructions; for files whose runtime does not exist on this host."""
    estimate: Callable[[Path], Estimate] | None = None
    """The vendor's own prediction of a written file's cost. Raises TargetError for a file that has none."""
    profile: Callable[[Path, Tensor, int], Mapping[str, float]] | None = None
    """``profile(path, image, threads)``: operator -> milliseconds of one call, by the runtime's own profiler.

    Raises TargetError where the installed runtime records no times.
    """
    tensors: Callable[[Path], tuple[str, str]] | None = None
    """Names of a written file's input and output; None: its runtime counts them instead. Raises TargetError."""
    max_undelegated: int | None = None
    """Largest number of operators left outside, for a recipe that sets no limit of its own; None: not limited."""
    inside: Callable[[Path, ExportedProgram, Tensor], Inside] | None = None
    """``inside(path, program, images)``: intermediate values of a file written from ``program``; None: not to be had."""


def refuse_packaging(target: Target, packaging: Packaging, precision: Precision | None) -> None:
    """Raise TargetError for what no file of a target's can have, in ``precision`` (None: the usual float type).

    All this is known before there is a network; ``export`` refuses what only the network shows.
    """
    sizes, version = packaging.sizes, packaging.minimum.get(target.name)
    if sizes is not None and sizes.kind not in target.sizes:
        kinds = " or ".join(sorted(target.sizes))
        raise TargetError(
            f"target {target.name!r} writes no file for {sizes.kind} image sizes, only {kinds}; leave it out, or ask for one "
            "--input-size"
        )
    if sizes is not None and sizes.kind != "fixed" and precision in target.one_size:
        raise TargetError(
            f"target {target.name!r} writes a {precision} file for one image size only; leave the others out"
        )
    if version is not None and version not in target.versions:
        choices = ", ".join(target.versions) or "none, it writes one version"
        raise TargetError(f"target {target.name!r} writes no file for {version!r}; choices: {choices}")
    first = dict(target.since).get(precision) if precision else None
    if version is not None and first is not None and target.versions.index(version) < target.versions.index(first):
        raise TargetError(f"target {target.name!r}: {precision} files came with {first}, and {version} is to read them")
    if precision == "palette" and packaging.palette_bits not in target.palette_bits:
        choices = ", ".join(map(str, target.palette_bits))
        raise TargetError(f"target {target.name!r} has no palette of {packaging.palette_bits} bits; choices: {choices}")


def _module_files() -> dict[str, Path]:
    files = {path.stem: path for path in _FOLDER.glob("[!_]*.py")}
    files |= {path.parent.name: path for path in _FOLDER.glob("[!_]*/__init__.py")}
    return dict(sorted(files.items()))


def names() -> dict[str, str]:
    """Target name -> first line of its docstring; imports no backend."""
    return {
        name: (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
        for name, path in _module_files().items()
    }


def check_name(name: str) -> None:
    """Raise TargetError, with the choices and the nearest spelling, for a name that no target has."""
    choices = names()
    if name not in choices:
        near = difflib.get_close_matches(name, choices, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise TargetError(f"unknown target {name!r}.{hint} Choices: {', '.join(choices)}")


def get(name: str) -> Target:
    """The target called ``name``. Raises TargetError for an unknown name, MissingBackend where a package is missing."""
    check_name(name)
    target: Target = importlib.import_module(f"{__name__}.{name}").TARGET
    missing = [module for module in target.needs if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingBackend(
            f"target {name!r} needs {', '.join(missing)}, which is not installed. "
            f'Install it with: python -m pip install -e ".[{target.extra}]"'
        )
    if target.npm and (reason := _of_npm().what_is_missing(target.npm)):
        raise MissingBackend(f"target {name!r} {reason}")
    return target


NPM = "npm:"
"""Before the name of a package of npm that stands among Python distributions."""


def _of_npm() -> Any:
    """By its name: a kept result depends on every file that its code imports, and no training on this one."""
    return importlib.import_module(f"{__name__}._npm")


def packages(target: Target) -> tuple[str, ...]:
    """The distributions that the target's modules come from, as their versions are looked up."""
    distributions = _installed_distributions()
    names = {name for module in target.needs for name in distributions.get(module.split(".")[0], [module])}
    return (*sorted(names), *(f"{NPM}{name}" for name in target.npm))


@functools.cache
def _installed_distributions() -> Mapping[str, list[str]]:
    """Importable module -> the distributions it comes from: a look at every installed file, which takes its time."""
    return importlib.metadata.packages_distributions()


def versions(distributions: Iterable[str]) -> dict[str, str | None]:
    """Installed version of each distribution, None where it is not installed; imports none of them."""
    versions_by_package: dict[str, str | None] = {}
    for name in distributions:
        if name.startswith(NPM):
            versions_by_package[name] = _of_npm().package_version(name.removeprefix(NPM))
            continue
        try:
            versions_by_package[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions_by_package[name] = None
    return versions_by_package

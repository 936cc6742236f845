"""Architectures, one family a file.

A file of this folder registers its variants::

    @register(input_shape=(3, 224, 224), classifier="fc")
    def resnet18(num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
        \"\"\"ResNet-18 (He et al. 2015, table 1).\"\"\"

``names()`` reads the files' text and imports nothing, so that listing is instant; ``get(name)`` imports the one family it
needs.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_FOLDER = Path(__file__).parent
_REGISTRY: dict[str, Spec] = {}


class ModelError(ValueError):
    """A request for a model that cannot be met: an unknown name, or a file that does not hold what was asked for."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What the pipeline has to know about an architecture; it stands beside the architecture's own code."""

    name: str
    build: Callable[..., nn.Module]
    """``build(num_classes=…, in_channels=…)`` returns a freshly initialised network with inputs [N, C, H, W]."""
    input_shape: tuple[int, int, int]
    """Channels, height and width the architecture was published with."""
    num_classes: int = 1000
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Per-channel mean of the training images, in units of 0 to 1."""
    std: tuple[float, ...] = IMAGENET_STD
    classifier: str
    """Dotted name of the last layer, whose output channels are the classes and are never pruned."""
    summary: str = ""
    cannot: Mapping[str, str] = field(default_factory=dict)
    """Stages or targets this architecture cannot go through, each with the reason."""
    small: Mapping[str, Any] = field(default_factory=dict)
    """Extra keyword arguments of ``build`` that give a reduced network with the same kinds of layers, for tests."""
    small_input: tuple[int, int, int] | None = None
    """Input shape for the reduced network; None: the published one."""
    resize: int = 0
    """Pixels that an image's shorter side is resized to before the cut to ``input_shape``; 0: not said."""
    interpolation: str = ""
    """The filter of that resizing, as Pillow calls it; empty: not said."""
    classes: tuple[str, ...] = ()
    """Names of the outputs in their order; empty: not said."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Where mean, std, input_shape, resize, interpolation and classes were said, for those that somebody said."""


def register(
    *,
    input_shape: tuple[int, int, int],
    classifier: str,
    num_classes: int = 1000,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    cannot: Mapping[str, str] | None = None,
    small: Mapping[str, Any] | None = None,
    small_input: tuple[int, int, int] | None = None,
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Enter the decorated ``build`` function under its own name; its docstring's first line is the summary."""

    def enter(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        _REGISTRY[build.__name__] = Spec(
            name=build.__name__,
            build=build,
            input_shape=input_shape,
            num_classes=num_classes,
            mean=mean,
            std=std,
            classifier=classifier,
            summary=(build.__doc__ or "").strip().split("\n")[0],
            cannot=dict(cannot or {}),
            small=dict(small or {}),
            small_input=small_input,
            origins=dict.fromkeys(("mean", "std", "input_shape"), f"models: {build.__name__}"),
        )
        return build

    return enter


@dataclass(frozen=True)
class _Listed:
    """What a family's text says of one architecture."""

    family: str
    summary: str
    cannot: Mapping[str, str]


@cache
def _read_index() -> dict[str, _Listed]:
    entries = {}
    for path in sorted(_FOLDER.glob("[!_]*.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for node in body:
            call = _find_registration(node)
            if isinstance(node, ast.FunctionDef) and call is not None:
                summary = (ast.get_docstring(node) or "").split("\n")[0]
                entries[node.name] = _Listed(path.stem, summary, _read_cannot(call, body))
    return entries


def _find_registration(node: ast.stmt) -> ast.Call | None:
    for decorator in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
        if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id == "register":
            return decorator
    return None


def _read_cannot(call: ast.Call, body: list[ast.stmt]) -> dict[str, str]:
    """The literal given as ``cannot``, or the one that the file's constant of that name holds."""
    value = next((keyword.value for keyword in call.keywords if keyword.arg == "cannot"), None)
    if isinstance(value, ast.Name):
        name = value.id
        constants = [n for n in body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == name]
        value = constants[0].value
    return {} if value is None else dict(ast.literal_eval(value))


def names() -> dict[str, str]:
    """Every registered name with its one-line summary, in the files' order; imports no family and no torch."""
    return {name: entry.summary for name, entry in _read_index().items()}


def limits() -> dict[str, Mapping[str, str]]:
    """Every registered name with the stages and targets it cannot go through, and why; imports no family, no torch."""
    return {name: entry.cannot for name, entry in _read_index().items()}


def check_name(name: str) -> None:
    """Raise ModelError, with the choices and the nearest spelling, for a name that none is registered under."""
    if name not in _read_index():
        near = difflib.get_close_matches(name, _read_index(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ModelError(
            f"unknown model {name!r}.{hint} Choices: {', '.join(_read_index())}; or path/to/net.py:function"
        )


def get(name: str) -> Spec:
    """The spec registered under ``name``; raises ModelError as ``check_name``."""
    check_name(name)
    importlib.import_module(f"{__name__}.{_read_index()[name].family}")
    return _REGISTRY[name]

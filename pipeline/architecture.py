"""From a model's name, or the user's own file, to a spec, a network and its weights."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

import models
from models import Spec
from pipeline.errors import RequestError

_ROOT = Path(__file__).parent.parent
_PACKAGES = ("pipeline", "models", "targets", "calib_data")


@dataclass(frozen=True)
class Base:
    """What a network was built from."""

    model: str
    """A registered name, or path/to/net.py:function."""
    num_classes: int
    in_channels: int


def spec_of(reference: str) -> Spec:
    """The spec of a registered name, or of the user's ``path/to/net.py:function``.

    A user's file may say ``mean``, ``std``, ``input_shape`` and ``classifier`` as module constants; otherwise the mean
    and deviation are 0.5 and the classifier is the last linear or convolutional layer.
    """
    if ".py:" not in reference:
        return models.get(reference)
    build = load_function(reference)
    module = sys.modules[build.__module__]
    shape = getattr(module, "input_shape", None)
    spec = models._REGISTRY.get(build.__name__)
    if spec is not None and spec.build is build:
        return spec
    return Spec(
        name=reference,
        build=build,
        input_shape=tuple(shape) if shape else (3, 224, 224),
        mean=tuple(getattr(module, "mean", (0.5,))),
        std=tuple(getattr(module, "std", (0.5,))),
        classifier=getattr(module, "classifier", ""),
        summary=(build.__doc__ or "").strip().split("\n")[0],
    )


def load_function(reference: str) -> Callable[..., Any]:
    """The function named by ``path/to/file.py:function``. Raises RequestError when there is no such file or function."""
    path_text, _, name = reference.rpartition(":")
    path = Path(path_text).resolve()
    if not path.is_file():
        raise RequestError(f"{reference!r}: there is no file {path_text}")
    module = _import_file(path)
    function = getattr(module, name, None)
    if not callable(function):
        choices = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        raise RequestError(f"{path_text} has no function {name!r}; it defines: {', '.join(choices) or 'none'}")
    loaded: Callable[..., Any] = function
    return loaded


def _import_file(path: Path) -> ModuleType:
    name = f"edgewise_user_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise RequestError(f"{path} could not be imported: {type(error).__name__}: {error}") from error
    return module


def build(base: Base) -> nn.Module:
    """A freshly initialised network. Arguments that the build function does not take are left out."""
    function = spec_of(base.model).build
    wanted = {"num_classes": base.num_classes, "in_channels": base.in_channels}
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    network = function(**{k: v for k, v in wanted.items() if takes_all or k in parameters})
    if not isinstance(network, nn.Module):
        raise RequestError(f"{base.model} returned {type(network).__name__}; wanted a torch.nn.Module")
    return network


def classifier_of(model: nn.Module, spec: Spec) -> str:
    """The dotted name of the layer whose outputs are the classes."""
    if spec.classifier:
        return spec.classifier
    layers = [name for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    if not layers:
        raise RequestError(f"{spec.name} has no linear or convolutional layer to be its classifier")
    return str(layers[-1])


def code_digest(reference: str) -> str:
    """SHA-256 over the source that defines a model, with everything of this project that it imports."""
    return source_digest(Path(inspect.getfile(inspect.unwrap(spec_of(reference).build))))


def source_digest(path: Path, *, within: Path | None = None, leave_out: Container[str] = ()) -> str:
    """SHA-256 over a source file and, through its imports, every file of this project that it uses.

    Of the imported ones, only those under ``within`` (None: the project), and none whose name without suffix, or folder,
    is among ``leave_out``.
    """
    start, inside = path.resolve(), (within or _ROOT).resolve()
    seen: dict[Path, str] = {}
    waiting = [start]
    while waiting:
        current = waiting.pop()
        if current not in seen and (current == start or _counts(current, inside, leave_out)):
            text = current.read_text(encoding="utf-8")
            seen[current] = hashlib.sha256(text.encode()).hexdigest()
            waiting += _imported(text, current)
    return hashlib.sha256(" ".join(sorted(seen.values())).encode()).hexdigest()


def _counts(path: Path, within: Path, leave_out: Container[str]) -> bool:
    return path.is_relative_to(within) and not any(
        name in leave_out for name in (path.stem, *path.relative_to(within).parts)
    )


def _imported(text: str, path: Path) -> list[Path]:
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, path)
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return [found for name in names if name.split(".")[0] in _PACKAGES for found in _files_of(name)]


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    """The dotted module that an import statement in the file at ``path`` reads from, relative ones included."""
    if not node.level or not path.is_relative_to(_ROOT):
        return node.module or ""
    package = path.relative_to(_ROOT).parts[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def _files_of(name: str) -> list[Path]:
    stem = _ROOT.joinpath(*name.split("."))
    return [path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()]


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill ``model`` with the tensors of a safetensors file or a weights-only checkpoint, strictly.

    A plain state dict, or one under ``state_dict`` or ``model``, with or without a ``module.`` prefix. Raises
    RequestError that lists the missing, the unexpected and the wrongly shaped keys.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in _read_weights(path).items()}
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    misshapen = [
        f"{k}: wanted {list(own[k].shape)}, found {list(state[k].shape)}"
        for k in own
        if k in state and own[k].shape != state[k].shape
    ]
    if missing or unexpected or misshapen:
        raise RequestError(_misfit(path, missing, unexpected, misshapen))
    model.load_state_dict(own | state, strict=True)


def _misfit(path: Path, missing: list[str], unexpected: list[str], misshapen: list[str]) -> str:
    lines = [f"the weights in {path} do not fit the model:"]
    for title, keys in (("missing", missing), ("unexpected", unexpected), ("wrongly shaped", misshapen)):
        if keys:
            shown = "\n    ".join(keys[:8]) + (f"\n    … and {len(keys) - 8} more" if len(keys) > 8 else "")
            lines.append(f"  {title} ({len(keys)}):\n    {shown}")
    lines.append("  Choose the --model these weights were trained for, or other --weights.")
    return "\n".join(lines)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise RequestError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError, AssertionError) as error:
        raise RequestError(f"{path} is not a readable weights file: {error}") from error
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        raise RequestError(
            f"{path} holds more than plain tensors, and code in a checkpoint is never executed here. Save it again "
            "with torch.save(model.state_dict(), ...) or safetensors."
        ) from error
    return _state_dict(content, path)


def _state_dict(content: Any, path: Path) -> dict[str, torch.Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise RequestError(
            f"{path}: wanted a state dict (name -> tensor), plain or under 'state_dict' or 'model'; found "
            f"{type(content).__name__} with {', '.join(list(map(str, content))[:5]) if isinstance(content, dict) else '-'}"
        )
    return content

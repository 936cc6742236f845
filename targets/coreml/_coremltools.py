"""Importing and running coremltools without its version notices and progress bars."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

from edgewise.targets._quiet import LEAF_SPEC, quiet_loggers

# On import coremltools says that it was tested with older torch and scikit-learn versions and that its macOS bindings
# are absent elsewhere; torchao and torch's pytree, which it imports, add notices about optional kernels.
_LOGGERS = ("coremltools", "torchao", "torch.utils._pytree")
_MESSAGES = (
    LEAF_SPEC,
    "Function _TORCH_OPS_REGISTRY.__contains__ is deprecated",
    # An open end of a clamp is written as float32's largest value, whose float16 is infinity, as meant.
    "overflow encountered in cast",
)
_PROGRESS = (
    ("coremltools.converters.mil.frontend.torch.ops", "_tqdm"),
    ("coremltools.converters.mil.mil.passes.pass_pipeline", "tqdm"),
    ("coremltools.optimize.coreml._quantization_passes", "tqdm"),
)


def _without_bar(
    items: Iterable[Any], total: int | None = None, desc: str | None = None, unit: str | None = None
) -> Iterable[Any]:
    return items


def load_coremltools(module: str = "coremltools") -> ModuleType:
    """Import a module of coremltools (about ten seconds for the first), silently."""
    with quiet_loggers(*_LOGGERS):
        return importlib.import_module(module)


@contextmanager
def convert_silently() -> Iterator[ModuleType]:
    """``with converting() as coremltools:`` conversions inside draw no bars and repeat no version notices."""
    coremltools = load_coremltools()
    with quiet_loggers(*_LOGGERS, messages=_MESSAGES), ExitStack() as stack:
        for module, name in _PROGRESS:
            stack.enter_context(patch.object(importlib.import_module(module), name, _without_bar))
        yield coremltools

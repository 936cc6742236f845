"""How a float package keeps its weights as indices into a palette.

Activations stay float; the device widens the weights when it loads or computes, and moves fewer bytes.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from edgewise.targets import Packaging, TargetError
from edgewise.targets.coreml._coremltools import load_coremltools
from edgewise.targets.coreml._precisions import PALETTE_BITS

_SMALLEST = 256
"""Elements of the smallest weight that gets a palette, beside the palette's own."""


def compress_weights(model: Any, packaging: Packaging) -> Any:
    """``model`` (a converted ML Program) with its weights as a palette's indices where ``packaging.precision`` says so.

    Raises TargetError for a palette of a width that Core ML does not have.
    """
    if packaging.precision == "palette":
        optimize = load_coremltools("coremltools.optimize.coreml")
        settings = _palette(optimize, packaging.palette_bits)
        return optimize.palettize_weights(model, optimize.OptimizationConfig(global_config=settings))
    return model


def _palette(optimize: ModuleType, bits: int) -> Any:
    """One table a tensor, its entries fitted to the weights by k-means (at 8 bits spread evenly, which is as fine)."""
    if bits not in PALETTE_BITS:
        choices = ", ".join(map(str, PALETTE_BITS))
        raise TargetError(f"target 'coreml' has no palette of {bits} bits; choices: {choices}")
    return optimize.OpPalettizerConfig(
        mode="uniform" if bits == max(PALETTE_BITS) else "kmeans",
        nbits=bits,
        weight_threshold=_SMALLEST + 2**bits,
    )


def weights_of(model: Any) -> bytes:
    """The weights' file of a converted program; empty where every constant is in the specification."""
    path = Path(model.weights_dir, "weight.bin")
    return path.read_bytes() if path.is_file() else b""

"""How a float package keeps its weights: as int8 with a scale per channel, or as indices into a palette.

Activations stay float; the device widens the weights when it loads or computes, and moves fewer bytes.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from targets import Packaging, TargetError

from ._coremltools import load

PALETTE_BITS = (1, 2, 4, 6, 8)
"""What Core ML unpacks; 3 bits came with iOS 18 only."""

_WORTH_A_SCALE = 256
"""Elements of the smallest weight that is stored smaller; below it, scales take what the integers save."""


def stored(model: Any, packaging: Packaging) -> Any:
    """``model`` (a converted ML Program) with its weights kept as ``packaging.precision`` says.

    Raises TargetError for a palette of a width that Core ML does not have.
    """
    optimize = load("coremltools.optimize.coreml")
    if packaging.precision == "int8-weights":
        # Symmetric: Core ML's own note says that a zero point costs time and gains little for weights.
        settings = optimize.OpLinearQuantizerConfig(
            mode="linear_symmetric", granularity="per_channel", weight_threshold=_WORTH_A_SCALE
        )
        return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=settings))
    if packaging.precision == "palette":
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
        weight_threshold=_WORTH_A_SCALE + 2**bits,
    )


def weights_of(model: Any) -> bytes:
    """The weights' file of a converted program; empty where every constant is in the specification."""
    path = Path(model.weights_dir, "weight.bin")
    return path.read_bytes() if path.is_file() else b""

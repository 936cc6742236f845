"""What a package's weights can be written in."""

from __future__ import annotations

from edgewise.targets import Precision

PRECISIONS: tuple[Precision, ...] = ("float16", "float32", "int8-weights", "palette")

DEPLOYMENT_TARGETS = ("iOS16", "iOS17", "iOS18")
"""Versions of the system that can be asked for, the oldest first."""

PALETTE_BITS = (1, 2, 4, 6, 8)
"""What Core ML unpacks; 3 bits came with iOS 18 only."""

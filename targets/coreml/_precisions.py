"""What a package's weights can be written in."""

from __future__ import annotations

from edgewise.targets import Precision

PRECISIONS: tuple[Precision, ...] = ("float16", "float32", "int8-weights", "palette")

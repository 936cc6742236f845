"""The evaluation of a package without float16's rounding between operators.

PyTorch runs a graph in float32; a package declares float16. Where the two evaluations of one package differ, it is
the declared precision that speaks, not the file's instructions.
"""

from __future__ import annotations

from pathlib import Path

from edgewise.targets import Runner
from edgewise.targets.coreml._mil import Everything, Reference, read_program


def reference(path: Path) -> Runner:
    """As ``Target.reference``, nothing rounded but where the package itself quantizes."""
    return Reference(read_program(path), unrounded=Everything())

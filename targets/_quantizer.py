"""The project's int8 quantizer as a target declares it; torchao is imported when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgewise.targets import Grid
from edgewise.targets._quiet import quiet_loggers

if TYPE_CHECKING:
    from torchao.quantization.pt2e.quantizer import Quantizer


def int8_quantizer(grid: Grid, qat: bool = False) -> Quantizer:
    """The quantizer on ``grid``."""
    with quiet_loggers("torchao", "torch.utils._pytree"):
        from edgewise.targets._int8 import Int8Quantizer
    return Int8Quantizer(grid, qat=qat)

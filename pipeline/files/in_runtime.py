"""A network, or a single layer, as a float file of the declared runtime, for stages that time what they choose between."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import Tensor, nn

from edgewise import targets
from edgewise.errors import StageError
from edgewise.files import parts
from edgewise.library_noise import quiet_capture
from edgewise.network.regions import export_plain
from edgewise.stage import Context
from edgewise.targets import Runner


def write_and_load(model: nn.Module, image: Tensor, path: Path, ctx: Context) -> tuple[Runner, int]:
    """``model`` as a file of ``ctx.runtime`` captured on ``image`` [1, …], loaded on ``ctx.threads``; and its bytes.

    ``path``: the file's, without its suffix. Raises StageError where the runtime does not exist on this host.
    """
    target = targets.get(ctx.runtime)
    if target.load is None:
        raise StageError(
            f"{ctx.runtime} does not run on this host, so nothing can be timed on it; choose another runtime"
        )
    with quiet_capture():
        program = export_plain(copy.deepcopy(model).cpu().eval(), image)
    place = target.export(program, path.with_suffix(target.suffix), targets.USUAL).path
    return target.load(place, ctx.threads), parts.size(place)

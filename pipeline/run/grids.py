"""Which targets of a run share one quantization."""

from __future__ import annotations

from collections.abc import Sequence

from edgewise import targets
from edgewise.targets import Grid, Target


def share_grids(wanted: Sequence[Target]) -> list[tuple[Grid, tuple[Target, ...]]]:
    """Targets grouped so that each group shares one quantization: one for all where a common grid exists."""
    groups: list[tuple[Target, ...]] = []
    for target in wanted:
        for index, group in enumerate(groups):
            if targets.common_grid((*group, target)):
                groups[index] = (*group, target)
                break
        else:
            groups.append((target,))
    return [(grid, group) for group in groups if (grid := targets.common_grid(group))]

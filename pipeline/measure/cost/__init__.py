"""What a network costs, layer by layer: ``count`` for the sums, ``analyze`` for the table and the picture."""

from __future__ import annotations

from edgewise.measure.cost.layers import Analysis, Candidate, Layer, Saving, analyze, candidates
from edgewise.measure.cost.picture import write_picture
from edgewise.measure.cost.show import table, to_json
from edgewise.measure.cost.totals import Totals, count

__all__ = [
    "Analysis",
    "Candidate",
    "Layer",
    "Saving",
    "Totals",
    "analyze",
    "candidates",
    "count",
    "table",
    "to_json",
    "write_picture",
]

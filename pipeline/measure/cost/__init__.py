"""What a network costs, layer by layer: ``count_costs`` for the sums, ``analyze`` for the table and the picture."""

from __future__ import annotations

from edgewise.measure.cost.layers import Analysis, Candidate, Layer, Saving, analyze, separable_candidates
from edgewise.measure.cost.picture import write_picture
from edgewise.measure.cost.show import layer_table, to_json
from edgewise.measure.cost.totals import Totals, count_costs

__all__ = [
    "Analysis",
    "Candidate",
    "Layer",
    "Saving",
    "Totals",
    "analyze",
    "count_costs",
    "layer_table",
    "separable_candidates",
    "to_json",
    "write_picture",
]

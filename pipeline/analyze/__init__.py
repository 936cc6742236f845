"""What a network costs, layer by layer: ``count`` for the sums, ``analyze`` for the table and the picture."""

from __future__ import annotations

from pipeline.analyze.layers import Analysis, Candidate, Layer, Saving, analyze, candidates
from pipeline.analyze.picture import write_picture
from pipeline.analyze.show import table, to_json
from pipeline.analyze.totals import Totals, count

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

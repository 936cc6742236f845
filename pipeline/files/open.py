"""The best evaluator of a written file on this machine, and the grade of what it tells."""

from __future__ import annotations

from typing import Literal

Grade = Literal["runtime", "reference", "written"]
"""How a file was verified: in its runtime, by a reference evaluation of its instructions, or not at all."""

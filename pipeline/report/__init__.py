"""The report of a run: report.json after every row, a table for the terminal, and one self-contained page.

``Report`` is the document; ``environment`` says where it was measured, ``table`` shows it in a terminal and
``write_html`` writes the page. Nothing here imports torch, and Plotly, Jinja2 and Rich are imported on first use.
"""

from __future__ import annotations

from edgewise.report.document import Report, Section
from edgewise.report.page import write_html
from edgewise.report.terminal import table
from edgewise.store.machine import cpu_name, environment

__all__ = ["Report", "Section", "cpu_name", "environment", "table", "write_html"]

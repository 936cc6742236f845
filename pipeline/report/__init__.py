"""The report of a run: report.json after every row, a table for the terminal, and one self-contained page."""

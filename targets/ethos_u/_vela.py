"""Vela, Arm's compiler for Ethos-U: what it is asked for, and what it predicts of the program it compiled."""

from __future__ import annotations

import csv
from pathlib import Path

from edgewise.targets import Estimate, TargetError

ACCELERATOR = "ethos-u55-128"
"""128 multiply-accumulates a cycle, the middle of the U55's sizes and the one on Arm's reference boards."""
SUMMARY = "vela_summary.csv"
"""Vela's own table, kept in the written folder."""


def estimate(folder: Path) -> Estimate:
    """What Vela predicts for the written program. Raises TargetError where its table is missing or damaged."""
    path = folder / SUMMARY
    try:
        with path.open(encoding="utf-8", newline="") as file:
            row = list(csv.DictReader(file))[-1]
        return Estimate(
            cycles=int(float(row["cycles_total"])),
            macs=int(float(row["nn_macs"])),
            ms=1000 * float(row["inference_time"]),
            clock_hz=int(float(row["core_clock"])),
            sram_bytes=_parse_kibibytes(row["sram_memory_used"]),
            flash_bytes=_parse_kibibytes(row["on_chip_flash_memory_used"])
            + _parse_kibibytes(row["off_chip_flash_memory_used"]),
            source=f"Vela for {row['accelerator_configuration']}, {row['system_config']}, {row['memory_mode']}",
        )
    except (OSError, IndexError, KeyError, ValueError, TypeError) as error:
        raise TargetError(
            f"wanted Vela's summary at {path}, found {type(error).__name__}: {error}; write the file again"
        ) from error


def _parse_kibibytes(text: str) -> int:
    return round(1024 * float(text))

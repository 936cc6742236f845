"""Everything that devices have sent for a run, taken in again for its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgewise.device import accept, manifest, result
from edgewise.device.result import ResultError
from edgewise.errors import RequestError
from edgewise.report.devices import DeviceRow

FOLDER = "devices"


@dataclass(frozen=True, kw_only=True)
class Intake:
    """What was taken in, and what was not."""

    rows: tuple[DeviceRow, ...]
    refused: tuple[str, ...]
    """A sentence for each result that is not what it should be."""


def take_in(run: Path) -> Intake:
    """The results under ``run/devices/NAME/``; of several of one device and mode, each file's last written."""
    rows_by_key: dict[tuple[str, str, str], DeviceRow] = {}
    refusals = []
    for path in _by_age(run / FOLDER):
        try:
            for row in _accepted_rows(run, path):
                rows_by_key[row.device, row.file, row.mode] = row
        except (ResultError, RequestError) as error:
            refusals.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    return Intake(rows=tuple(sorted(rows_by_key.values(), key=_row_order)), refused=tuple(refusals))


def _by_age(folder: Path) -> Sequence[Path]:
    return sorted(folder.glob("*/*.json"), key=lambda path: (path.stat().st_mtime_ns, path))


def _row_order(row: DeviceRow) -> tuple[bool, str, str]:
    return row.kind != "real", row.device, row.target


def _accepted_rows(run: Path, path: Path) -> list[DeviceRow]:
    document = result.read(path)
    bundle = manifest.find_kept(run, document.bundle_sha256)
    if bundle is None:
        raise ResultError(
            f"{path} is of bundle {document.bundle_sha256[:16]}…, which was not written from {run}: measure a bundle of this run"
        )
    return accept.accept_result(document, bundle, document.bundle_sha256, path.parent.name)

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
    found: dict[tuple[str, str, str], DeviceRow] = {}
    refused = []
    for path in _by_age(run / FOLDER):
        try:
            for row in _rows(run, path):
                found[row.device, row.file, row.mode] = row
        except (ResultError, RequestError) as error:
            refused.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    return Intake(rows=tuple(sorted(found.values(), key=_order)), refused=tuple(refused))


def _by_age(folder: Path) -> Sequence[Path]:
    return sorted(folder.glob("*/*.json"), key=lambda path: (path.stat().st_mtime_ns, path))


def _order(row: DeviceRow) -> tuple[bool, str, str]:
    return row.kind != "real", row.device, row.target


def _rows(run: Path, path: Path) -> list[DeviceRow]:
    sent = result.read(path)
    bundle = manifest.kept(run, sent.bundle_sha256)
    if bundle is None:
        raise ResultError(
            f"{path} is of bundle {sent.bundle_sha256[:16]}…, which was not written from {run}: measure a bundle of this run"
        )
    return accept.accept(sent, bundle, sent.bundle_sha256, path.parent.name)

"""How far a compressed file may unfold, so that a few kilobytes cannot ask for gigabytes of memory."""

from __future__ import annotations

from edgewise.calib_data import DataError

_SMALL = 64 * 2**20
_MOST_RATIO = 100
"""Photographs and scans shrink 1 to 20 times; DEFLATE reaches 1,032 times, on bytes that are all the same."""


def check_inflation(unpacked: int, packed: int, source: str) -> None:
    """Raise DataError where ``packed`` bytes promise more than 64 MiB and more than 100 times as many bytes."""
    if unpacked > _SMALL and unpacked > _MOST_RATIO * packed:
        raise DataError(
            f"{source}: at most {_MOST_RATIO} bytes a compressed byte are wanted, found {packed} bytes that promise "
            f"{unpacked}; this is damaged or no set of images (if it is meant so, store it uncompressed)"
        )

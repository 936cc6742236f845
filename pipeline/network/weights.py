"""The weights of a network, read from a file of plain tensors and fitted strictly."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from edgewise.network import readings, weight_files


def load_weights(model: nn.Module, path: Path) -> str:
    """Fill ``model`` with the tensors of a safetensors file or a weights-only checkpoint, strictly; says how it was read.

    ``path`` may name a place in the file behind ``#``. Raises RequestError where not exactly one reading fits.
    """
    file, key = _split_key(path)
    reading = readings.find_reading(model, weight_files.read(file), file, key)
    model.load_state_dict(model.state_dict() | dict(reading.state), strict=True)
    beside = f"; {len(reading.beside)} tensors beside them are not the network's" if reading.beside else ""
    return f"weights read {reading}{beside}"


def _split_key(path: Path) -> tuple[Path, str]:
    """The file, and the key in it that ``path`` names behind ``#``."""
    name, mark, key = str(path).rpartition("#")
    return (Path(name), key) if mark and not path.exists() else (path, "")

"""What a file is fed, from a camera's bytes."""

from __future__ import annotations

from typing import Any

import numpy as np


def feed(images: np.ndarray[Any, Any], file: dict[str, Any]) -> np.ndarray[Any, Any]:
    """uint8 [B, C, H, W] -> bytes uint8 [B, H, W, C], or float32 [B, C, H, W], (bytes / 255 - mean) / std by channel."""
    if file["fed"] == "bytes":
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    mean, std = (np.array(file[key], np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    return np.ascontiguousarray((images.astype(np.float32) / np.float32(255) - mean) / std)

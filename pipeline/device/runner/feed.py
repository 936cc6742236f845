"""What a file is fed, from a camera's bytes."""

from __future__ import annotations

from typing import Any

import numpy as np


def feed(images: np.ndarray[Any, Any], file: dict[str, Any]) -> np.ndarray[Any, Any]:
    """uint8 [B, C, H, W] -> bytes uint8 [B, H, W, C], or (bytes / 255 - mean) / std by channel, float32 [B, C, H, W] or
    [B, H, W, C]."""
    ready = images
    if file["fed"] != "bytes":
        mean, std = (np.array(file[key], np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))
        ready = (images.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(ready if file["fed"] == "normalised" else ready.transpose(0, 2, 3, 1))

"""scikit-learn's 1,797 handwritten digits, 8×8 grey; the embedded default.

The writer-independent part of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998); a grey
level is the number of ink pixels, 0 … 16, in a 4×4 block of the scan. The images come without parts, so that the seed
makes them: 540 test, 180 calibration and 1,077 training images.
"""

from __future__ import annotations

import numpy as np

from edgewise.calib_data import Data, DataError
from edgewise.calib_data._parts import MemoryPart, in_memory
from edgewise.calib_data._split import CALIB, TEST, hold_out

_TEST, _CALIB = 540, 180
_LEVELS = 16


def read(path: str, seed: int) -> Data:
    """The digits, shape (1, 8, 8), grey levels 0 … 16 stretched to 0 … 255; ``path`` must be empty."""
    if path:
        raise DataError(
            f"digits takes no path, found {path!r}; write digits, or arrays:FILE.npz for a file of your own"
        )
    # sklearn takes a second to import, and no other reader needs it.
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = np.rint(raw.images * (255 / _LEVELS)).astype(np.uint8)[:, None]
    labels = raw.target.astype(np.int64)
    test, rest = hold_out(labels, _TEST, seed, TEST, "digits")
    aside, remaining = hold_out(labels[rest], _CALIB, seed, CALIB, "digits")
    train, calib, test_part = (MemoryPart.of(images[i], labels[i]) for i in (rest[remaining], rest[aside], test))
    return in_memory("digits", train, calib, test_part, tuple(str(name) for name in raw.target_names))

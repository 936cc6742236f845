"""The TOSA reference model on a written program: the integers that the NPU is defined to compute.

What is evaluated is the TOSA program that Vela was given; the command stream that Vela made of it runs on the NPU only.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgewise.targets import TargetError
from edgewise.targets._executorch_runtime import read_constants
from edgewise.targets.ethos_u._lowering import PROGRAM, TOSA
from edgewise.targets.ethos_u._tosa import evaluate, open_program

_GRIDS = ("input0_scale", "input0_zp", "output0_scale", "output0_zp")
_SHARE = 32
"""Images that a process evaluates at a time."""


class Reference:
    """Rounds images to the program's int8 input, evaluates it one image at a time, and scales its int8 answer."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / TOSA
        try:
            self._tosa = self._path.read_bytes()
        except OSError as error:
            raise TargetError(
                f"wanted a TOSA program at {self._path}, found: {error.strerror}. It is written where the NPU has the "
                "whole network in one piece"
            ) from error
        constants_by_name = read_constants(folder / PROGRAM, _GRIDS)
        self._input, self._output = (
            (constants_by_name[0], int(constants_by_name[1])),
            (constants_by_name[2], int(constants_by_name[3])),
        )

    def __call__(self, images: Tensor) -> Tensor:
        """As ``targets.Runner``; the images are shared among processes, since the model is slow and uses one core."""
        scale, zero_point = self._input
        # As PyTorch's quantize_per_tensor: times the inverse, rounded half to even.
        integers = (torch.round(images.float() * (1.0 / scale)) + zero_point).clamp(-128, 127).to(torch.int8).numpy()
        shares = [integers[start : start + _SHARE] for start in range(0, len(integers), _SHARE)]
        context = multiprocessing.get_context("spawn")
        workers = min(len(shares), os.cpu_count() or 1)
        try:
            with ProcessPoolExecutor(workers, context, open_program, (self._tosa,)) as pool:
                answers = np.concatenate(list(pool.map(evaluate, shares)))
        except (BrokenProcessPool, ValueError) as error:
            raise TargetError(f"the TOSA reference model cannot evaluate {self._path}: {error}") from error
        scale, zero_point = self._output
        return (torch.from_numpy(answers.astype(np.float32)) - zero_point) * scale

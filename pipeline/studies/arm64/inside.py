"""Runs inside the Arm system, on numpy and onnxruntime alone: ``python3 inside.py FILE IMAGES ANSWERS``.

IMAGES is an .npz with ``images`` [n, ...] as the file takes them; ANSWERS receives an .npz with ``logits`` float32
[n, classes] and ``ms`` float64 [n], the time of each image, and ``machine``. Prints the number of images done, a line
each ``STEP``.
"""

import platform
import sys
import time

import numpy as np

STEP = 20


def main(file: str, images_file: str, answers_file: str) -> None:
    """Evaluate ``file`` on every image, one at a time, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    images = np.load(images_file)["images"]
    logits, times = [], []
    for index in range(len(images)):
        start = time.perf_counter()
        logits.append(session.run(None, {name: images[index : index + 1]})[0])
        times.append(1000 * (time.perf_counter() - start))
        if (index + 1) % STEP == 0 or index + 1 == len(images):
            print(index + 1, flush=True)
    np.savez(answers_file, logits=np.concatenate(logits), ms=np.array(times), machine=np.array(platform.machine()))


if __name__ == "__main__":
    main(*sys.argv[1:])

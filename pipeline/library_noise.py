"""Keeps foreign libraries' harmless chatter out of our output: each source by name, each with the reason."""

from __future__ import annotations

import logging
import sys
import warnings


def quieten_libraries() -> None:
    """Call once, before the libraries are imported."""
    for name in (
        "torchao",  # CUDA kernels that a CPU build does not have
        "torch.utils._pytree",  # a library registering an enum that torch has learnt to handle since
        "torch.export",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Conditions on open image sides beyond its solver: each size is tried. A filter, since torch sets this level itself.
    logging.getLogger("torch.fx.experimental.symbolic_shapes").addFilter(_is_error)
    # Lightning asks for more data-loading workers; it is given no loader of its own to run.
    warnings.filterwarnings("ignore", module="lightning_fabric.*")
    # What workers held that were killed with their run is put away by multiprocessing, in a process that takes these options.
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")
    # torch's own record of a captured graph's inputs, told so whenever such a graph is copied.
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


class quiet_capture(warnings.catch_warnings):  # noqa: N801 - used as a function
    """Hides notes of the capturing libraries about their own future versions."""

    def __enter__(self) -> None:
        super().__enter__()
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", message=".*erase_node.*")

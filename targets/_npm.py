"""Runtimes that are npm packages, run by node."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

MODULES = "EDGEWISE_NODE_MODULES"
"""Variable that names the folder ``node_modules``, where it is not that of the working folder."""


def package_folder(name: str) -> Path:
    """Where a package's files are looked for."""
    return Path(os.environ.get(MODULES, "node_modules")).absolute() / name


def what_is_missing(names: Iterable[str]) -> str | None:
    """What this machine lacks of node and the packages, and how to get it; None: nothing."""
    absent = [name for name in names if package_version(name) is None]
    if absent:
        places = ", ".join(str(package_folder(name)) for name in absent)
        return (
            f"needs {', '.join(absent)}, found none at {places}. Install it with: npm install {' '.join(absent)}, and name its "
            f"node_modules in {MODULES} where that is not in this folder"
        )
    if shutil.which("node") is None:
        return "needs node, which is not installed. Install it with: sudo apt-get install nodejs"
    return None


def package_version(name: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return str(json.loads((package_folder(name) / "package.json").read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError):
        return None

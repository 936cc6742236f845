"""Results that differ in their circumstances alone: the same step on the same network, with other threads or versions.

A key tells that two results differ and not in what, so that beside the results the circumstances of the last one are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewise.store.whole import write_whole

CIRCUMSTANCES = ("threads", "machine", "versions", "device", "runtime", "code")
"""Parts of a key that are not asked for, but found."""


def name_of(key: str) -> str:
    """What a result is, in words: its kind, and its stage or target."""
    parts: Mapping[str, Any] = getattr(key, "parts", {})
    stage = parts.get("stage")
    more = stage.get("stage") if isinstance(stage, Mapping) else parts.get("target")
    return " ".join(str(part) for part in (parts.get("kind"), more) if part)


def remember(root: Path, key: str) -> None:
    """Keep the circumstances of a result."""
    if parts := getattr(key, "parts", None):
        circumstances = {name: parts[name] for name in CIRCUMSTANCES if name in parts}
        write_whole(_kin_path(root, parts), json.dumps(circumstances))


def difference(root: Path, key: str) -> str:
    """In what the last such result differs from what is wanted now, as ``threads 1, was 2``; empty where there is none."""
    parts: Mapping[str, Any] = getattr(key, "parts", {})
    with contextlib.suppress(OSError, ValueError, AttributeError):
        before = json.loads(_kin_path(root, parts).read_text(encoding="utf-8"))
        now = json.loads(json.dumps({name: parts[name] for name in CIRCUMSTANCES if name in parts}))
        return "; ".join(
            _difference_text(name, now[name], before.get(name)) for name in now if now[name] != before.get(name)
        )
    return ""


def _kin_path(root: Path, parts: Mapping[str, Any]) -> Path:
    inputs = {name: value for name, value in parts.items() if name not in CIRCUMSTANCES}
    return root / "kin" / hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _difference_text(name: str, now: Any, before: Any) -> str:
    if name == "code":
        return "the code that it depends on has changed"
    if isinstance(now, dict) and isinstance(before, dict):
        return ", ".join(f"{key} {now[key]}, was {before.get(key)}" for key in now if now[key] != before.get(key))
    return f"{name} {_plain_text(now)}, was {_plain_text(before)}"


def _plain_text(value: Any) -> str:
    return " ".join(str(part) for part in value if part is not None) if isinstance(value, list) else str(value)

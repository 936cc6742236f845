"""What the site adds to its pages: reference written from the source, and links that end at the project's folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edgewise.catalogue import describe_public, list_entries

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page's text with ``<!-- stages -->`` and the like filled in; files outside of ``docs`` are named, not linked."""
    for name, make in _PARTS.items():
        markdown = markdown.replace(f"<!-- {name} -->", make() if f"<!-- {name} -->" in markdown else "")
    return _OUTSIDE.sub(r"\1", markdown)


def _entries(kind: str) -> str:
    return "\n\n".join(
        f"## {entry['name']}\n\n{entry['summary']}\n\n{_fields(entry)}".rstrip() for entry in list_entries(kind)
    )


def _fields(entry: Mapping[str, Any]) -> str:
    rows = [
        f"| `{field['name']}` | `{_cell(field['type'])}` | {_default(field)} | {_cell(field['meaning'])} |"
        for field in entry.get("fields", ())
    ]
    return "\n".join(["| field | type | default | meaning |", "|---|---|---|---|", *rows]) if rows else ""


def _default(field: Mapping[str, Any]) -> str:
    return "must be given" if field["default"] is None else f"`{_cell(field['default'])}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _names(kind: str) -> str:
    rows = [f"| `{entry['name']}` | {_cell(entry['summary'])} |" for entry in list_entries(kind)]
    return "\n".join(["| name | what it is |", "|---|---|", *rows])


def _public() -> str:
    return "\n\n".join(f"## {name}\n\n`{signature}`\n\n{text}" for name, signature, text in describe_public())


_PARTS = {
    "stages": lambda: _entries("stages"),
    "fields": lambda: _entries("fields"),
    "targets": lambda: _names("targets"),
    "recipes": lambda: _names("recipes"),
    "public": _public,
}

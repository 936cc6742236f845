"""Files of a user's own, as far as their text tells: nothing of them is imported, and no torch."""

from __future__ import annotations

import ast
from pathlib import Path


def name_functions(path: str) -> str:
    """What to say of a file that is named without a function: the functions it defines, read from its text."""
    place = Path(path)
    if not place.is_file():
        return f"there is no file {path}"
    try:
        body = ast.parse(place.read_text(encoding="utf-8")).body
    except (SyntaxError, UnicodeDecodeError) as error:
        return f"{path} could not be read: {error}"
    names = [node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"]
    if not names:
        return f"{path} defines no function; wanted one that returns what is asked for, named as {path}:function"
    return f"{path}: which function? Say {' or '.join(f'{path}:{name}' for name in names)}"

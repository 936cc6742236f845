"""What there is to choose from, read from the files' text: no torch, no backend is imported."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise import calib_data, models, targets
from edgewise.errors import RequestError, name_nearest

if TYPE_CHECKING:
    from edgewise.recipe import Recipe

_FOLDER = Path(__file__).parent
_RECIPES = _FOLDER / "recipes.py"


def listing(kind: str) -> list[dict[str, Any]]:
    """Entries of one kind (models, data, targets, stages, recipes), each with name and summary.

    A model that cannot go through every stage and to every target says so under ``cannot``.
    """
    found = {
        "models": models.names, "data": calib_data.names, "targets": targets.names, "stages": stage_names,
        "recipes": recipe_names,
    }[kind]()  # fmt: skip
    limits = models.limits() if kind == "models" else {}
    return [{"name": name, "summary": summary} | _limits(limits.get(name)) for name, summary in found.items()]


def _limits(cannot: Mapping[str, str] | None) -> dict[str, Any]:
    return {"cannot": dict(cannot)} if cannot else {}


def stage_names() -> dict[str, str]:
    """Every dataclass under ``stages`` that is called with (model, ctx): lower-case name -> first line of its docstring."""
    found: dict[str, str] = {}
    for path in sorted((_FOLDER / "stages").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and _is_stage(node):
                found[node.name.lower()] = (ast.get_docstring(node) or "").split("\n")[0]
    return found


def _is_stage(node: ast.ClassDef) -> bool:
    calls = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__call__"]
    return bool(node.decorator_list) and any(
        [a.arg for a in call.args.args] == ["self", "model", "ctx"] for call in calls
    )


def recipe_names() -> dict[str, str]:
    """Ready recipes: name -> first line of the function's docstring; read from the text, nothing is imported."""
    tree = ast.parse(_RECIPES.read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return {node.name: (ast.get_docstring(node) or "").split("\n")[0] for node in functions}


def find_recipe(reference: str) -> Recipe:
    """A ready recipe by name, or the user's ``path/to/recipe.py:function``. Raises RequestError."""
    from edgewise.network import architecture
    from edgewise.recipe import Recipe

    if ".py:" in reference:
        function = architecture.load_function(reference)
    elif reference in recipe_names():
        from edgewise import recipes

        function = getattr(recipes, reference)
    else:
        near, choices = name_nearest(reference, recipe_names()), ", ".join(recipe_names())
        raise RequestError(f"unknown recipe {reference!r}.{near} Choices: {choices}; or path/to/recipe.py:function")
    recipe = function()
    if not isinstance(recipe, Recipe):
        raise RequestError(f"{reference} returned {type(recipe).__name__}; wanted an edgewise.Recipe")
    return recipe

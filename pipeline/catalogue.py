"""What there is to choose from, read from the files' text: no torch, no backend is imported."""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise import calib_data, models, targets
from edgewise.errors import EdgewiseError, RequestError, last_line, name_nearest
from edgewise.network.user_files import name_functions
from edgewise.public_names import HOMES

if TYPE_CHECKING:
    from edgewise.recipe import Recipe

_FOLDER = Path(__file__).parent
_RECIPES = _FOLDER / "recipes.py"
_SPACES = _FOLDER / "search" / "spaces.py"


def list_entries(kind: str) -> list[dict[str, Any]]:
    """Entries of one kind (models, data, targets, stages, recipes, spaces, fields), each with name and summary.

    A model that cannot go through every stage and to every target says so under ``cannot``; a stage tells its ``fields``,
    a recipe what it sets (``sets``) and which recipe it derives from (``from``). ``fields`` are those of a recipe itself,
    of its limits and of a training.
    """
    if kind in ("stages", "fields"):
        return [
            {"name": name, "summary": description, "fields": fields_of(node)}
            for name, node, description in (_stages() if kind == "stages" else _settings())
        ]
    registries = {
        "models": models.names,
        "data": calib_data.names,
        "targets": targets.names,
        "recipes": recipe_names,
        "spaces": space_names,
    }[kind]()
    extra: Mapping[str, Mapping[str, Any]] = {}
    if kind == "models":
        extra = {name: {"cannot": dict(cannot)} for name, cannot in models.limits().items() if cannot}
    if kind == "recipes":
        extra = {name: _recipe_told(node) for name, node in _recipe_functions().items()}
    return [{"name": name, "summary": summary} | dict(extra.get(name, {})) for name, summary in registries.items()]


def find_entry(kind: str, name: str) -> dict[str, Any]:
    """One entry of a kind, upper and lower case alike. Raises RequestError with the nearest spelling."""
    entries = {entry["name"].lower(): entry for entry in list_entries(kind)}
    if name.lower() not in entries:
        near = name_nearest(name.lower(), entries)
        raise RequestError(f"{kind} has no {name!r}.{near} Choices: {', '.join(entries)}")
    return entries[name.lower()]


def home_of(name: str) -> tuple[str, str]:
    """The module and the class of a stage, or of a class beside them."""
    for path in sorted(_FOLDER.rglob("*.py")):
        for node in _classes(path):
            if node.name.lower() == name.lower() and (_is_stage(node) or node.name in _SETTINGS):
                parts = path.relative_to(_FOLDER).with_suffix("").parts
                return ".".join(
                    [__name__.rpartition(".")[0], *(part for part in parts if part != "__init__")]
                ), node.name
    raise KeyError(name)


def stage_names() -> dict[str, str]:
    """Every dataclass under ``stages`` that is called with (model, ctx): lower-case name -> first line of its docstring."""
    return {name: description for name, _, description in _stages()}


def _stages() -> list[tuple[str, ast.ClassDef, str]]:
    files = sorted((_FOLDER / "stages").rglob("*.py"))
    nodes = [node for path in files for node in _classes(path) if _is_stage(node)]
    return [(node.name.lower(), node, _first_line(node)) for node in nodes]


def _settings() -> list[tuple[str, ast.ClassDef, str]]:
    """The classes beside the stages that a recipe is written with."""
    nodes = {name: _find_definition(HOMES[name], name) for name in _SETTINGS}
    return [(name, node, _first_line(node)) for name, node in nodes.items() if isinstance(node, ast.ClassDef)]


_SETTINGS = ("Recipe", "Limits", "Training", "Augment", "Preprocess")


def _classes(path: Path) -> list[ast.ClassDef]:
    return [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]


def _first_line(node: ast.ClassDef | ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").split("\n")[0]


def fields_of(node: ast.ClassDef) -> list[dict[str, Any]]:
    """A dataclass's fields as its source tells them: name, type, default (None: it must be given) and meaning."""
    settings = []
    for item, following in zip(node.body, [*node.body[1:], None], strict=True):
        if (
            not isinstance(item, ast.AnnAssign)
            or not isinstance(item.target, ast.Name)
            or item.target.id.startswith("_")
            or ast.unparse(item.annotation).startswith("InitVar")  # taken by __init__ and no field
        ):
            continue
        settings.append(
            {
                "name": item.target.id,
                "type": ast.unparse(_Plain().visit(copy.deepcopy(item.annotation))),
                "default": _default_text(item.value),
                "meaning": _string_of(following),
            }
        )
    return settings


class _Plain(ast.NodeTransformer):
    """``int`` for ``Annotated[int, Interval(ge=1)]``: the range is said where a value leaves it."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        """A type with arguments."""
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.value.id == "Annotated" and isinstance(node.slice, ast.Tuple):
            return node.slice.elts[0]
        return node


def _default_text(value: ast.expr | None) -> str | None:
    """A default as it is written; of ``field(default_factory=Limits)`` what makes it, ``Limits()``."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "field":
        defaults = {word.arg: word.value for word in value.keywords}
        factory = defaults.get("default_factory")
        if isinstance(factory, ast.Lambda):
            return ast.unparse(factory.body)
        return f"{ast.unparse(factory)}()" if factory is not None else _default_text(defaults.get("default"))
    return None if value is None else ast.unparse(value)


def _string_of(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""


def _recipe_functions() -> dict[str, ast.FunctionDef]:
    tree = ast.parse(_RECIPES.read_text(encoding="utf-8"))
    return {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")}


def _recipe_told(node: ast.FunctionDef) -> dict[str, Any]:
    """What a recipe's function sets, as it is written, and the recipe that it replaces fields of."""
    return_statement = next(item.value for item in node.body if isinstance(item, ast.Return))
    assert isinstance(return_statement, ast.Call)
    names = {item.targets[0].id: item.value for item in node.body if _is_name(item)}  # type: ignore[attr-defined]
    description: dict[str, Any] = {
        "sets": {word.arg: ast.unparse(word.value) for word in return_statement.keywords if word.arg}
    }
    if return_statement.args:
        source = return_statement.args[0]
        source = names.get(source.id, source) if isinstance(source, ast.Name) else source
        description["from"] = ast.unparse(source).removesuffix("()")
    return description


def _is_name(item: ast.stmt) -> bool:
    return isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name)


def _is_stage(node: ast.ClassDef) -> bool:
    calls = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__call__"]
    return bool(node.decorator_list) and any(
        [a.arg for a in call.args.args] == ["self", "model", "ctx"] for call in calls
    )


def recipe_names() -> dict[str, str]:
    """Ready recipes: name -> first line of the function's docstring; read from the text, nothing is imported."""
    return {name: _first_line(node) for name, node in _recipe_functions().items()}


def space_names() -> dict[str, str]:
    """Ready search spaces: name -> first line of the function's docstring; read from the text, nothing is imported."""
    nodes = [node for node in ast.parse(_SPACES.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    return {
        node.name: _first_line(node) for node in nodes if [argument.arg for argument in node.args.args] == ["trial"]
    }


def check_recipe_name(reference: str) -> None:
    """Raise RequestError for a name that no recipe has, and for a file without a function; its text alone is looked at."""
    if reference.endswith(".py"):
        raise RequestError(name_functions(reference))
    if ".py:" not in reference and reference not in recipe_names():
        near, choices = name_nearest(reference, recipe_names()), ", ".join(recipe_names())
        raise RequestError(f"unknown recipe {reference!r}.{near} Choices: {choices}; or path/to/recipe.py:function")
    if ".py:" in reference and not Path(reference.rpartition(":")[0]).is_file():
        raise RequestError(f"{reference!r}: there is no file {reference.rpartition(':')[0]}")


def check_space_name(reference: str) -> None:
    """Raise RequestError for a name that no space has; its text alone is looked at, and no torch is loaded."""
    if reference.endswith(".py"):
        raise RequestError(name_functions(reference))
    if ".py:" in reference:
        if not Path(reference.rpartition(":")[0]).is_file():
            raise RequestError(f"{reference!r}: there is no file {reference.rpartition(':')[0]}")
    elif reference not in space_names():
        near, choices = name_nearest(reference, space_names()), ", ".join(space_names())
        raise RequestError(f"unknown space {reference!r}.{near} Choices: {choices}; or path/to/space.py:function")


def check_words(model: str | None, weights: str | None, data: str | None, wanted: Sequence[str]) -> None:
    """Raise for a model, weights, data set or target that nothing is called, by their names and the disk alone: whoever
    mistypes need not wait for PyTorch. None: the recipe's own."""
    if model is not None:
        check_model_name(model)
    if data is not None:
        calib_data.check_name(data)
    for name in wanted:
        targets.check_name(name)
    if weights is not None and weights != "pretrained":
        file = Path(weights)
        if not file.exists() and not Path(weights.rpartition("#")[0] or weights).exists():
            raise RequestError(f"there is no weights file {weights}")


def check_model_name(model: str) -> None:
    """Raise for a model that is neither registered, nor a file's function, nor another package's."""
    if model.endswith(".py"):
        raise RequestError(name_functions(model))
    path = model.rpartition(":")[0]
    if ".py:" in model and not Path(path).is_file():
        raise RequestError(f"{model!r}: there is no file {path}")
    if ":" not in model:
        models.check_name(model)


def find_recipe(reference: str) -> Recipe:
    """A ready recipe by name, or the user's ``path/to/recipe.py:function``. Raises RequestError.

    A wrong name is refused before anything heavy is imported.
    """
    check_recipe_name(reference)
    from edgewise import recipes
    from edgewise.network import architecture
    from edgewise.recipe import Recipe

    own = ".py:" in reference
    recipe = _call_recipe(architecture.load_function(reference) if own else getattr(recipes, reference), reference)
    if not isinstance(recipe, Recipe):
        raise RequestError(f"{reference} returned {type(recipe).__name__}; wanted an edgewise.Recipe")
    return recipe


def describe_public() -> list[tuple[str, str, str]]:
    """Every public name of the package: itself, how it is called, and its docstring; read from the text."""
    entries = []
    for name, home in HOMES.items():
        node = _find_definition(home, name)
        if isinstance(node, ast.ClassDef):
            arguments = ", ".join(
                f"{f['name']}{'' if f['default'] is None else '=' + f['default']}" for f in fields_of(node)
            )
        else:
            arguments = ast.unparse(node.args)
        entries.append((name, f"{name}({arguments})", inspect.cleandoc(ast.get_docstring(node) or "")))
    return entries


def _find_definition(home: str, name: str) -> ast.ClassDef | ast.FunctionDef:
    """The class or function ``name`` in the module ``home`` of this package, or of a leaf beside it."""
    for top in (_FOLDER, _FOLDER.parent):
        stem = top.joinpath(*home.split("."))
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else ():
                if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
                    return node
    raise KeyError(f"{home}.{name}")


def _call_recipe(function: Callable[[], object], reference: str) -> object:
    """What a recipe's function returns. Raises RequestError for whatever goes wrong in it, with the line."""
    try:
        return function()
    except EdgewiseError as error:
        raise RequestError(f"{reference}: {error}") from error
    except Exception as error:
        raise RequestError(
            f"{reference} could not be made: {type(error).__name__}: {error} ({last_line(error)})"
        ) from error

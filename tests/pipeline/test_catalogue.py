"""What there is to choose from, with fields, defaults and meaning, read from text alone."""

from __future__ import annotations

import ast
import dataclasses
import importlib
from typing import Any

import pytest

from edgewise import catalogue, public_names
from edgewise.catalogue import describe_public, fields_of, find_entry, list_entries
from edgewise.commands.list import describe_entry
from edgewise.errors import RequestError

SOURCE = '''
@dataclass
class Cut:
    """Cuts."""

    share: float | None = None
    """What is kept,
    as a share."""
    training: Training = field(default_factory=lambda: Training(epochs=4))
    limits: Limits = field(default_factory=Limits)
    name: str
    _inner: int = 3
    old: InitVar[float | None] = None
    count: int = field(default=7, compare=False)
'''


def test_a_field_is_told_by_name_type_default_and_meaning() -> None:
    (node,) = (item for item in ast.parse(SOURCE).body if isinstance(item, ast.ClassDef))
    assert [tuple(entry.values()) for entry in fields_of(node)] == [
        ("share", "float | None", "None", "What is kept, as a share."),
        ("training", "Training", "Training(epochs=4)", ""),
        ("limits", "Limits", "Limits()", ""),
        ("name", "str", None, ""),
        ("count", "int", "7", ""),
    ]


@pytest.mark.parametrize("kind", ["stages", "fields"])
def test_what_is_read_from_the_text_is_what_python_has(kind: str) -> None:
    """Every field of the class, in its order, a missing default where it has to be given."""
    for entry in list_entries(kind):
        module, name = catalogue.home_of(entry["name"])
        made: Any = getattr(importlib.import_module(module), name)
        wanted = {
            item.name: item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
            for item in dataclasses.fields(made)
            if not item.name.startswith("_")
        }
        assert {f["name"]: f["default"] is None for f in entry["fields"]} == wanted, name


def test_a_recipe_tells_what_it_sets_and_what_it_derives_from() -> None:
    found = {entry["name"]: entry for entry in list_entries("recipes")}
    assert found["demo"]["sets"]["model"] == "'tiny_resnet'" and "from" not in found["demo"]
    assert found["cifar_resnet56"]["from"] == "cifar_resnet20" and "Prune(" in found["cifar_resnet56"]["sets"]["stages"]
    assert found["separate_resnet56"]["from"] == "separate_resnet20", "through a name, too"


def test_one_entry_is_found_by_its_name_or_refused_with_the_nearest() -> None:
    assert find_entry("stages", "prune")["name"] == find_entry("stages", "Prune")["name"] == "prune"
    assert find_entry("fields", "limits")["name"] == "Limits"
    with pytest.raises(RequestError, match=r"stages has no 'prun'\. Did you mean 'prune'"):
        find_entry("stages", "prun")


def test_an_entry_in_words_tells_fields_and_what_a_recipe_sets() -> None:
    told = describe_entry(find_entry("stages", "fold"))
    assert told.startswith("fold: Removes every batch norm") and "  rest: Rest = 'depthwise'" in told
    assert "  name: str must be given" in describe_entry(find_entry("fields", "recipe"))
    derived = describe_entry(find_entry("recipes", "cifar_resnet56"))
    assert "  as cifar_resnet20, but:" in derived and "  model = 'resnet56'" in derived
    assert all(len(line) <= 120 for line in told.splitlines())


def test_every_public_name_is_described_from_its_text() -> None:
    found = {name: (signature, text) for name, signature, text in describe_public()}
    assert list(found) == list(public_names.HOMES)
    assert found["Fold"][0] == "Fold(rest='depthwise')" and all(text for _, text in found.values())
    assert found["deploy"][0].startswith("deploy(recipe: Recipe, out: Path | None=None, *, quiet: bool=False")

"""The apps for phones: they are not built here, but write the document that is taken in, field for field."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from edgewise.device import result
from edgewise.device.manifest import BundledFile, Golden, Slice
from edgewise.device.runner.main import MODES

PHONE = Path(__file__).parents[3] / "docs" / "phone"
WRITTEN = {
    "android": (r'\.put\("(\w+)"', "android/app/src/main/java/edgewise/measure/Measure.kt"),
    "ios": (r'"(\w+)"(?::|\] = )', "ios/Sources/Measure/Measure.swift"),
}
"""How a key is written in the language, and where."""


def fields(kind: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("phone", WRITTEN)
def test_an_app_writes_every_field_of_a_result_and_no_other(phone: str) -> None:
    pattern, place = WRITTEN[phone]
    text = (PHONE / place).read_text(encoding="utf-8")
    kinds = (
        result.Result, result.Mode, result.Device, result.Core, result.Block, result.Group, result.Times, result.LoadTimes,
        result.Runtime, result.Claim, result.Measured,
    )  # fmt: skip
    assert set(re.findall(pattern, text)) == set().union(*map(fields, kinds))


NESTED: dict[type[Any], tuple[type[Any], ...]] = {result.Group: (result.Times,)}
"""Objects whose keys may be written between those of another, within which they lie."""


@pytest.mark.parametrize("phone", WRITTEN)
@pytest.mark.parametrize(
    "kind",
    [
        result.Result, result.Mode, result.Device, result.Block, result.Group, result.Times, result.LoadTimes,
        result.Runtime, result.Claim, result.Core,
    ],
)  # fmt: skip
def test_an_app_writes_an_objects_fields_together(phone: str, kind: type[Any]) -> None:
    """Somewhere in the program the keys of the object stand in a row, all of them and no other's."""
    pattern, place = WRITTEN[phone]
    keys = re.findall(pattern, (PHONE / place).read_text(encoding="utf-8"))
    wanted, allowed = fields(kind), set().union(fields(kind), *map(fields, NESTED.get(kind, ())))
    rows = (keys[start : start + length] for length in range(len(wanted), 40) for start in range(len(keys)))
    assert any(wanted <= set(row) <= allowed for row in rows)


@pytest.mark.parametrize("phone", WRITTEN)
def test_an_apps_modes_are_the_runners(phone: str) -> None:
    text = (PHONE / WRITTEN[phone][1]).read_text(encoding="utf-8")
    for name, mode in MODES.items():
        numbers = mode["calls"], int(mode["seconds"]), mode["blocks"]
        if phone == "android":
            assert f"{name}({numbers[0]}, {float(numbers[1])}, {numbers[2]})" in text
        else:
            calls, seconds = (
                re.search(r"quick \? (\d+) : (\d+)", text),
                re.search(r"quick \? (\d+) : (\d+) }\n.*blocks", text),
            )
            assert calls and seconds
            assert (int(calls[1 + (name == "normal")]), int(seconds[1 + (name == "normal")])) == numbers[:2]
            assert f"var blocks: Int {{ {numbers[2]} }}" in text


def test_what_the_app_for_ios_reads_of_a_file_is_in_the_bundle() -> None:
    text = (PHONE / "ios/Sources/Measure/Bundle.swift").read_text(encoding="utf-8")
    for name, kind in (("File", BundledFile), ("Golden", Golden), ("Slice", Slice)):
        body = re.search(rf"struct {name}: Decodable {{(.*?)\n    }}", text, re.DOTALL)
        assert body and set(re.findall(r"let (\w+):", body[1])) <= fields(kind)


def test_what_the_app_for_android_reads_of_a_file_is_in_the_bundle() -> None:
    folder = PHONE / "android/app/src/main/java/edgewise/measure"
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.kt")))
    read = set(re.findall(r'file\.(?:get\w+|isNull)\("(\w+)"\)', text))
    assert {"fed", "mean", "std", "sha256"} <= read <= fields(BundledFile)
    assert set(re.findall(r'slice\.get\w+\("(\w+)"\)', text)) <= fields(Slice)

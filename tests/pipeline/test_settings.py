"""Settings that check themselves: types, ranges, choices and names of fields, all told at once."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from annotated_types import Interval

from edgewise.errors import RequestError
from edgewise.settings import check_fields

if TYPE_CHECKING:
    from fractions import Fraction


@check_fields
@dataclass(frozen=True, kw_only=True)
class Inner:
    count: Annotated[int, Interval(ge=1, le=9)] = 3


@check_fields
@dataclass(frozen=True, kw_only=True)
class Settings:
    lr: Annotated[float, Interval(gt=0, le=100)]
    count: Annotated[int, Interval(ge=1, le=9)] | None = None
    kind: Literal["sgd", "adamw"] = "sgd"
    shares: tuple[Annotated[float, Interval(gt=0, lt=1)], ...] = ()
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    on: bool = True
    exact: Fraction | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.count > self.lr:
            raise RequestError("count exceeds lr")


def test_what_fits_is_taken_and_a_whole_number_is_a_number() -> None:
    found = Settings(lr=7, count=5, shares=(0.5,), maybe=Inner(count=2), names={"a": "b"})
    assert (found.lr, type(found.lr), found.count, found.maybe) == (7.0, float, 5, Inner(count=2))
    assert dataclasses.replace(found, lr=9).inner == Inner()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": "x"}, "Settings.lr: wanted a valid number, found str 'x'"),
        ({"lr": True}, "Settings.lr: wanted a valid number, found bool True"),
        ({"lr": 0}, "Settings.lr must lie in 0 … 100, 0 excluded, found 0"),
        ({"lr": math.nan}, "Settings.lr must lie in 0 … 100, 0 excluded, found nan"),
        ({"lr": math.inf}, "Settings.lr must lie in 0 … 100, 0 excluded, found inf"),
        ({"lr": 10**400}, f"Settings.lr: wanted a valid number, found int {'1'.ljust(60, '0')}"),
        ({"lr": 1, "count": 1.0}, "Settings.count: wanted a valid whole number, found float 1.0"),
        ({"lr": 1, "count": True}, "Settings.count: wanted a valid whole number, found bool True"),
        ({"lr": 1, "count": 12}, "Settings.count must lie in 1 … 9, found 12"),
        ({"lr": 1, "kind": "adam"}, "Settings.kind: wanted 'sgd' or 'adamw', found str 'adam'. Did you mean 'adamw'?"),
        ({"lr": 1, "kind": 3}, "Settings.kind: wanted 'sgd' or 'adamw', found int 3"),
        ({"lr": 1, "shares": (0.5, 1)}, "Settings.shares[1] must lie in 0 … 1, 0 and 1 excluded, found 1"),
        ({"lr": 1, "shares": [0.5]}, "Settings.shares: wanted a valid tuple, found list [0.5]"),
        ({"lr": 1, "inner": {"count": 1}}, "Settings.inner: wanted an instance of Inner, found dict {'count': 1}"),
        ({"lr": 1, "on": "no"}, "Settings.on: wanted a valid boolean, found str 'no'"),
        ({"lr": 1, "names": {"a": 1}}, "Settings.names: wanted a valid string, found int 1"),
        ({"lr": -5, "kind": "x"}, "Settings.lr must lie in 0 … 100, 0 excluded, found -5; "
                                  "Settings.kind: wanted 'sgd' or 'adamw', found str 'x'"),
        ({"lrr": 1}, "Settings has no field 'lrr'. Did you mean 'lr'? It has: "
                     "lr, count, kind, shares, inner, maybe, names, on, exact"),
        ({"count": 1}, "Settings wants lr, found count"),
        ({}, "Settings wants lr, found nothing"),
        ({"lr": 1, "count": 5}, "count exceeds lr"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        Settings(**fields)
    assert str(caught.value) == message


def test_fields_have_names() -> None:
    with pytest.raises(RequestError, match=r"takes its fields by name \(lr, count, .*\), found 0\.1"):
        Settings(0.1)  # type: ignore[misc]


def test_a_type_that_is_imported_for_types_alone_is_known_when_it_is_needed() -> None:
    from fractions import Fraction

    assert Settings(lr=1, exact=Fraction(1, 3)).exact == Fraction(1, 3)
    with pytest.raises(RequestError, match="exact"):
        Settings(lr=1, exact=0.3)  # type: ignore[arg-type]


def test_a_packaging_is_checked_without_the_libraries_that_only_its_module_names() -> None:
    """A wrong request has to wait for torch at most."""
    code = (
        "import sys\nfrom edgewise.targets import Packaging\nfrom edgewise.settings import check\ncheck(Packaging())\n"
    )
    code += "assert 'torchao' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

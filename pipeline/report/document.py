"""The document behind ``report.json``: written after every row, read back by ``report DIR``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from edgewise.errors import EdgewiseError, RequestError
from edgewise.report.advice import Advice, advise_on_run
from edgewise.report.devices import DeviceRow
from edgewise.report.recommend import Recommendation
from edgewise.report.rows import ArtifactFile, Row
from edgewise.store.json_values import decode, encode, encode_fields
from edgewise.store.reading import read_json
from edgewise.store.whole import write_whole

SCHEMA = 1
FILE = "report.json"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Section:
    """An extra part of the page. Raises ValueError unless it holds exactly one of ``html`` and ``figure``."""

    title: str
    html: str | None = None
    """Tables, lists, paragraphs and embedded PNG images; everything else is shown as text (see ``markup``)."""
    figure: Mapping[str, Any] | None = None
    """A Plotly figure's JSON: ``data`` and ``layout``, as ``json.loads(figure.to_json())`` gives it."""

    def __post_init__(self) -> None:
        if (self.html is None) == (self.figure is None):
            raise ValueError(f"section {self.title!r}: wanted exactly one of html and figure")

    def to_json(self) -> dict[str, Any]:
        """This value as plain JSON types, without the part it does not hold."""
        return {key: value for key, value in encode_fields(self).items() if value is not None}


@dataclass(kw_only=True)
class Report:
    """Everything that is known of a run so far. Append to its lists, then ``write``."""

    recipe: Mapping[str, Any]
    """Every field of the recipe, as JSON types."""
    environment: Mapping[str, Any]
    rows: list[Row] = field(default_factory=list)
    artifacts: list[ArtifactFile] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    recommended: list[Recommendation] = field(default_factory=list)
    """For each target, the file to take."""
    devices: list[DeviceRow] = field(default_factory=list)
    """What the files did on devices, from results that were taken in."""
    stopped: str = ""
    """Why the run ended before it came to its files; empty where it did not."""
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """The document of ``report.json``; ``stopped``, ``next``, ``recommended``, ``devices`` and ``sections`` appear only
        where there are any."""
        document = {
            "schema": self.schema,
            "recipe": encode(self.recipe),
            "environment": encode(self.environment),
            "rows": [encode_fields(row) for row in self.rows],
            "artifacts": [encode_fields(artifact) for artifact in self.artifacts],
        }
        if self.stopped:
            document["stopped"] = self.stopped
        if advice := self.advice():
            document["next"] = advice.to_json()
        if self.recommended:
            document["recommended"] = [entry.to_json() for entry in self.recommended]
        if self.devices:
            document["devices"] = [row.to_json() for row in self.devices]
        return document | ({"sections": [section.to_json() for section in self.sections]} if self.sections else {})

    def advice(self, folder: str = "") -> Advice | None:
        """What to do next, where a target has no file that passed; ``folder``: where the paths of files begin."""
        return advise_on_run(self.recipe, self.rows, self.artifacts, folder)

    @classmethod
    def from_json(cls, value: object) -> Report:
        """The report again. Raises ValueError that names the key that is missing, unknown or of the wrong type."""
        if not isinstance(value, Mapping):
            raise ValueError(f"wanted an object, found {type(value).__name__}")
        if "schema" in value and value["schema"] != SCHEMA:
            raise ValueError(f"wanted schema {SCHEMA}, found {value['schema']!r}; run the recipe again to renew it")
        keys = ("schema", "recipe", "environment", "rows", "artifacts")
        missing = [key for key in keys if key not in value]
        if missing:
            raise ValueError(f"missing key {', '.join(map(repr, missing))}")
        for key in ("recipe", "environment"):
            if not isinstance(value[key], Mapping):
                raise ValueError(f"{key}: wanted an object, found {type(value[key]).__name__}")
        return cls(
            recipe=value["recipe"],
            environment=value["environment"],
            rows=_read_each(value["rows"], "rows", partial(decode, Row)),
            artifacts=_read_each(value["artifacts"], "artifacts", partial(decode, ArtifactFile)),
            sections=_read_each(value.get("sections", []), "sections", _read_section),
            recommended=_read_each(value.get("recommended", []), "recommended", _read_recommendation),
            devices=_read_each(value.get("devices", []), "devices", DeviceRow.from_json),
            stopped=_read_text(value.get("stopped", ""), "stopped"),
        )

    def write(self, folder: Path) -> Path:
        """Write ``folder/report.json`` whole or not at all and return its path. Raises StoreError where it cannot."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        return write_whole(folder / FILE, text + "\n")

    @classmethod
    def read(cls, folder: Path) -> Report:
        """The report kept in ``folder``. Raises RequestError, naming the file, when there is none that can be read."""
        path = folder / FILE
        try:
            return cls.from_json(read_json(path))
        except OSError as error:
            raise RequestError(
                f"cannot read {path}: {error.strerror}; give the folder that a run wrote, the one that holds {FILE}"
            ) from error
        except json.JSONDecodeError as error:
            raise RequestError(f"{path} is not JSON: {error.msg} in line {error.lineno}") from error
        except ValueError as error:
            raise RequestError(f"{path} is no report: {error}") from error


@contextlib.contextmanager
def refuse_damaged(folder: Path) -> Iterator[None]:
    """While a report that was read is laid out: raise RequestError for values in it that no run writes.

    What steps tell about themselves (``facts``), and recipes' fields, have no type of their own to be held against.
    """
    try:
        yield
    except (EdgewiseError, OSError):
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise RequestError(
            f"{folder / FILE} holds a value that no run writes ({type(error).__name__}: {error}); run the recipe again, or see "
            "with --debug where it is used"
        ) from error


def _read_each(value: object, where: str, read: Callable[[object, str], T]) -> list[T]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: wanted a list, found {type(value).__name__}")
    return [read(entry, f"{where}[{index}]") for index, entry in enumerate(value)]


def _read_text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: wanted a text, found {type(value).__name__}")
    return value


def _read_section(value: object, where: str) -> Section:
    return decode(Section, value, where)


def _read_recommendation(value: object, where: str) -> Recommendation:
    return decode(Recommendation, value, where)

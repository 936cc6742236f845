"""A run's files, cards, golden images and a labelled slice, with the runner that measures them, in one file."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from edgewise import calib_data, targets
from edgewise.device import archive, card_facts, host_answers
from edgewise.device import manifest as device_manifest
from edgewise.device.card_facts import CardFacts
from edgewise.device.manifest import BundledFile, Golden, Manifest, Slice
from edgewise.device.runner.contents import tensors
from edgewise.errors import RequestError
from edgewise.files import parts
from edgewise.files.isolated import call_remotely
from edgewise.report.document import Report
from edgewise.store.entries import file_digest
from edgewise.store.reading import read_regular

if TYPE_CHECKING:
    from edgewise.calib_data import Data


IMAGES = 1000
"""Labelled images that a bundle takes along unless asked for more; a set that has fewer comes whole."""
MOST_CLASSES = 65_536
LARGEST = 2**32
"""Bytes of a bundle: a zip without extensions, which phones read too, holds no more."""
_NOTHING = (
    "none: the run stopped before it wrote one, or had no target. Its report says which; run the recipe again with --target "
    "onnx, and with --keep-going where a step failed"
)
RUNS_ON_DEVICES = ("onnx", "ort", "xnnpack", "coreml")
"""Targets whose files a runner, or a phone's own program, can run."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A written bundle."""

    path: Path
    sha256: str
    bytes: int
    manifest: Manifest


@dataclass(frozen=True)
class _Source:
    """A delivered file and its card."""

    path: Path
    card: CardFacts

    @property
    def name(self) -> str:
        return self.path.name


def write(
    run: Path,
    wanted: Sequence[str] = (),
    images: int | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    data_name: str | None = None,
) -> Bundle:
    """Write the bundle of a run's folder to ``out`` (None: ``bundle.pyz`` in it).

    ``wanted``: targets (none: all that can run on a device); ``images``: of the labelled slice; ``data_name``: where the
    run's data lie now, if elsewhere. Raises RequestError for a folder without such files, for files that are not those
    their cards describe, and for other data.
    """
    if images is not None and images < 1:
        raise RequestError(f"--images: wanted at least 1, found {images}")
    report = Report.read(run)
    sources = _delivered_files(run, report, wanted)
    data = _load_data(data_name or str(report.recipe.get("data", "")), sources)
    index = host_answers.choose(data, images or IMAGES)
    entries: dict[str, bytes] = {"slice/images.u8": index.images.tobytes(), "slice/labels.u16": index.label_bytes}
    files = []
    with call_remotely(host_answers.make_answerer, what=f"running the files of {run}") as answer:
        for source in sources:
            say(f"running {source.name} on {len(index.labels)} images")
            if source.card.failure:
                say(f"{source.name} failed in its run: {source.card.failure}")
            try:
                given = answer(source.path, source.card, index)
            except host_answers.NotFinite as error:
                say(f"{source.name} is left out: {error}")
            else:
                files.append(_bundle_file(source, given, data, entries, _is_baseline(source, sources)))
    if not files:
        raise RequestError(f"{run} has no file whose answers are finite numbers; measure a run whose files passed")
    contents = Manifest(
        schema=device_manifest.SCHEMA,
        run=str(report.recipe.get("name", "")),
        files=tuple(files),
        slice=_describe_slice(index, data, str(report.recipe.get("data", ""))),
        wanted=_runtime_versions({source.card.target for source in sources}),
        entries=archive.digests(entries),
    )
    content = archive.pack({**entries, "manifest.json": contents.to_bytes()})
    place = out or run / "bundle.pyz"
    digest = archive.write(place, content)
    device_manifest.keep(contents, digest, run)
    return Bundle(path=place, sha256=digest, bytes=len(content), manifest=contents)


def _delivered_files(run: Path, report: Report, wanted: Sequence[str]) -> list[_Source]:
    """The delivered files, each the one that its card describes."""
    there = [entry for entry in report.artifacts if entry.target in RUNS_ON_DEVICES]
    if not there:
        have = sorted({entry.target for entry in report.artifacts})
        raise RequestError(
            f"{run} has no file that runs on a device: wanted one for {', '.join(RUNS_ON_DEVICES)}, found "
            + (f"{', '.join(have)}. Run the recipe with --target onnx" if have else _NOTHING)
        )
    unknown = sorted(set(wanted) - {entry.target for entry in there})
    if unknown:
        choices = ", ".join(sorted({entry.target for entry in there}))
        raise RequestError(f"{run} has no file for {unknown[0]} that runs on a device; choices: {choices}")
    paths = [_path_inside(run, entry.path) for entry in there if not wanted or entry.target in wanted]
    sources = [_Source(path, card_facts.read(path)) for path in paths]
    for source in sources:
        _check_source(source)
    return sources


def _path_inside(run: Path, path: str) -> Path:
    place = run / path
    if not place.resolve().is_relative_to(run.resolve()):
        raise RequestError(f"{run / 'report.json'} names a file outside the run's folder: {path!r}")
    if not place.exists():
        raise RequestError(f"{place} is missing: the report names it. Run the recipe again into the same folder")
    return place


def _check_source(source: _Source) -> None:
    digest = parts.digest(source.path)
    if digest != source.card.sha256:
        raise RequestError(
            f"{source.path} is not the file that was verified: its card says sha256 {source.card.sha256[:16]}…, found "
            f"{digest[:16]}…. Run the recipe again into the same folder"
        )
    if len(source.card.classes) > MOST_CLASSES:
        raise RequestError(f"{source.path} has {len(source.card.classes):,} classes; a bundle holds {MOST_CLASSES:,}")


def _load_data(name: str, sources: Sequence[_Source]) -> Data:
    """The data the files were verified on, at the size they were judged at."""
    from edgewise.images import resized

    card = sources[0].card
    complete, _ = calib_data.with_options(name, card.images)
    data = _numbered(calib_data.load(complete, card.seed), card.classes)
    if data.shape != card.input_shape:
        data = resized.resize_data(data, card.input_shape[1:])
    for source in sources:
        if source.card.input_shape != data.shape or data.digest != source.card.data_digest:
            raise RequestError(
                f"{source.path} was verified on other images than {name} gives now; give the data of the run with --data"
            )
    return data


def _numbered(data: Data, classes: Sequence[str]) -> Data:
    """The data under the numbers of the card's classes; as it is where a recipe gave its classes other names."""
    try:
        return calib_data.named_as(data, classes)
    except calib_data.DataError:
        if len(classes) == len(data.classes):
            return data
        raise


def _is_baseline(source: _Source, sources: Sequence[_Source]) -> bool:
    """The first float32 file of its target; where there is none, the first."""
    own = [other for other in sources if other.card.target == source.card.target]
    return source is next((other for other in own if other.card.precision == "float32"), own[0])


def _bundle_file(
    source: _Source, given: tuple[Any, str], data: Data, entries: dict[str, bytes], baseline: bool
) -> BundledFile:
    """``given``: the classes that the file answered here, and the grade of what ran it."""
    card = source.card
    own = _add_files(source.path, f"files/{card.target}", entries)
    classes, grade = given
    channels = data.shape[0]
    return BundledFile(
        name=source.name,
        target=card.target,
        path=f"files/{card.target}/{source.name}",
        entries=own,
        sha256=card.sha256,
        bytes=parts.size(source.path),
        precision=card.precision,
        fed=card.fed,
        mean=_per_channel(card.mean, channels),
        std=_per_channel(card.std, channels),
        input_size=(card.input_shape[1], card.input_shape[2]),
        classes=len(card.classes),
        max_drop=card.max_drop,
        baseline=baseline,
        golden=_add_golden(source, entries),
        host_answers=host_answers.encode_classes(classes) if classes is not None else "",
        host_grade=grade,
        failure=card.failure,
    )


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    from edgewise.images.normalise import per_channel

    return per_channel(values, channels)


def _add_files(artifact: Path, folder: str, entries: dict[str, bytes]) -> tuple[str, ...]:
    bundled_files = []
    for root in parts.roots(artifact):
        for path in [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file()):
            name = f"{folder}/{path.relative_to(artifact.parent).as_posix()}"
            entries[name] = path.read_bytes()
            bundled_files.append(name)
    return tuple(bundled_files)


def _add_golden(source: _Source, entries: dict[str, bytes]) -> Golden | None:
    record = source.card.golden
    if record is None:
        return None
    place = card_facts.golden_path(source.path)
    if not place.is_file() or file_digest(place) != record.sha256:
        raise RequestError(f"{place} is missing or not the one that the card names; run the recipe again")
    name = f"golden/{source.card.target}/{place.name}"
    entries[name] = place.read_bytes()
    answers = tensors(entries[name])["answers"]
    return Golden(
        answers=base64.b64encode(answers.astype("<f4").tobytes()).decode(),
        entry=name,
        count=record.count,
        worst=record.tolerance.worst,
        mean=record.tolerance.mean,
        made_on=record.made_on,
    )


def _describe_slice(chosen: host_answers.Chosen, data: Data, name: str) -> Slice:
    return Slice(
        count=len(chosen.labels),
        shape=data.shape,
        classes=data.classes,
        data=name,
        data_digest=data.digest,
        labels=host_answers.encode_classes(chosen.labels),
        available=len(data.test),
    )


_PACKAGES = {"onnx": "onnxruntime", "ort": "onnxruntime", "xnnpack": "executorch", "coreml": "coremltools"}


def _runtime_versions(names: set[str]) -> dict[str, Any]:
    """The runtimes' versions on this host."""
    versions = targets.versions(sorted({_PACKAGES[name] for name in names}))
    return {name: version for name, version in versions.items() if version is not None}


def read(path: Path) -> Bundle:
    """A bundle that was written before. Raises RequestError for a file that is none, or is damaged."""
    try:
        content = read_regular(path, LARGEST)
        with zipfile.ZipFile(io.BytesIO(content)) as archive_file:
            _check_members(archive_file)
            manifest = device_manifest.parse(archive_file.read("manifest.json"), str(path))
            _check_paths(manifest)
            wrong = [n for n, d in manifest.entries.items() if hashlib.sha256(archive_file.read(n)).hexdigest() != d]
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}; write it with: edgewise bundle RUN") from error
    except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError, EOFError, RuntimeError) as error:
        raise RequestError(f"{path} is no whole bundle ({error}); write it again with: edgewise bundle RUN") from error
    if wrong:
        raise RequestError(f"{path} is damaged: {wrong[0]} differs from what was written; write it again")
    return Bundle(path=path, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content), manifest=manifest)


def _check_members(archive_file: zipfile.ZipFile) -> None:
    """A bundle's members are as ``archive.pack`` writes them: not compressed, so that none is larger than the bundle, each
    name once. Raises ValueError."""
    names = [member.filename for member in archive_file.infolist()]
    if len(set(names)) < len(names):
        raise ValueError("two of its members have one name")
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive_file.infolist()):
        raise ValueError("its members are compressed, which a bundle's are not")


def _check_paths(manifest: Manifest) -> None:
    """What is laid onto a disk lies in the bundle's own folders, and is held against a digest. Raises ValueError."""
    for file in manifest.files:
        for name in (file.path, *file.entries):
            if not name.startswith("files/") or ".." in name.split("/") or PurePosixPath(name).as_posix() != name:
                raise ValueError(f"it would write a file outside its own folder: {name!r:.80}")
        if unlisted := [name for name in file.entries if name not in manifest.entries]:
            raise ValueError(f"its manifest holds no digest of {unlisted[0]!r:.80}")


def without_files(bundle: Manifest, names: Sequence[str]) -> Manifest:
    """The manifest without the files that are not in ``names``."""
    return replace(bundle, files=tuple(file for file in bundle.files if file.name in names))

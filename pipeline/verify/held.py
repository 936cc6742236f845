"""A written file and all the evidence for it, held: copied while it is hashed, so that what is parsed is what was hashed.

A file that is replaced between its digest and its reader would be opened unseen. So every byte is read once: into a folder
that belongs to this process alone, past the digest that the manifest has for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from edgewise.errors import EvidenceError
from edgewise.store.reading import open_regular
from edgewise.store.whole import disk_errors
from edgewise.verify import manifest, signature

_PIECE = 1 << 20
_REPAIR = "name another folder for temporary files with TMPDIR"


@contextlib.contextmanager
def hold_copy(artifact: Path, checkpoint: Path | None = None, key: Path | None = None) -> Iterator[Path]:
    """The file, in a folder that is laid out as a run's and goes with the block; all that its manifest names is beside it.

    ``checkpoint``: where its network is, if not where a run leaves it; it is then laid there. ``key``: the public half of
    the one that it has to be signed with. Raises EvidenceError for what is missing, or is not what the manifest says, and
    StoreError where the disk for temporary files does not take it.
    """
    with tempfile.TemporaryDirectory(prefix="edgewise-") as name:
        moved = manifest.is_moved(artifact) and checkpoint is None
        copy = Path(name).resolve() / ("apart" if moved else "artifacts") / "held" / artifact.name
        try:
            with disk_errors(copy, _REPAIR, any_kind=False):
                _copy_evidence(artifact, copy, checkpoint, key)
            yield copy
        except Exception as error:  # what is told of the copy is told of the file that was named
            error.args = tuple(
                word.replace(str(copy), str(artifact)) if isinstance(word, str) else word for word in error.args
            )
            raise


def _copy_evidence(artifact: Path, copy: Path, checkpoint: Path | None, key: Path | None) -> None:
    """Everything that the manifest names; its own copy is what is gone by, and what a signature is of."""
    _copy_file(manifest.path_of(artifact), manifest.path_of(copy))
    for name, digest in manifest.read(copy).items():
        source = artifact.parent / name
        if PurePosixPath(name).is_relative_to(manifest.CHECKPOINTS):
            if checkpoint is None and manifest.is_moved(artifact):
                continue
            source = source if checkpoint is None else checkpoint / PurePosixPath(name).name
        if _copy_file(source, copy.parent / name) != digest:
            raise EvidenceError(f"this is not the file that was verified: {name} was changed while it was read")
    if key is not None:
        _copy_file(signature.path_of(artifact), signature.path_of(copy))
        signature.verify(copy, key)


def _copy_file(source: Path, place: Path) -> str:
    """The SHA-256 of what was copied."""
    digest = hashlib.sha256()
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open_regular(source) as file, place.open("xb") as copy:
            while piece := file.read(_PIECE):
                digest.update(piece)
                copy.write(piece)
    except (FileNotFoundError, ValueError) as error:
        raise EvidenceError(f"{source} was taken away or exchanged while it was read: {error}") from error
    return digest.hexdigest()

"""Signatures of written files, by OpenSSF model signing with a key of one's own: an in-toto statement over every file.

What is signed is what lies beside a file and itself (its card, its golden images and the manifest, which holds the digest of
its network too), as a Sigstore bundle that other tools read. A card and a manifest alone protect against accidents: whoever
can change a file can write them anew. Nothing here reaches a network.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.errors import EvidenceError, RequestError
from edgewise.store.reading import read_regular
from edgewise.store.whole import replace_whole
from edgewise.targets import MissingBackend
from edgewise.verify import manifest

SUFFIX = ".sig"


def path_of(artifact: Path) -> Path:
    """Where a file's signature lies."""
    return artifact.with_name(artifact.name + SUFFIX)


def check_key(key: Path, *, private: bool) -> None:
    """Refuse a key that cannot sign, or verify. Raises RequestError, and MissingBackend without the library."""
    if importlib.util.find_spec("model_signing") is None:
        raise MissingBackend(
            'signatures need model-signing, which is not installed. Install it with: python -m pip install -e ".[sign]"'
        )
    try:
        read_regular(key, _LARGEST_KEY)  # the library would wait for a pipe, and read a device without end
        _signer(key) if private else _verifier(key)
    except Exception as error:  # whatever the library for keys trips over
        kind = "private" if private else "public"
        raise RequestError(
            f"{key} is no {kind} key that can be used: {_error_line(error)}; wanted an unencrypted PEM file of an elliptic curve "
            f"({_CURVES}), as openssl writes one: {_MAKE[private]}"
        ) from error


_LARGEST_KEY = 100_000
_CURVES = "P-256, P-384 or P-521"
_MAKE = {
    True: "openssl ecparam -genkey -name prime256v1 -noout -out key.pem",
    False: "openssl ec -in key.pem -pubout -out key.pub",
}


def sign(artifact: Path, key: Path) -> None:
    """Sign a delivered file with its card, its golden images and its manifest."""
    with replace_whole(path_of(artifact)) as aside:
        _signer(key).set_hashing_config(_Chosen(artifact)).sign(artifact.parent, aside)


def verify(artifact: Path, key: Path) -> None:
    """Raise EvidenceError unless the signature beside a file was made with the private half of ``key``, of these very files."""
    place = path_of(artifact)
    if not place.is_file():
        raise EvidenceError(f"{artifact.name} is not signed: there is no {place.name} beside it; run with --sign KEY")
    try:
        _verifier(key).set_hashing_config(_Chosen(artifact)).verify(artifact.parent, place)
    except Exception as error:  # a damaged bundle fails in its reader, in its decoder or in the mathematics
        raise EvidenceError(f"the signature {place.name} does not hold for {key.name}: {_error_line(error)}") from error


@dataclass(frozen=True)
class _Chosen:
    """How model signing is to digest a folder: the files of one artifact, whatever else lies there."""

    artifact: Path

    def hash(self, folder: Path, files_to_hash: Iterable[Path] | None = None) -> Any:
        from model_signing import hashing

        config = hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)
        files = [*manifest.files_of(self.artifact), manifest.path_of(self.artifact)]
        return config.hash(folder, files_to_hash=files)


def _signer(key: Path) -> Any:
    from model_signing import signing

    return signing.Config().use_elliptic_key_signer(private_key=key)


def _verifier(key: Path) -> Any:
    from model_signing import verifying

    return verifying.Config().use_elliptic_key_verifier(public_key=key)


def _error_line(error: Exception) -> str:
    text = ""
    with contextlib.suppress(Exception):
        text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}{': ' + text if text else ''}"

"""Signed files: what the key vouches for, and what it refuses."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from edgewise.errors import EvidenceError, RequestError
from edgewise.verify import manifest, signature

pytest.importorskip("model_signing")


def write_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A private key and its public half."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    pem = serialization.Encoding.PEM
    private.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    )
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path, "ours")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A package of two files with its card and its golden images, beside another file."""
    folder = tmp_path / "artifacts" / "fake"
    path = folder / "net.fakepackage"
    (path / "Data").mkdir(parents=True)
    (path / "Data" / "weights").write_bytes(b"w")
    (path / "manifest").write_bytes(b"m")
    for suffix in (manifest.CARD, manifest.GOLDEN):
        path.with_name(path.name + suffix).write_bytes(b"{}")
    (folder / "other.fake").write_bytes(b"o")
    manifest.write(path, "")
    return path


def test_a_signed_file_holds_and_names_every_file(file: Path, keys: tuple[Path, Path]) -> None:
    signature.sign(file, keys[0])
    signature.verify(file, keys[1])
    bundle = json.loads(signature.path_of(file).read_text(encoding="utf-8"))
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    named = {entry["name"] for entry in statement["predicate"]["resources"]}
    assert named == {
        "net.fakepackage/Data/weights", "net.fakepackage/manifest", "net.fakepackage.card.json",
        "net.fakepackage.golden.safetensors", "net.fakepackage.sha256",
    }  # fmt: skip


def changed(file: Path) -> None:
    (file / "manifest").write_bytes(b"M")


def added(file: Path) -> None:
    (file / "Data" / "more").write_bytes(b"")


def card_changed(file: Path) -> None:
    file.with_name(file.name + manifest.CARD).write_bytes(b"{ }")


def golden_lost(file: Path) -> None:
    file.with_name(file.name + manifest.GOLDEN).unlink()


def unsigned(file: Path) -> None:
    signature.path_of(file).unlink()


def garbled(file: Path) -> None:
    signature.path_of(file).write_bytes(b"\xff{}")


def cut(file: Path) -> None:
    place = signature.path_of(file)
    place.write_bytes(place.read_bytes()[:-40])


@pytest.mark.parametrize("renewed", [False, True], ids=["old manifest", "manifest made to fit"])
@pytest.mark.parametrize("attack", [changed, added, card_changed, golden_lost, unsigned, garbled, cut])
def test_without_the_key_nothing_can_be_changed(
    file: Path, keys: tuple[Path, Path], attack: Callable[[Path], None], renewed: bool
) -> None:
    signature.sign(file, keys[0])
    attack(file)
    if renewed:
        manifest.write(file, "")
    with pytest.raises(EvidenceError, match="sig"):
        signature.verify(file, keys[1])


def test_a_good_signature_of_another_file_does_not_hold(file: Path, keys: tuple[Path, Path]) -> None:
    other = file.with_name("other.fake")
    other.with_name(other.name + manifest.CARD).write_bytes(b"{}")
    manifest.write(other, "")
    for each in (file, other):
        signature.sign(each, keys[0])
    signature.path_of(file).write_bytes(signature.path_of(other).read_bytes())
    with pytest.raises(EvidenceError, match="does not hold"):
        signature.verify(file, keys[1])


def test_another_key_does_not_hold(file: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    signature.sign(file, keys[0])
    with pytest.raises(EvidenceError, match=r"does not hold for theirs\.pub"):
        signature.verify(file, write_keys(tmp_path, "theirs")[1])


def test_what_is_no_key_is_refused_with_the_line_that_makes_one(keys: tuple[Path, Path], tmp_path: Path) -> None:
    signature.check_key(keys[0], private=True)
    signature.check_key(keys[1], private=False)
    (tmp_path / "text").write_text("no key", encoding="utf-8")
    strange = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (tmp_path / "rsa").write_bytes(
        strange.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    for path in (keys[1], tmp_path / "text", tmp_path / "none", tmp_path, tmp_path / "rsa"):
        with pytest.raises(RequestError, match="openssl ecparam -genkey"):
            signature.check_key(path, private=True)
    with pytest.raises(RequestError, match="openssl ec -in"):
        signature.check_key(keys[0], private=False)


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_key_that_is_no_regular_file_is_refused_and_not_waited_for(private: bool, kind: str, tmp_path: Path) -> None:
    place = tmp_path / "key.pem"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "device":
        place.symlink_to("/dev/zero")
    else:
        place.mkdir()
    with pytest.raises(RequestError, match=r"key\.pem is no .* key that can be used: .*no regular file"):
        signature.check_key(place, private=private)

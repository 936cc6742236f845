"""Folders of photographs."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgewise import calib_data
from edgewise.calib_data import DataError
from edgewise.calib_data._photographs import Options, decode_image


def save(path: Path, value: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, 255 - value)).save(path)


def fill(root: Path, classes: str = "ab", count: int = 10, start: int = 0) -> Path:
    """``count`` images a class; image n of class c has the red level start + 100 c + n."""
    for number, name in enumerate(classes):
        for image in range(count):
            save(root / name / f"{image:02}.png", start + 100 * number + image)
    return root


def reds(part: calib_data.Part) -> list[int]:
    return part.batch(torch.arange(len(part)))[:, 0, 0, 0].tolist()


def test_classes_alone_are_split_by_the_seed(tmp_path: Path) -> None:
    data = calib_data.load(f"imagefolder:{fill(tmp_path)}?size=8")
    # A fifth of 20, then a tenth of 16.
    assert (len(data.train), len(data.calib), len(data.test)) == (15, 1, 4)
    assert (data.classes, data.shape, data.flip) == (("a", "b"), (3, 8, 8), True)
    every = reds(data.train) + reds(data.calib) + reds(data.test)
    assert sorted(every) == [*range(10), *range(100, 110)]
    assert [red // 100 for red in reds(data.train)] == data.train.labels.tolist()
    assert data.test.labels.sort().values.tolist() == [0, 0, 1, 1]
    assert calib_data.load(f"imagefolder:{tmp_path}?size=8", seed=1).digest != data.digest


@pytest.mark.parametrize("name", ["test", "val"])
def test_published_parts(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "train")
    fill(tmp_path / name, count=3, start=50)
    data = calib_data.load(f"imagefolder:{tmp_path}?size=8&flip=0")
    assert (len(data.train), len(data.calib), data.flip) == (18, 2, False)
    assert reds(data.test) == [50, 51, 52, 150, 151, 152]
    assert sorted(reds(data.train) + reds(data.calib)) == [*range(10), *range(100, 110)]


def test_calibration_comes_from_val_where_there_is_a_test_part_too(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    fill(tmp_path / "test", count=2, start=50)
    fill(tmp_path / "val", count=10, start=80)
    data = calib_data.load(f"imagefolder:{tmp_path}?size=8")
    assert (len(data.train), len(data.calib), len(data.test)) == (20, 2, 4)
    assert all(red % 100 >= 80 for red in reds(data.calib))


def test_train_may_be_the_name_of_a_class(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        fill(tmp_path, classes="x")
        (tmp_path / "x").rename(tmp_path / name)
    assert calib_data.load(f"imagefolder:{tmp_path}").classes == ("bus", "train")


def test_other_files_and_hidden_folders_are_ignored(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / ".cache").mkdir()
    assert calib_data.load(f"imagefolder:{tmp_path}").classes == ("a", "b")


def test_digest_follows_bytes_labels_and_size(tmp_path: Path) -> None:
    name = f"imagefolder:{fill(tmp_path)}"
    digests = [calib_data.load(f"{name}?size=8").digest, calib_data.load(f"{name}?size=9").digest]
    digests.append(calib_data.load(f"{name}?size=8&resize=9").digest)
    assert calib_data.load(f"{name}?size=8").digest == digests[0]
    save(tmp_path / "b" / "09.png", 7)
    digests.append(calib_data.load(f"{name}?size=8").digest)
    assert len(set(digests)) == 4


def test_the_centre_is_cut(tmp_path: Path) -> None:
    # 12 wide, 4 high: columns 4 … 7 are left, each of its own grey level.
    levels = np.tile(np.arange(12, dtype=np.uint8) * 10, (4, 1))
    Image.fromarray(levels).save(tmp_path / "wide.png")
    image = decode_image(tmp_path / "wide.png", Options(size=4))
    assert image.shape == (3, 4, 4)
    assert image[1, 2].tolist() == [40, 50, 60, 70]
    # To 8 on the shorter side first, then columns 10 … 13 of 24, which lie at 4.75, 5.25, 5.75 and 6.25 of the 12.
    doubled = decode_image(tmp_path / "wide.png", Options(size=4, resize=8))
    assert np.abs(doubled[0, 0] - np.array([47.5, 52.5, 57.5, 62.5])).max() <= 0.5


def test_resizing_agrees_with_resizing_the_whole_and_cutting_then(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (61, 97, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    whole = Image.fromarray(noise).resize((51, 32), Image.Resampling.BILINEAR)
    wanted = np.asarray(whole.crop((13, 4, 37, 28))).transpose(2, 0, 1)
    found = decode_image(tmp_path / "noise.png", Options(size=24, resize=32))
    assert np.abs(found[:, 2:-2, 2:-2].astype(int) - wanted[:, 2:-2, 2:-2]).max() <= 1


def test_a_panorama_is_not_blown_up(tmp_path: Path) -> None:
    save(tmp_path / "line.png", 9, size=(60_000, 1))  # resized as a whole: 240 million columns at size 4,000
    assert decode_image(tmp_path / "line.png", Options(size=4000)).shape == (3, 4000, 4000)


def test_exif_orientation_and_palette_with_transparency(tmp_path: Path) -> None:
    column = Image.fromarray(np.array([[200], [10]], dtype=np.uint8).repeat(2, 1)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    column.save(tmp_path / "turned.png", exif=exif)
    assert decode_image(tmp_path / "turned.png", Options(size=2))[0, :, 0].tolist() == [10, 200]
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 7, 8, 9])
    palette.save(tmp_path / "palette.png", transparency=b"\x00\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(tmp_path / "palette.png", Options(size=2))[:, 0, 0].tolist() == [7, 8, 9]


def test_batch_of_none(tmp_path: Path) -> None:
    data = calib_data.load(f"imagefolder:{fill(tmp_path)}?size=8")
    assert data.train.batch(torch.empty(0, dtype=torch.int64)).shape == (0, 3, 8, 8)


def test_a_file_that_is_no_image_is_named_at_once(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "a" / "03.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"03\.png: an image is wanted, found: an empty file; replace"):
        calib_data.load(f"imagefolder:{tmp_path}")
    (tmp_path / "a" / "03.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"03\.png: an image is wanted, found: cannot identify image file; replace"):
        calib_data.load(f"imagefolder:{tmp_path}")


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_cut_image_is_named_at_once(tmp_path: Path, suffix: str) -> None:
    path = fill(tmp_path) / "a" / f"cut.{suffix}"
    Image.fromarray(NOISE).save(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=rf"a.cut\.{suffix}: an image is wanted, found: .*; replace or remove it"):
        calib_data.load(f"imagefolder:{tmp_path}?size=8")


def test_damage_inside_an_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = fill(tmp_path) / "a" / "03.png"
    Image.fromarray(NOISE).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + b"\0" * 100 + whole[len(whole) // 2 + 100 :])
    data = calib_data.load(f"imagefolder:{tmp_path}?size=8")
    with pytest.raises(DataError, match=r"a.03\.png: an image that decodes is wanted, found: .*; replace or remove it"):
        for part in (data.train, data.calib, data.test):
            reds(part)


def test_an_image_with_something_behind_its_end_is_whole(tmp_path: Path) -> None:
    path = fill(tmp_path) / "a" / "03.jpg"
    Image.fromarray(NOISE).save(path)
    with path.open("ab") as file:
        file.write(b"a camera's own notes" * 10)
    calib_data.load(f"imagefolder:{tmp_path}?size=8")


def _loop(folder: Path) -> None:
    (folder / "up").symlink_to("..")


def _own_loop(folder: Path) -> None:
    (folder / "loop.png").symlink_to("loop.png")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")


def _device(folder: Path) -> None:
    (folder / "zero.png").symlink_to("/dev/zero")


def _folder(folder: Path) -> None:
    (folder / "folder.png").mkdir()


@pytest.mark.parametrize("put", [_loop, _own_loop, _pipe, _device, _folder], ids=lambda put: put.__name__[1:])
def test_nothing_but_regular_files_is_read(tmp_path: Path, put: Callable[[Path], None]) -> None:
    put(fill(tmp_path) / "a")
    data = calib_data.load(f"imagefolder:{tmp_path}?size=8")
    assert len(data.train) + len(data.calib) + len(data.test) == 20


def test_a_sparse_file_of_a_terabyte_is_not_read(tmp_path: Path) -> None:
    with (fill(tmp_path) / "a" / "sparse.png").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(DataError, match=r"sparse\.png: an image is wanted, found: a file of 1,000,000,000,000 bytes"):
        calib_data.load(f"imagefolder:{tmp_path}?size=8")


def test_every_file_that_is_no_image_is_told_of(tmp_path: Path) -> None:
    fill(tmp_path)
    for name in ("x.jpg", "y.jpg", "z.jpg"):
        (tmp_path / "a" / name).write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"x\.jpg: an image is wanted.*; and 2 more: y\.jpg, z\.jpg"):
        calib_data.load(f"imagefolder:{tmp_path}?size=8")


MODES = {
    "CMYK": lambda grey: Image.new("CMYK", (8, 8), (0, 0, 0, 255 - grey)),
    "grey": lambda grey: Image.new("L", (8, 8), grey),
    "grey with transparency": lambda grey: Image.new("LA", (8, 8), (grey, 255)),
    "two colours": lambda grey: Image.new("1", (8, 8), grey > 127),
    "YCbCr": lambda grey: Image.new("RGB", (8, 8), (grey,) * 3).convert("YCbCr"),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_eight_bits_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.tif"
    MODES[mode](255).save(path)
    assert decode_image(path, Options(size=8)).min() >= 254


def test_more_than_eight_bits(tmp_path: Path) -> None:
    fill(tmp_path)
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "b" / "00.png")
    with pytest.raises(DataError, match=r"b.00\.png: an image of 8 bits a channel is wanted, found mode I"):
        calib_data.load(f"imagefolder:{tmp_path}")


def test_an_absurdly_large_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    fill(tmp_path)
    save(tmp_path / "b" / "00.png", 1, size=(11, 11))
    with pytest.raises(DataError, match=r"b.00\.png: an image is wanted, found: .*121 pixels"):
        calib_data.load(f"imagefolder:{tmp_path}")


def test_a_class_without_images_counts_and_is_told(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "c").mkdir()
    data = calib_data.load(f"imagefolder:{tmp_path}?size=8")
    assert data.classes == ("a", "b", "c")
    assert "whole: 1 class folder is empty: c" in data.notes
    assert data.untrainable() == "has no training image of 1 of its 3 classes (c)"


@pytest.mark.parametrize("classes", ["", "a"])
def test_fewer_than_two_classes(tmp_path: Path, classes: str) -> None:
    fill(tmp_path, classes=classes)
    with pytest.raises(DataError, match=f"each of at least two classes is wanted, found {classes or 'none'}"):
        calib_data.load(f"imagefolder:{tmp_path}")


def test_too_few_images_to_train_on_judge_and_calibrate(tmp_path: Path) -> None:
    data = calib_data.load(f"imagefolder:{fill(tmp_path, count=1)}?size=8")
    assert (len(data.train), len(data.calib), len(data.test)) == (0, 1, 1)
    assert data.untrainable() == "has no training images"
    with pytest.raises(DataError, match="at least 3 images, found 2 of 2 classes"):
        calib_data.load(f"imagefolder:{tmp_path}?size=8&train=1")


def test_no_test_part(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    with pytest.raises(DataError, match=r"a folder of test images is wanted beside train \(test or val\), found none"):
        calib_data.load(f"imagefolder:{tmp_path}")


def test_a_test_class_that_training_has_not(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    fill(tmp_path / "test", classes="ac")
    with pytest.raises(DataError, match=r"test.c: a folder of one of the training classes is wanted"):
        calib_data.load(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("side=3", "the options size, .* and labels are known, found 'side'"),
        ("size=0", "size as a whole number in 1 … 4096 is wanted, found '0'"),
        ("size=big", "found 'big'"),
        ("size=99999999", "found '99999999'"),
        ("flip=2", "flip as a whole number in 0 … 1 is wanted, found '2'"),
        ("size=32&resize=16", "resize of at least size is wanted, found 16 and 32"),
    ],
)
def test_wrong_options(tmp_path: Path, options: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        calib_data.load(f"imagefolder:{fill(tmp_path)}?{options}")


def test_a_folder_may_have_a_question_mark_in_its_name(tmp_path: Path) -> None:
    fill(tmp_path / "what?")
    assert calib_data.load(f"imagefolder:{tmp_path / 'what?'}").shape == (3, 224, 224)
    assert calib_data.load(f"imagefolder:{tmp_path / 'what?'}?size=8").shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("side", "options", "cautioned"), [(32, "", True), (112, "", True), (200, "", False), (32, "?size=224", False)]
)
def test_small_images_that_are_enlarged_unasked_are_told(
    tmp_path: Path, side: int, options: str, cautioned: bool
) -> None:
    for name in "ab":
        for image in range(3):
            save(tmp_path / name / f"{image}.png", 9 * image, (side, side + 40))
    (caution,) = calib_data.load(f"imagefolder:{tmp_path}{options}").cautions or ("",)
    assert bool(caution) is cautioned
    if cautioned:
        assert f"small, {side} pixels at their shorter side, and are enlarged to 224" in caution
        assert f"input_shape = (3, {side}, {side})" in caution and f"?size={side}" in caution


def test_the_places_that_are_read(tmp_path: Path) -> None:
    name = f"imagefolder:{tmp_path}?size=8&classes=names.txt"
    assert calib_data.places_read(name) == (tmp_path, Path("names.txt"), tmp_path / "names.txt")
    assert calib_data.places_read("arrays:x.npz") == (Path("x.npz"),) and calib_data.places_read("digits") == ()
    with pytest.raises(DataError, match="unknown data set"):
        calib_data.places_read("nothing:x")

"""Images in the forms that people have them: subsets of classes, lists, tables, nested folders, odd files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from edgewise import calib_data
from edgewise.calib_data import Data, DataError

LIST = "n01440764 tench, Tinca tinca\nn01443537 goldfish\nn02012849 crane\nn03126707 crane\nn04 odd\n"


def save(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value, 0, 0)).save(path)
    return path


def fill(root: Path, *classes: str, count: int = 6, start: int = 0) -> Path:
    """``count`` images a class; image n of the class in place c has the red level start + 20 c + n."""
    for place, name in enumerate(classes):
        for number in range(count):
            save(root / name / f"{number}.png", start + 20 * place + number)
    return root


def load(folder: Path, options: str = "size=4") -> Data:
    return calib_data.load(f"imagefolder:{folder}?{options}")


def labelled(part: calib_data.Part) -> dict[int, int]:
    """Red level -> label."""
    reds = part.batch(torch.arange(len(part)))[:, 0, 0, 0].tolist()
    return dict(zip(reds, part.labels.tolist(), strict=True))


def test_val_alone_judges_and_calibrates_and_says_so(tmp_path: Path) -> None:
    fill(tmp_path / "val", "a", "b", count=15)
    data = load(tmp_path)
    assert (len(data.train), len(data.calib), len(data.test)) == (0, 10, 20)
    assert {**labelled(data.calib), **labelled(data.test)} == {20 * c + n: c for c in (0, 1) for n in range(15)}
    assert data.untrainable() == "has no training images"
    assert any("10 images drawn for calibration, 20 left to judge on" in note for note in data.notes)


def test_calibration_images_of_a_subset_are_not_all_of_the_first_classes(tmp_path: Path) -> None:
    fill(tmp_path / "val", *(f"{number:02}" for number in range(60)), count=2)
    labels = load(tmp_path).calib.labels
    assert len(labels) == 40 and int(labels.max()) >= 40


def test_a_test_part_with_some_of_the_classes(tmp_path: Path) -> None:
    fill(tmp_path / "train", "a", "b", "c", count=20)
    fill(tmp_path / "test", "c", start=100, count=3)
    data = load(tmp_path)
    assert labelled(data.test) == {100: 2, 101: 2, 102: 2}
    assert data.untrainable() == "" and "test: 3 images of 1 of the 3 classes" in data.notes


def test_a_list_beside_says_the_classes_and_their_order(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(LIST, encoding="utf-8")
    fill(tmp_path / "val", "n01443537", "n01440764", "n03126707")
    data = load(tmp_path)
    assert len(data.classes) == 5 and data.listed
    # Sorted by path: n01440764 (reds 20…), n01443537 (reds 0…), n03126707 (reds 40…).
    every = {**labelled(data.calib), **labelled(data.test)}
    assert {every[20], every[0], every[40]} == {0, 1, 3} and (every[20], every[0], every[40]) == (0, 1, 3)


@pytest.mark.parametrize(
    ("folders", "numbers"),
    [
        (("tench", "Goldfish"), (0, 1)),
        (("tinca_tinca", "n02012849"), (0, 2)),
        (("n01443537-goldfish", "n04 odd"), (1, 4)),
        (("4", "0"), (4, 0)),
        (("1", "5"), (0, 4)),
    ],
)
def test_what_a_folder_may_be_called(tmp_path: Path, folders: tuple[str, str], numbers: tuple[int, int]) -> None:
    (tmp_path / "classes.txt").write_text(LIST, encoding="utf-8")
    data = load(fill(tmp_path / "val", *folders).parent)
    every = {**labelled(data.calib), **labelled(data.test)}
    assert (every[0], every[20]) == numbers


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("tench", "carp"), r"found carp, which means none of them"),
        (("tench", "goldfsh"), "found goldfsh, which means none.*Did you mean 'n01443537 goldfish'"),
        (("tench", "crane"), "'crane' may be 'n02012849 crane', 'n03126707 crane'"),
        (("tench", "n01440764"), "'n01440764' and 'tench' both mean 'n01440764 tench, Tinca tinca'"),
        (("0", "7"), "numbers of 5 classes are wanted, 0 to 4, found 7"),
    ],
)
def test_folders_that_fit_no_list(tmp_path: Path, folders: tuple[str, str], message: str) -> None:
    (tmp_path / "classes.txt").write_text(LIST, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load(fill(tmp_path / "val", *folders).parent)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "b\nx\na\n"),
        ("labels.txt", "0: b\n1: x\n2: a"),
        ("classes.json", json.dumps(["b", "x", "a"])),
        ("classes.json", json.dumps({"0": "b", "1": ["n00000001", "x"], "2": "a"})),
        ("classes.json", json.dumps({"a": 2, "b": 0, "x": 1})),
    ],
)
def test_forms_of_a_list(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    data = load(fill(tmp_path / "val", "a", "b").parent)
    every = {**labelled(data.calib), **labelled(data.test)}
    assert (every[0], every[20], len(data.classes)) == (2, 0, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\n\nb\n", "found line 2 empty"), ("a\n", "at least two classes"), ("\xff", "is wanted")],
)
def test_lists_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "classes.txt").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        load(fill(tmp_path / "val", "a", "b").parent)


def test_a_list_by_name_and_a_list_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("b\na\n", encoding="utf-8")
    fill(tmp_path / "val", "a", "b")
    assert load(tmp_path, f"size=4&classes={tmp_path / 'mine.txt'}").classes == ("b", "a")
    assert load(tmp_path, "size=4&classes=mine.txt").classes == ("b", "a")
    with pytest.raises(DataError, match=r"classes=yours\.txt: a file is wanted"):
        load(tmp_path, "size=4&classes=yours.txt")


def test_numbers_stand_in_the_order_of_their_values(tmp_path: Path) -> None:
    data = load(fill(tmp_path, *(str(number) for number in range(12)), count=8))
    assert data.classes == tuple(map(str, range(12)))
    assert any("torchvision's ImageFolder would read 0, 1, 10, 11" in note for note in data.notes)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("labels.csv", ["file,label", "{0}.png,cat", "{1}.png,dog"]),
        ("labels.csv", ["{0},cat", "{1},dog"]),
        ("truth.tsv", ["id\tname\tsplit", "{0}\tcat\tx", "{1}\tdog\ty"]),
        ("labels.csv", ["ImageId,PredictionString", "{0},n01440764 85 1 4 2", "{1},n01443537 1 1 2 2"]),
    ],
)
def test_a_flat_folder_with_a_table(tmp_path: Path, name: str, rows: list[str]) -> None:
    for number in range(6):
        save(tmp_path / f"{number}.png", number)
    head = [row for row in rows if "{" not in row]
    lines = [row.format(number, number) for number in range(6) for row in [rows[len(head) + number % 2]]]
    (tmp_path / name).write_text("\n".join([*head, *lines]), encoding="utf-8")
    data = load(tmp_path)
    assert len(data.classes) == 2 and (len(data.train), len(data.calib), len(data.test)) == (0, 2, 4)
    assert {**labelled(data.calib), **labelled(data.test)} == {number: number % 2 for number in range(6)}


FORMS = {
    "labels.txt": "0.png b\n1.png a\n2.png b\n",  # not a list of classes, though such a list may be called so
    "val.txt": "/home/someone/set/0.png 1\nC:\\set\\1.png 0\n./2.png 1\n",
    "spaced.txt": "0.png b\n1.png a\n2.png  b\n",
    "onehot.csv": "image,a,b\n0,0.0,1.0\n1,1.0,0.0\n2,0.0,1.0\n",
    "label_first.csv": "label,id\n2,0\n1,1\n2,2\n",  # labels are names of images, too, but of fewer
    "map.json": json.dumps({"0.png": "b", "1.png": "a", "2.png": "b"}),
    "pairs.json": json.dumps({"labels": [["0.png", 1], ["1.png", 0], ["2.png", 1]]}),
    "records.json": json.dumps([{"file_name": f"{n}.png", "label": "ab"[(n + 1) % 2]} for n in range(3)]),
    "metadata.jsonl": "\n".join(json.dumps({"file_name": f"{n}.png", "label": (n + 1) % 2}) for n in range(3)),
    "coco.json": json.dumps(
        {
            "images": [{"id": 10 + n, "file_name": f"{n}.png"} for n in range(3)],
            "annotations": [{"image_id": 10 + n, "category_id": 7 + (n + 1) % 2} for n in range(3)],
            "categories": [{"id": 7, "name": "a"}, {"id": 8, "name": "b"}],
        }
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_table(tmp_path: Path, name: str) -> None:
    for value in range(3):
        save(tmp_path / f"{value}.png", value)
    (tmp_path / name).write_text(FORMS[name], encoding="utf-8")
    data = load(tmp_path)
    assert {**labelled(data.calib), **labelled(data.test)} == {0: 1, 1: 0, 2: 1}


def test_lists_share_a_folder_out(tmp_path: Path) -> None:
    fill(tmp_path / "images", "cat", "dog", count=10)
    (tmp_path / "train.txt").write_text(
        "".join(f"{c}/{n}\n" for c in ("cat", "dog") for n in range(7)), encoding="utf-8"
    )
    (tmp_path / "test.txt").write_text("cat/8.png\ndog/9.png\n", encoding="utf-8")
    (tmp_path / "classes.txt").write_text("cat\ndog\n", encoding="utf-8")
    data = load(tmp_path)
    assert labelled(data.test) == {8: 0, 29: 1}
    assert {**labelled(data.train), **labelled(data.calib)} == {20 * c + n: c for c in (0, 1) for n in range(7)}


def test_a_table_of_a_part_lies_in_its_folder(tmp_path: Path) -> None:
    for name in ("n01", "n02"):
        fill(tmp_path / "train" / name, "images", count=12)
    for value in range(4):
        save(tmp_path / "val" / "images" / f"val_{value}.png", value)
    rows = "".join(f"val_{value}.png\tn0{1 + value % 2}\t0\t0\t62\t62\n" for value in range(4))
    (tmp_path / "val" / "val_annotations.txt").write_text(rows, encoding="utf-8")
    (tmp_path / "wnids.txt").write_text("n02\nn01\n", encoding="utf-8")
    assert labelled(load(tmp_path).test) == {0: 0, 1: 1, 2: 0, 3: 1}


def test_a_part_without_labels_is_left_out_and_said(tmp_path: Path) -> None:
    fill(tmp_path / "train", "n01", "n02", count=12)
    fill(tmp_path / "val", "n01", "n02", start=100)
    fill(tmp_path / "test", "images", start=200)
    data = load(tmp_path)
    assert sorted(data.classes) == ["n01", "n02"] and min(labelled(data.test)) == 100
    assert any("test is left out, it has no labels" in note for note in data.notes)


def test_a_table_without_labels_leaves_the_rest_as_the_whole(tmp_path: Path) -> None:
    for value in range(30):
        save(tmp_path / "train" / f"{value}.png", value)
    save(tmp_path / "test" / "x.png", 99)
    (tmp_path / "train.csv").write_text(
        "id,a,b\n" + "".join(f"{n},{n % 2},{1 - n % 2}\n" for n in range(30)), encoding="utf-8"
    )
    (tmp_path / "test.csv").write_text("id\nx\n", encoding="utf-8")
    data = load(tmp_path)
    every = {**labelled(data.train), **labelled(data.calib), **labelled(data.test)}
    assert every == {n: 1 - n % 2 for n in range(30)}


def test_of_two_tables_the_one_that_names_images_counts(tmp_path: Path) -> None:
    for value in range(10):
        save(tmp_path / "images" / f"{value}.png", value)
    (tmp_path / "train.csv").write_text("".join(f"{n},{n % 2}\n" for n in range(10)), encoding="utf-8")
    (tmp_path / "test.csv").write_text("id\nelsewhere\n", encoding="utf-8")
    data = load(tmp_path)
    assert {**labelled(data.calib), **labelled(data.test), **labelled(data.train)} == {n: n % 2 for n in range(10)}


def test_folders_that_are_no_classes(tmp_path: Path) -> None:
    fill(tmp_path / "set" / "images", "a", "b")
    fill(tmp_path / "set" / "__MACOSX", "a", "b")
    (tmp_path / "set" / "meta").mkdir()
    (tmp_path / "set" / "meta" / "about.md").write_text("text", encoding="utf-8")
    assert load(tmp_path / "set").classes == ("a", "b")
    save(tmp_path / "boxes" / "train" / "images" / "0.png", 0), save(tmp_path / "boxes" / "val" / "images" / "0.png", 0)
    for part in ("train", "val"):
        (tmp_path / "boxes" / part / "labels").mkdir()
        (tmp_path / "boxes" / part / "labels" / "0.txt").write_text("0 1 1 1 1", encoding="utf-8")
    with pytest.raises(DataError, match="found images in images alone, beside labels, which hold none"):
        load(tmp_path / "boxes")


def test_folders_inside_a_class_are_said(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fill(tmp_path / name, "train", "test")
    assert "whole: folders inside a class are not told apart: a/test, a/train count as a" in load(tmp_path).notes


def test_deep_or_cut_json_is_no_table(tmp_path: Path) -> None:
    save(tmp_path / "0.png", 0), save(tmp_path / "1.png", 1)
    for text in ("[" * 100_000, '{"0.png": '):
        (tmp_path / "t.json").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match="JSON is wanted"):
            load(tmp_path, "size=4&labels=t.json")
        with pytest.raises(DataError, match="JSON is wanted"):
            load(tmp_path, "size=4&classes=t.json")


def test_a_table_beside_a_folder_of_images_and_labels_by_number(tmp_path: Path) -> None:
    for number in range(6):
        save(tmp_path / "val" / f"{number}.png", number)
    (tmp_path / "val_labels.csv").write_text("".join(f"{n}.png,{4 * (n % 2)}\n" for n in range(6)), encoding="utf-8")
    (tmp_path / "classes.txt").write_text(LIST, encoding="utf-8")
    data = load(tmp_path)
    assert {**labelled(data.calib), **labelled(data.test)} == {number: 4 * (number % 2) for number in range(6)}


def test_rows_and_images_without_their_match_are_counted(tmp_path: Path) -> None:
    for number in range(6):
        save(tmp_path / f"{number}.png", number)
    (tmp_path / "labels.csv").write_text("file,label\n0,a\n1,b\n2,a\n9,b\n", encoding="utf-8")
    data = load(tmp_path)
    assert "whole: 3 images left out, labels.csv has no label for them" in data.notes
    assert "whole: 1 rows of labels.csv name no image that is there, first 9" in data.notes
    assert len(data.calib) + len(data.test) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\n8,a\n9,b\n", "a column with the names of the 2 images beside it is wanted"),
        ("0.png,a\n0.png,b\n1.png,b\n", r"one label an image is wanted, 0\.png has 'a' and 'b'"),
        ("0.png,a,b\n1.png,b,c\n", "a column called label or class, or one of zeros"),
        ("0.png\n1.png\n", "a label for each image is wanted, found names of images alone"),
        ("file,a,b\n0.png,1,1\n1.png,0,1\n", "or one of zeros and a single one for each class"),
        ("file,label\n0.png\n", r"rows of a file and its label are wanted.*found \['0\.png'\] as row 2"),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, text: str, message: str) -> None:
    save(tmp_path / "0.png", 0), save(tmp_path / "1.png", 1)
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_unlabelled_images_calibrate(tmp_path: Path) -> None:
    fill(tmp_path / "val", "a", "b")
    for number in range(5):
        save(tmp_path / "calib" / f"{number}.png", 200 + number)
    data = load(tmp_path)
    assert (len(data.calib), len(data.test)) == (5, 12)
    assert not data.calib_is_labelled and "calib: 5 images without labels" in data.notes
    assert set(labelled(data.calib)) == set(range(200, 205))


def test_unlabelled_images_alone_judge_nothing(tmp_path: Path) -> None:
    save(tmp_path / "0.png", 0), save(tmp_path / "1.png", 1)
    with pytest.raises(DataError, match="put a table of labels"):
        load(tmp_path)
    (tmp_path / "classes.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(DataError, match="images with labels are wanted to judge on, found 2 without"):
        load(tmp_path)


@pytest.mark.parametrize(
    "parts", [("Train", "Validation"), ("TRAIN", "TEST"), ("training", "testing"), ("train", "Val")]
)
def test_parts_are_known_by_every_usual_name(tmp_path: Path, parts: tuple[str, str]) -> None:
    for part in parts:
        fill(tmp_path / part, "a", "b", count=12)
    data = load(tmp_path)
    assert data.classes == ("a", "b") and len(data.train) and len(data.test)
    assert not any("left to judge on" in note for note in data.notes)


def test_images_below_a_class_are_read_and_other_files_named(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b", count=8)
    save(tmp_path / "a" / "more" / "deep" / "9.png", 9)
    save(tmp_path / "b" / "8.jpg", 99).rename(tmp_path / "b" / "8.jfif")
    (tmp_path / "b" / "x.heic").write_bytes(b"heic")
    (tmp_path / "b" / "y.HEIC").write_bytes(b"heic")
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "a" / "._8.png").write_bytes(b"of another system")
    data = load(tmp_path)
    assert len(data.train) + len(data.calib) + len(data.test) == 18
    assert "whole: 2 files left out, not read here (.heic): b/x.heic, b/y.HEIC" in data.notes
    assert "whole: 1 file left out, a link that leads nowhere: a/gone.png" in data.notes
    assert {**labelled(data.train), **labelled(data.calib), **labelled(data.test)}[9] == 0


def test_the_list_tells_classes_from_folders_between(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ncar\ndog\n", encoding="utf-8")
    fill(tmp_path / "val" / "animals", "dog", "cat")
    fill(tmp_path / "val" / "things", "car", start=100)
    data = load(tmp_path)
    every = {**labelled(data.calib), **labelled(data.test)}
    assert (every[0], every[20], every[100]) == (2, 0, 1)


def test_one_folder_around_all_classes_is_looked_through(tmp_path: Path) -> None:
    assert load(fill(tmp_path / "photos", "a", "b", count=8).parent).classes == ("a", "b")


def test_training_images_calibrate_where_no_class_can_spare_one(tmp_path: Path) -> None:
    fill(tmp_path / "train", *"abcdefghij", count=1)
    fill(tmp_path / "val", "c", "d", start=100)
    data = load(tmp_path)
    assert (len(data.train), len(data.calib), len(data.test), data.untrainable()) == (10, 10, 12, "")
    assert any("the 10 calibration images are training images too" in note for note in data.notes)


def test_another_filter_changes_images_and_digest(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b", count=8)
    Image.radial_gradient("L").resize((9, 9)).save(tmp_path / "a" / "0.png")
    plain, sharp = load(tmp_path), load(tmp_path, "size=4&interpolation=bicubic")
    assert plain.digest != sharp.digest
    assert not torch.equal(plain.train.batch(torch.arange(5)), sharp.train.batch(torch.arange(5)))
    assert (sharp.prepared["interpolation"].value, sharp.prepared["interpolation"].origin) == ("bicubic", "--data")
    assert plain.prepared["resize"].origin == "default"
    with pytest.raises(DataError, match="interpolation is one of bilinear, bicubic"):
        load(tmp_path, "interpolation=cubic")


def test_options_are_added_where_the_request_says_none() -> None:
    given = {"size": 240, "resize": 274, "side": 3}
    assert calib_data.with_options("imagefolder:x", given) == (
        "imagefolder:x?size=240&resize=274", frozenset({"size", "resize"}),
    )  # fmt: skip
    assert calib_data.with_options("imagefolder:x?flip=0", given)[0] == "imagefolder:x?flip=0&size=240&resize=274"
    assert calib_data.with_options("imagefolder:x?size=8", given) == ("imagefolder:x?size=8", frozenset())
    assert calib_data.with_options("digits", given) == ("digits", frozenset())


def test_a_set_is_numbered_as_a_network_does(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b", count=8)
    data = load(tmp_path)
    other = calib_data.named_as(data, ("b", "x", "a"))
    assert other.classes == ("b", "x", "a") and other.digest != data.digest
    assert labelled(other.test) == {red: {0: 2, 1: 0}[label] for red, label in labelled(data.test).items()}
    assert calib_data.named_as(other, ("b", "x", "a")) is other
    assert calib_data.named_as(data, ("A", "B")).digest == data.digest
    with pytest.raises(DataError, match="found b, which means none"):
        calib_data.named_as(data, ("a", "x"))


def test_classes_without_images_need_no_counterpart(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b", count=8)
    (tmp_path / "empty").mkdir()
    assert calib_data.named_as(load(tmp_path), ("b", "a")).classes == ("b", "a")

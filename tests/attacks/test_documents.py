"""Cards, networks and reports that somebody else wrote: read or refused, never a traceback."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from edgewise import calib_data
from edgewise.__main__ import main
from edgewise.errors import EdgewiseError
from edgewise.models import ModelError
from edgewise.network import checkpoint, surgery
from edgewise.network.architecture import Base, build
from edgewise.network.checkpoint import Checkpoint
from edgewise.report.document import Report
from edgewise.report.rows import Row
from edgewise.store.entries import file_digest
from edgewise.store.json_values import encode
from edgewise.targets import TargetError
from edgewise.verify import card, manifest, recheck
from edgewise.verify.card import Card

DATA = calib_data.load("digits")
ROW = Row(
    step="artifact", target="onnx", params=1, macs=1, bytes=7, accuracy=None, latency=None, verification="runtime",
    undelegated=(), verdict="pass", reason="", seconds=0.0,
)  # fmt: skip

FACTS = {
    "budget": {"budget": "macs", "wanted": 0.5, "before": 2, "left": 1},
    "widths": {"conv": [8, 4]},
    "left_alone": [{"layer": "fc", "width": 10, "stay": 10, "reason": "its channels are the network's outputs"}],
    "operators": {"Conv": 1, "Gemm": 1},
    "coverage": {
        "macs": 2, "undelegated_macs": 0, "undelegated_share": 0.0,
        "by_operator": {"Conv": {"delegated": 1, "undelegated": 0, "macs": 2, "undelegated_macs": 0}},
    },
}  # fmt: skip
"""What steps tell of themselves, in some of its forms."""

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
HOSTILE = st.sampled_from(
    ["\ud800", "\x1b[2J", "\u202e", "<script>", "x" * 5000, 10**400, 2**63, -(2**63), 1e308, 5e-324, -0.0, "\0", "a\nb"]
)
"""What no writer of ours writes, and JSON can hold."""

TEXTS = (
    "",
    '{"a": 1, "a": 2}',
    "{",
    "[]",
    "null",
    "1e999",
    "NaN",
    '"text"',
    "[" * 20_000,
    '{"a":' * 20_000,
    "\ufeff{}",
    "9" * 5000,
    "\x00" * 9,
)


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON document, as the keys that lead there."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def put(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    changed = json.loads(json.dumps(document))
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    return changed


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with its card; its runtime answers nothing."""
    path = tmp_path_factory.mktemp("cards") / "net.onnx"
    path.write_bytes(b"network")
    kept = Card(
        target="onnx", sha256=file_digest(path), recipe="r", model="m", data_digest=DATA.digest, seed=0,
        input_shape=(1, 8, 8), mean=(0.5,), std=(0.5,), classes=DATA.classes, max_drop=0.02,
        row=dataclasses.replace(ROW, facts={"at_other_sizes": [
            {"height": 9, "width": 9, "top1": 1.0, "agreement": {"top1": 1.0, "max_abs": 0.0, "n": 540}}]}),
        sizes=((9, 9),), answers=((0.0,) * 10,),
    )  # fmt: skip
    card.path_of(path).write_text(json.dumps(encode(kept)), encoding="utf-8")
    path.with_suffix(".document").write_text(json.dumps(encode(kept)), encoding="utf-8")
    return path


@contextlib.contextmanager
def zeros(target: str, path: Path) -> Iterator[Any]:
    yield lambda images: torch.zeros(len(images), 10)


def read(file: Path, text: str, size: tuple[int, int] | None) -> str:
    """What becomes of a card that was made to fit its file: ``caught``, or ``harmless`` where the file is still judged."""
    card.path_of(file).write_text(text, encoding="utf-8", errors="surrogatepass")
    manifest.write(file, "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recheck, "open_isolated", zeros)
        try:
            found = recheck.recheck_file(file, "digits", size=size)
        except (EdgewiseError, TargetError):
            return "caught"
    return "caught" if found.verdict != "pass" else "harmless"


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_texts_that_are_no_card(file: Path, text: str, tally: Any) -> None:
    assert read(file, text, None) == "caught"
    tally("texts that are no card")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_cards_with_another_value_in_any_place(file: Path, tally: Any, data: st.DataObject) -> None:
    document = json.loads(file.with_suffix(".document").read_text(encoding="utf-8"))
    place = data.draw(st.sampled_from(list(places(document))))
    changed = put(document, place, data.draw(JSON | HOSTILE))
    size = data.draw(st.sampled_from([None, (9, 9)]))
    tally("a card with another value in one place", read(file, json.dumps(changed), size))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a network with a layer replaced."""
    folder = tmp_path_factory.mktemp("network")
    base = Base("tiny_resnet", 10, 1)
    model = build(base).eval()
    name = next(n for n, module in model.named_modules() if isinstance(module, nn.Conv2d) and module.bias is None)
    old = model.get_submodule(name)
    assert isinstance(old, nn.Conv2d)
    fields = {
        "in_channels": old.in_channels,
        "out_channels": old.out_channels,
        "kernel_size": [3, 3],
        "padding": [1, 1],
    }
    model = surgery.apply(model, surgery.Replace({name: {"type": "Conv2d", "args": fields}}))
    checkpoint.save(Checkpoint(base, model), folder)
    assert checkpoint.load(folder).base == base
    return folder


def loaded(folder: Path) -> str:
    try:
        checkpoint.load(folder)
    except (EdgewiseError, ModelError) as error:
        assert str(error)
        return "caught"
    return "harmless"


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_texts_that_describe_no_network(network: Path, tmp_path: Path, text: str, tally: Any) -> None:
    folder = shutil.copytree(network, tmp_path / "network")
    (folder / "model.json").write_text(text, encoding="utf-8")
    assert loaded(folder) == "caught"
    tally("texts that describe no network")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_networks_with_another_value_in_any_place(network: Path, tally: Any, data: st.DataObject) -> None:
    place = network / "model.json"
    text = place.read_text(encoding="utf-8")
    document = json.loads(text)
    where = data.draw(st.sampled_from(list(places(document))))
    place.write_text(json.dumps(put(document, where, data.draw(JSON))), encoding="utf-8")
    try:
        tally("a network's description with another value in one place", loaded(network))
    finally:
        place.write_text(text, encoding="utf-8")


def test_tensors_cut_flipped_and_of_other_kinds(network: Path, tmp_path: Path, many: bool, tally: Any) -> None:
    draw = random.Random(5)
    content = (network / "model.safetensors").read_bytes()
    folder = shutil.copytree(network, tmp_path / "network")
    place = folder / "model.safetensors"
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(200 if many else 25):
        changed = bytearray(content)
        changed[draw.randrange(header)] ^= 1 << draw.randrange(8)
        place.write_bytes(changed)
        tally("a bit flipped in the head of a network's tensors", loaded(folder))
        place.write_bytes(content[: draw.randrange(len(content))])
        assert loaded(folder) == "caught"
        tally("a network's tensors cut")
    tensors = {"conv.weight": torch.zeros(3)}
    for odd in (tensors, {}, {"": torch.zeros(1)}):
        save_file(odd, place)
        assert loaded(folder) == "caught"
        tally("tensors of another network")


def whole_report() -> dict[str, Any]:
    rows = [
        dataclasses.replace(ROW, step="prune", target=None, facts=FACTS),
        dataclasses.replace(ROW, facts=FACTS, verdict="not-checked"),
    ]
    return Report(recipe={"name": "r", "targets": ["onnx"]}, environment={"cpu": "c"}, rows=rows).to_json()


def test_a_report_without_its_files_is_shown_and_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(whole_report()), encoding="utf-8")
    assert main(["report", str(tmp_path)]) == 1


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_reports_with_another_value_in_any_place(
    tmp_path_factory: pytest.TempPathFactory, tally: Any, data: st.DataObject
) -> None:
    """The whole command: read, written again where devices sent something, laid out as a page, printed."""
    document = whole_report()
    changed = put(document, data.draw(st.sampled_from(list(places(document)))), data.draw(JSON | HOSTILE))
    folder = tmp_path_factory.mktemp("report")
    (folder / "report.json").write_text(json.dumps(changed), encoding="utf-8")
    status = main(["report", str(folder)])
    assert status in (1, 2)  # it names no file
    tally("a report with another value in one place", "caught" if status == 2 else "harmless")

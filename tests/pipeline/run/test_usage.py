"""The page of code beside a file: the Python in it runs as it stands and answers as the file does."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgewise.images.preprocess import Fed, Preprocess
from edgewise.images.wrapper import Wrapper
from edgewise.report.rows import Row
from edgewise.run.usage import describe_usage, usage_path, write_usage
from edgewise.targets import MissingBackend, get
from edgewise.verify.card import Card, path_of

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 3 * 5, 3)).eval()


def card(target: str, names: tuple[str, str] | None = None, **changes: Any) -> Card:
    row = Row(
        step="artifact", target=target, params=1, macs=1, bytes=1, accuracy=None, latency=None, verification="runtime",
        undelegated=(), verdict="pass", reason="", seconds=1.0, precision="float32",
    )  # fmt: skip
    told: dict[str, Any] = {"shape": [1, 3, 8, 12], "dtype": "float32", "meaning": "normalised"}
    plain = Card(
        target=target, sha256="", recipe="r", model="net.py:build", data_digest="", seed=0, input_shape=(3, 8, 12),
        mean=MEAN, std=STD, classes=("ant", "bee", "cat"), max_drop=0.01, row=row,
        input=told | ({"name": names[0]} if names else {}),
        output={"shape": [1, 3], "dtype": "float32", "meaning": "logits"} | ({"name": names[1]} if names else {}),
    )  # fmt: skip
    return replace(plain, **changes)


@pytest.mark.parametrize("fed", ["normalised", "channels-last"])
@pytest.mark.parametrize("target", ["onnx", "xnnpack", "litert"])
def test_the_python_code_answers_as_the_network_does(target: str, fed: Fed, tmp_path: Path) -> None:
    try:
        found = get(target)
    except MissingBackend as missing:
        pytest.skip(str(missing))
    wrapper = Wrapper(preprocess=Preprocess(fed=fed), mean=MEAN, std=STD)
    path = tmp_path / f"model{found.suffix}"
    get(target).export(torch.export.export(wrapper.around(network()), (wrapper.example((3, 8, 12)),)), path)
    kept = card(target, found.tensors(path) if found.tensors else None, fed=fed)
    write_usage(path, kept)
    path_of(path).write_text('{"classes": ["ant", "bee", "cat"]}', encoding="utf-8")
    picture = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "image.png")

    (code,) = re.findall(r"```python\n(.*?)```", usage_path(path).read_text(encoding="utf-8"), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    with torch.no_grad():
        wanted = network()(((torch.from_numpy(picture).permute(2, 0, 1) / 255 - mean) / std)[None])[0]
    name, _, numbers = done.stdout.strip().splitlines()[-1].partition(" ")
    assert name == ("ant", "bee", "cat")[int(wanted.argmax())]
    assert np.allclose(np.fromstring(numbers.strip("[]"), sep=" "), wanted.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("suffix", "languages"),
    [
        (".onnx", ["python", "cpp", "kotlin", "swift"]),
        (".pte", ["python", "cpp", "kotlin", "swift"]),
        (".mlpackage", ["python", "swift"]),
        (".tflite", ["python", "kotlin"]),
        (".ethosu", []),
    ],
)
@pytest.mark.parametrize("fed", ["normalised", "channels-last", "bytes"])
def test_every_runtime_s_languages_are_there_with_the_file_s_own_names(
    suffix: str, languages: list[str], fed: Any
) -> None:
    shape = [1, 3, 8, 12] if fed == "normalised" else [1, 8, 12, 3]
    told = card("any", ("pixels", "scores"), fed=fed)
    text = describe_usage(Path(f"m{suffix}"), replace(told, input=dict(told.input) | {"shape": shape}))
    assert re.findall(r"```(\w+)\n", text) == languages
    assert "| input | pixels |" in text and "| output | scores |" in text and f"`m{suffix}.card.json`" in text
    for language, code in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL):
        braces = code.count("{") == code.count("}") and code.count("(") == code.count(")")
        assert braces, language
        if suffix in (".onnx", ".mlpackage"):
            assert "pixels" in code, language
        if language == "python":
            compile(code, "usage", "exec")
        elif fed != "bytes":
            assert "[0.4, 0.5, 0.6]" in code and "[0.2, 0.25, 0.5]" in code, language
            assert ("channels last" in code) == (fed == "channels-last"), language


def test_one_mean_serves_every_channel() -> None:
    text = describe_usage(Path("m.onnx"), card("onnx", mean=(0.5,), std=(0.5,)))
    assert "np.float32([0.5, 0.5, 0.5])" in text

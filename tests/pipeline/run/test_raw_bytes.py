"""A file that is fed a camera's bytes at any size of a range: through the run, re-checked, timed, and with a fault planted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from edgewise.commands.side_by_side import compare_speed
from edgewise.errors import RequestError
from edgewise.files import lower
from edgewise.images.preprocess import Preprocess
from edgewise.images.wrapper import Wrapper
from edgewise.measure.agreement import compare_answers
from edgewise.measure.answers import compute_logits
from edgewise.models import get
from edgewise.recipes import demo
from edgewise.report.watch import Watch
from edgewise.run import run
from edgewise.run.job import Job, resolve_recipe
from edgewise.run.request import sizes_from_arguments, with_packaging
from edgewise.store.entries import file_digest
from edgewise.store.json_values import encode
from edgewise.verify import card, gates, manifest, parity
from edgewise.verify.gates import Limits
from edgewise.verify.recheck import recheck_file

LIMITS = Limits(max_drop=1.0, max_latency_ratio=1_000)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Any]:
    """An untrained network, written to ONNX as it is; its classes are not the digits', and need not be."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("bytes")
    torch.manual_seed(0)
    network = get("tiny_resnet").build().eval()
    with torch.no_grad():
        network.linear.weight.mul_(20)  # answers far enough apart for the classes to vary
    save_file(network.state_dict(), folder / "weights.safetensors")
    recipe = dataclasses.replace(
        demo(), name="bytes", stages=(),
        candidates=(), quantize=None, targets=("onnx",), limits=LIMITS,
        weights=str(folder / "weights.safetensors"),
    )  # fmt: skip
    recipe = with_packaging(recipe, sizes_from_arguments(None, [8, 16]), {"fed": "bytes", "softmax": True})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEWISE_STORE", str(folder / "store"))
        job = resolve_recipe(recipe, folder / "out")
        return job, run(job, Watch(quiet=True))


def test_the_row_tells_of_the_sizes_that_were_not_traced(done: tuple[Job, Any]) -> None:
    row = done[1].rows[-1]
    assert row.verdict == "pass" and row.agreement.top1 == 1.0 and row.agreement.max_abs < 1e-4
    tried = row.facts["at_other_sizes"]
    assert [(entry["height"], entry["width"]) for entry in tried] == [(10, 13), (16, 16)]
    for entry in tried:
        assert entry["agreement"]["n"] == 512 and entry["agreement"]["top1"] == 1.0
        assert entry["agreement"]["max_abs"] < 1e-4
    assert "at 10×13 same class as the PyTorch model" in row.reason
    assert row.facts["operators"]["Softmax"] == row.facts["operators"]["Cast"] == 1


def artifact(job: Job) -> Path:
    return next((job.out / "artifacts" / "onnx").glob("*.onnx"))


def test_the_file_says_what_it_takes_and_what_its_answers_are(done: tuple[Job, Any]) -> None:
    import onnx

    model = onnx.load(artifact(done[0]))
    (image,) = model.graph.input
    sides = [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim]
    assert (sides, image.type.tensor_type.elem_type) == ([1, "height", "width", 1], onnx.TensorProto.UINT8)
    assert json.loads({p.key: p.value for p in model.metadata_props}["labels"]) == [str(digit) for digit in range(10)]


def test_the_card_holds_the_input_and_verify_feeds_bytes(done: tuple[Job, Any]) -> None:
    path = artifact(done[0])
    kept = card.read(path)
    assert (kept.fed, kept.softmax, kept.ranged, kept.sizes) == ("bytes", True, True, ((16, 16),))
    assert len(kept.answers) == card.PROBES and sum(kept.answers[0]) == pytest.approx(1, abs=1e-5)
    found = recheck_file(path, "digits")
    assert (found.verdict, found.fed, found.size) == ("pass", "bytes", (8, 8))
    other = recheck_file(path, "digits", size=(11, 9))
    assert other.accuracy is not None and other.accuracy.n == 540


def test_its_layers_are_held_against_the_network_with_what_it_does_itself(done: tuple[Job, Any]) -> None:
    found = parity.inspect(artifact(done[0]), "digits")
    assert found.first is None, found.sentence
    assert {"linear", "softmax"} <= {layer.operation for layer in found.layers}
    assert all(layer["quantization_db"] is None for layer in found.to_json()["layers"])


def test_bench_times_bytes_at_a_size_that_the_file_takes(done: tuple[Job, Any]) -> None:
    path = artifact(done[0])
    small, large = (compare_speed([path], [1], 0.05, size)[0].p50_ms for size in (None, (16, 16)))
    assert 0 < small < large
    with pytest.raises(RequestError, match="other image sizes than 17×8"):
        compare_speed([path], [1], 0.05, (17, 8))


@pytest.mark.parametrize("fault", [{"mean": (0.6,)}, {"std": (0.188,)}])
def test_a_wrong_constant_is_caught_by_the_run_and_by_verify(
    done: tuple[Job, Any], tmp_path: Path, fault: dict[str, tuple[float, ...]]
) -> None:
    job, path = done[0], artifact(done[0])
    kept = card.read(path)
    right = Wrapper(preprocess=Preprocess(fed="bytes", softmax=True), mean=kept.mean, std=kept.std)
    order = lower.Order(
        card.checkpoint_of(path, kept), "onnx", tmp_path, "planted", job.recipe.packaging,
        dataclasses.replace(right, **fault),
    )  # fmt: skip
    lower.lower_checkpoint(order)
    planted = tmp_path / "planted.onnx"
    row = dataclasses.replace(kept.row, bytes=planted.stat().st_size)
    fields = dataclasses.replace(kept, sha256=file_digest(planted), golden=None, row=row)
    card.path_of(planted).write_text(json.dumps(encode(fields)), encoding="utf-8")
    manifest.write(planted, "")
    found = recheck_file(planted, "digits")
    assert found.verdict == "fail"
    assert "fed, or prepares its images, otherwise" in found.reason or "top-1 was" in found.reason
    (target,) = job.targets
    assert target.load is not None
    answers, wanted = (compute_logits(target.load(p, 1), job.data.test, job.spec, fed="bytes") for p in (planted, path))
    agreement = compare_answers(answers.numpy(), wanted.log().numpy(), kept.row.precision or "float32", softmax=True)
    assert gates.on_agreement(agreement, job.recipe.limits).verdict == "fail"

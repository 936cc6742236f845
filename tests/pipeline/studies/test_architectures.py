"""Every architecture, reduced, goes the whole way; what one cannot do is declared beside it, and is really so.

Pruned, substituted, trained, folded, quantized in training, captured; then a file for each target, in float and int8,
that answers as the PyTorch model does.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from edgewise import models, targets
from edgewise.errors import EdgewiseError, RequestError
from edgewise.network import captured, surgery
from edgewise.network.captured import Prepare
from edgewise.recipes import demo
from edgewise.run.job import resolve_recipe
from edgewise.stage import Context
from edgewise.stages import quantize
from edgewise.stages.finetune import Finetune
from edgewise.stages.fold import Fold
from edgewise.stages.prune import Prune
from edgewise.stages.quantize import Quantize
from edgewise.stages.separate import Separate
from edgewise.stages.training.augment import Augment
from edgewise.stages.training.settings import Training
from edgewise.studies.architectures.network import (
    Prepared,
    answer_images,
    calibrate_network,
    capture_network,
    compare_logits,
    prepare_network,
)

FAMILIES = (
    "alexnet", "convnext_tiny", "efficientnet_b0", "googlenet", "lenet5", "mobilenet_v2", "mobilenet_v3_small",
    "mobilevit_xxs", "resnet18", "resnet20", "squeezenet1_1", "tiny_resnet", "vgg11_bn",
    "vit_b_16", "vit_tiny_patch16_224",
)  # fmt: skip
QUICK = {("lenet5", "onnx"), ("lenet5", "coreml")}
GRID = targets.Grid(weight_bits=7)


def by_family() -> list[object]:
    return [pytest.param(name, marks=[] if name in FAMILIES else [pytest.mark.slow]) for name in models.names()]


def files() -> list[object]:
    pairs = [(name, target) for name in models.names() for target in targets.names()]
    return [pytest.param(*pair, marks=[] if pair in QUICK else [pytest.mark.slow]) for pair in pairs]


@cache
def small(name: str) -> Prepared:
    prepared = prepare_network(models.get(name), small=True, images=4)
    keep_alive(prepared)
    return prepared


@torch.no_grad()
def keep_alive(prepared: Prepared) -> None:
    """Where nothing normalises, scale each layer's weights so that it gives values of variance one.

    After Mishkin and Matas (2015, arXiv 1511.06422). In a deep plain network (VGG) they would fade to 1e-5, below the
    smallest step that a grid may have.
    """
    modules = list(prepared.model.modules())
    if any(isinstance(module, nn.BatchNorm2d | nn.LayerNorm) for module in modules):
        return
    layers = [module for module in modules if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(_to_variance_one) for layer in layers]
    prepared.model(torch.cat(prepared.normalised("train")))
    for hook in hooks:
        hook.remove()


def _to_variance_one(layer: nn.Module, _: object, output: Tensor) -> Tensor:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    scale = output.std()
    layer.weight /= scale
    if layer.bias is not None:
        layer.bias /= scale
    return output / scale


def images(prepared: Prepared) -> Tensor:
    return torch.cat(prepared.normalised("train"))


def step(model: nn.Module, batch: Tensor) -> list[str]:
    """One backward pass; the parameters that got no gradient."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    found = model(batch)
    labels = torch.arange(len(batch))
    outputs = found if isinstance(found, tuple) else (found,)
    torch.stack([F.cross_entropy(output, labels) for output in outputs]).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    return [key for key, parameter in model.named_parameters() if parameter.grad is None]


def compressed(prepared: Prepared) -> nn.Module:
    """Pruned and substituted, as far as the architecture says that it can be."""
    model, cannot = prepared.model, prepared.spec.cannot
    if "prune" not in cannot:
        model = Prune(channels=0.75, scope="layer", round_to=1)(model, prepared.context)
    if "separate" not in cannot:
        with tempfile.TemporaryDirectory() as scratch:
            ctx = replace(prepared.context, scratch=Path(scratch))
            model = Separate(measure_time=False, images=4, positions=64, sweeps=1, max_error=10, max_layers=2)(
                model, ctx
            )
    return model


def kinds(model: nn.Module) -> list[str]:
    """What only training needs: dropout, stochastic depth, side classifiers."""
    aids = ("Dropout", "StochasticDepth", "Auxiliary")
    return [
        f"{name} {type(m).__name__} {getattr(m, 'p', '')}"
        for name, m in model.named_modules()
        if type(m).__name__ in aids
    ]


@pytest.mark.parametrize("name", by_family())
def test_the_way_to_the_captured_graph(name: str) -> None:
    prepared = small(name)
    model = compressed(prepared)
    assert len(surgery.history(model)) + len({"prune", "separate"} & prepared.spec.cannot.keys()) == 2
    assert kinds(model) == kinds(prepared.model), "training aids must survive the surgery as they are"
    assert not step(model.train(), images(prepared)[:2])
    folded = Fold()(model.eval(), prepared.context)
    reference = answer_images(folded, prepared.images)
    assert compare_logits(answer_images(model, prepared.images), reference).error < 1e-3
    trained = Prepare(GRID.to_json(), prepared.shape).capture(folded)
    with torch.no_grad():
        trained(torch.cat(prepared.calibration))
    assert not step(trained, images(prepared)[:2]), "a captured graph holds nothing that inference does not use"
    integers = captured.convert(trained)
    assert compare_logits(answer_images(integers, prepared.images), reference).error < 0.9
    program = capture_network(integers, prepared.shape)
    assert (
        compare_logits(
            answer_images(program.module(check_guards=False), prepared.images), answer_images(integers, prepared.images)
        ).error
        < 1e-4
    )
    assert not [n.name for n in program.graph.nodes if "bernoulli" in str(n.target) or "batch_norm" in str(n.target)]


FLOAT_ERROR = {"coreml": 0.03, "coreml_delegate": 0.03}
"""Of a file's logits against the PyTorch model's, where the file keeps float16; elsewhere 0.001."""


@pytest.mark.parametrize(("name", "target"), files())
def test_the_files_answer_as_the_model(name: str, target: str, tmp_path: Path) -> None:
    try:
        chosen = targets.get(target)
    except targets.MissingBackend as missing:
        pytest.skip(str(missing))
    prepared = small(name)
    if target in prepared.spec.cannot:
        pytest.skip(f"declared: {prepared.spec.cannot[target]}; tested below")
    graph = calibrate_network(prepared, chosen.quantizer(chosen.grids[0]))
    # Rounding apart, by a step here and there, goes through the layers as the quantization's own noise does.
    coarse = compare_logits(answer_images(graph, prepared.images), prepared.logits).error
    limits = {"float": FLOAT_ERROR.get(target, 1e-3), "int8": 0.05 + coarse}
    for kind, model in (("float", prepared.folded), ("int8", graph)):
        path = tmp_path / f"{kind}{chosen.suffix}"
        artifact = chosen.export(capture_network(model, prepared.shape), path, targets.USUAL)
        evaluator = chosen.load(path, 1) if chosen.load else chosen.reference and chosen.reference(path)
        if evaluator is None:
            assert path.exists(), "a target that nothing here can run or evaluate has at least written its file"
            continue
        wanted = answer_images(model, prepared.images)
        found = compare_logits(answer_images(evaluator, prepared.images), wanted)
        if found.error >= limits[kind] and (kind == "int8" or target in FLOAT_ERROR):
            # A deep network without training magnifies any rounding: it may differ as far as it moves itself.
            limits[kind] += compare_logits(answer_images(model, jittered(prepared.images)), wanted).error
        assert found.error < limits[kind], (kind, found, limits)
        assert kind == "float" or artifact.precision == "int8"


def jittered(images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Moved by a thousandth of a standard deviation, about what float16 rounds a value by."""
    draw = torch.Generator().manual_seed(0)
    return tuple(image + 1e-3 * torch.randn(image.shape, generator=draw) for image in images)


DECLARED = [(name, what) for name, cannot in models.limits().items() for what in cannot]


@pytest.mark.slow
def test_what_is_declared_impossible_is(tmp_path: Path) -> None:
    """Tried in spite of the declaration: it fails, or the declaration is out of date."""
    for name, what in DECLARED:
        prepared = small(name)
        free = replace(prepared.context, spec=replace(prepared.spec, cannot={}))
        with pytest.raises((EdgewiseError, ValueError, RuntimeError, NotImplementedError)):
            attempt(what, prepared, free, tmp_path / f"{name}-{what}")


def attempt(what: str, prepared: Prepared, ctx: Context, path: Path) -> None:
    if what == "prune":
        Prune(channels=0.75, scope="layer", round_to=1)(prepared.model, ctx)
    elif what == "separate":
        Separate(measure_time=False, images=4, positions=64, sweeps=1, max_error=10)(
            prepared.model, replace(ctx, scratch=path.parent)
        )
    elif what == "quantize":
        calibrate_network(prepared, targets.get("xnnpack").quantizer(GRID))
    else:
        chosen = targets.get(what)
        chosen.export(capture_network(prepared.folded, prepared.shape), path.with_suffix(chosen.suffix), targets.USUAL)


@pytest.mark.parametrize("what", ["prune", "separate", "quantize", "onnx"])
def test_a_declaration_that_is_out_of_date_is_found(what: str, tmp_path: Path) -> None:
    """LeNet-5 can do all this: what the test above would then do is nothing, where it wants an error."""
    attempt(what, small("lenet5"), small("lenet5").context, tmp_path / "net")


FAMILY = '''"""A family whose network declares what it cannot do."""

from torch import nn
from edgewise.models import register

_CANNOT = {"prune": "its one layer is its classifier", "coreml": "it has an operator that Core ML lacks"}


@register(input_shape=(1, 8, 8), num_classes=10, classifier="1", cannot=_CANNOT)
def modest(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """A network of one layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))
'''


@pytest.fixture
def modest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "modest.py").write_text(FAMILY, encoding="utf-8")
    monkeypatch.setattr(models, "_FOLDER", tmp_path)
    monkeypatch.setattr(models, "__path__", [str(tmp_path), *models.__path__])
    models._read_index.cache_clear()
    yield
    models._read_index.cache_clear()
    models._REGISTRY.pop("modest", None)
    sys.modules.pop("edgewise.models.modest", None)


def test_a_declaration_is_listed_and_refused_before_anything_runs(
    modest: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgewise.__main__ import main

    assert main(["list", "models"]) == 0
    listed = capsys.readouterr().out
    assert "cannot prune: its one layer is its classifier" in listed
    assert main(["list", "models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["cannot"] == dict(models.get("modest").cannot)
    recipe = replace(demo(), model="modest")
    with pytest.raises(RequestError, match="modest cannot go through prune: its one layer"):
        resolve_recipe(recipe)
    with pytest.raises(RequestError, match="modest cannot go through coreml"):
        resolve_recipe(replace(recipe, stages=()))


def test_declarations_name_stages_and_targets_with_reasons() -> None:
    known = {"prune", "separate", "quantize", *targets.names()}
    for name, cannot in models.limits().items():
        assert models.get(name).cannot == cannot
        assert set(cannot) <= known
        assert all(len(reason.split()) > 3 for reason in cannot.values())


# --- training aids ---


def training(**settings: object) -> Training:
    plain = Augment(crop=0, flip=False)
    return Training(epochs=1, lr=0.01, batch_size=4, precision="32-true", augment=plain, **settings)  # type: ignore[arg-type]


def context(prepared: Prepared, scratch: Path) -> Context:
    return replace(prepared.context, scratch=scratch, grid=GRID)


def test_side_classifiers_go_through_every_stage_and_stay_out_of_the_graph(tmp_path: Path) -> None:
    prepared = small("googlenet")
    ctx = context(prepared, tmp_path)
    model = compressed(prepared)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tuned = Finetune(training=training())(model, ctx)
    moved = [key for key, value in tuned.state_dict().items() if not torch.equal(value, before[key])]
    assert any(key.startswith("aux1.fc2") for key in moved), "the side classifiers' losses train them"
    assert "aux2.conv.conv.weight" in moved
    (tmp_path / "quantize").mkdir()
    folded = Fold()(tuned, ctx)
    graph = Quantize(training=training(), calibrate=4)(folded, replace(ctx, scratch=tmp_path / "quantize"))
    assert isinstance(graph, GraphModule)
    assert not [key for key in graph.state_dict() if key.startswith("aux")]
    assert not [node for node in graph.graph.nodes if "aux" in node.name]


def test_without_their_weight_side_classifiers_learn_nothing(tmp_path: Path) -> None:
    prepared = small("googlenet")
    tuned = Finetune(training=training(auxiliary=0.0, weight_decay=0.0))(prepared.model, context(prepared, tmp_path))
    assert torch.equal(tuned.aux1.fc2.weight, prepared.model.aux1.fc2.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_tiny"])
def test_stochastic_depth_and_dropout_act_while_tuning_only(name: str, tmp_path: Path) -> None:
    """Tuning makes the network random, evaluation and quantization-aware training do not."""
    prepared = small(name)
    model = compressed(prepared)
    for module in model.modules():
        if type(module).__name__ == "StochasticDepth":
            module.p = 0.5
    batch = images(prepared)
    with torch.no_grad():
        assert not torch.equal(answer_images(model.train(), (batch,)), answer_images(model, (batch,)))
        assert torch.equal(answer_images(model.eval(), (batch,)), answer_images(model, (batch,)))
    graph = Prepare(GRID.to_json(), prepared.shape).capture(Fold()(model, prepared.context))
    graph(batch)
    quantize.freeze_ranges(graph)
    with torch.no_grad():
        assert torch.equal(graph(batch), graph(batch))
    assert not [node for node in graph.graph.nodes if "bernoulli" in str(node.target)]


def test_dropout_is_written_into_no_file() -> None:
    program = capture_network(small("alexnet").folded, small("alexnet").shape)
    probabilities = [node.args[2] for node in program.graph.nodes if "dropout" in str(node.target)]
    assert probabilities and not any(probabilities), "captured in evaluation: there, but idle"


def test_dropout_keeps_its_probability_through_tuning(tmp_path: Path) -> None:
    prepared = small("mobilenet_v3_small")
    tuned = Finetune(training=training())(prepared.model, context(prepared, tmp_path))
    assert [m.p for m in tuned.modules() if isinstance(m, nn.Dropout)] == [0.2]
    norms = [(m.eps, m.momentum) for m in tuned.modules() if isinstance(m, nn.BatchNorm2d)]
    assert set(norms) == {(1e-3, 0.01)}


def test_pruning_measures_of_data_pass_by_side_classifiers() -> None:
    prepared = small("googlenet")
    for measure in ("taylor", "activation"):
        pruned = Prune(channels=0.75, scope="layer", round_to=1, importance=measure, images=2)(  # type: ignore[arg-type]
            prepared.model, prepared.context
        )
        assert isinstance(pruned.train()(images(prepared)[:2]), tuple)
        assert pruned.aux1.fc1.weight.shape == prepared.model.aux1.fc1.weight.shape  # type: ignore[union-attr]

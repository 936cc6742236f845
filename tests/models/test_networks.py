"""Every architecture, reduced: forward, backward, export, other image sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise import models

CLASSES = 5
ONE_EACH = (
    "alexnet",
    "convnext_tiny",
    "efficientnet_b0",
    "googlenet",
    "lenet5",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilevit_xxs",
    "resnet18",
    "resnet20",
    "resnet50",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "tiny_resnet",
    "vgg11_bn",
    "vit_b_16",
    "vit_tiny_patch16_224",
)
OTHERS = tuple(name for name in models.names() if name not in ONE_EACH)
OF_ONE_SIZE = ("vit_b_16", "vit_tiny_patch16_224", "vit_small_patch16_224")


def _small(name: str) -> nn.Module:
    torch.manual_seed(0)
    spec = models.get(name)
    return spec.build(num_classes=CLASSES, **spec.small)


def _images(name: str, count: int = 2, more: int = 0) -> Tensor:
    spec = models.get(name)
    channels, height, width = spec.small_input or spec.input_shape
    return torch.randn(count, channels, height + more, width + 2 * more, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", models.names())
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = _small(name).train()
    found = model(_images(name))
    outputs = found if isinstance(found, tuple) else (found,)
    assert all(output.shape == (2, CLASSES) for output in outputs)
    labels = torch.tensor([0, 1])
    torch.stack([F.cross_entropy(output, labels) for output in outputs]).sum().backward()
    missing = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("name", [name for name in models.names() if name not in OF_ONE_SIZE])
def test_another_image_size(name: str) -> None:
    model = _small(name).eval()
    with torch.no_grad():
        assert model(_images(name, count=1, more=8)).shape == (1, CLASSES)


@pytest.mark.parametrize("name", OF_ONE_SIZE)
def test_transformers_refuse_another_image_size(name: str) -> None:
    with pytest.raises(ValueError, match="built for 4 patches, found 9"):
        _small(name)(torch.zeros(1, 3, 48, 48))
    with pytest.raises(ValueError, match="multiple of 16, found 40"):
        models.get(name).build(image_size=40)


@pytest.mark.parametrize("name", [*ONE_EACH, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_export(name: str) -> None:
    """The exported graph has the module's own numbers, and none of the operators that only training needs."""
    model, images = _small(name).eval(), _images(name, count=1)
    program = torch.export.export(model, (images,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), model(images), rtol=1e-4, atol=1e-5)
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [operator for operator in operators if "bernoulli" in operator or "adaptive" in operator]


@pytest.mark.parametrize("name", ["alexnet", "mobilenet_v2", "resnet18", "resnet20", "squeezenet1_1"])
def test_export_at_a_range_of_sizes(name: str) -> None:
    """Traced at one size, run at others."""
    model = _small(name).eval()
    image = torch.randn(1, 3, 96, 96)
    sides = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (image,), dynamic_shapes=(sides,))
    for height, width in ((96, 96), (128, 112), (160, 144)):
        other = torch.randn(1, 3, height, width)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(other), model(other), rtol=1e-4, atol=1e-5)


def test_googlenet_side_classifiers_are_for_training_only() -> None:
    model, images = _small("googlenet"), _images("googlenet")
    outputs = model.train()(images)
    assert type(outputs).__name__ == "GoogLeNetOutputs"
    assert outputs._fields == ("logits", "aux_logits2", "aux_logits1")
    assert isinstance(model.eval()(images), Tensor)
    before = model(images)
    model.drop_auxiliary()
    torch.testing.assert_close(model(images), before)
    assert isinstance(model.train()(images), Tensor)
    assert not [key for key in model.state_dict() if key.startswith("aux")]


def test_stochastic_depth_rises_through_the_blocks() -> None:
    """EfficientNet: 0.2 times the block's place; B0 has 16 blocks, the first is never dropped."""
    with torch.device("meta"):
        model = models.get("efficientnet_b0").build()
    rates = [m.p for m in model.modules() if type(m).__name__ == "StochasticDepth"]
    assert rates == pytest.approx([0.2 * place / 16 for place in range(16)])

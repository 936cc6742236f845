"""A quantized network's constants fit float16, and are those of the files made from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgewise.network import float16_constants
from edgewise.network.captured import Prepare, convert
from edgewise.targets import Grid

SHAPE = (3, 8, 8)


def images() -> Tensor:
    return torch.randn(32, *SHAPE, generator=torch.Generator().manual_seed(1))


def is_half(values: Tensor) -> bool:
    return torch.equal(values, values.half().float())


@pytest.fixture(params=[False, True], ids=["affine", "symmetric"])
def prepared(request: pytest.FixtureRequest) -> torch.fx.GraphModule:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    graph = Prepare(Grid(symmetric_activations=request.param).to_json(), SHAPE).capture(net)
    with torch.no_grad():
        graph(images())
    return graph


def constants(prepared: torch.fx.GraphModule) -> dict[str, Tensor]:
    found = {name: value for name, value in prepared.named_buffers() if name.endswith(".scale")}
    return found | {name: value for name, value in prepared.named_parameters() if "bias" in name}


def test_scales_and_biases_fit_and_weights_stay(prepared: torch.fx.GraphModule) -> None:
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    assert not all(is_half(value) for value in constants(prepared).values())
    float16_constants.round_prepared(prepared)
    assert all(is_half(value) for value in constants(prepared).values())
    for name, value in prepared.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=2.0**-11, atol=0)
        if "weight" in name and value.dim() > 1:
            assert torch.equal(value, before[name])


def test_what_is_converted_holds_the_same_numbers(prepared: torch.fx.GraphModule) -> None:
    from edgewise.stages.quantize import freeze_ranges

    freeze_ranges(prepared)
    float16_constants.round_prepared(prepared)
    converted = convert(prepared)
    scales = [n.args[1] for n in converted.graph.nodes if "quantize_per_tensor" in str(n.target)]
    assert scales and all(is_half(torch.tensor(scale)) for scale in scales)
    step = scales[-1]
    with torch.no_grad():
        found, wanted = converted(images()), prepared(images())
    assert float((found - wanted).abs().max()) < 1.01 * step
    assert float(((found - wanted).abs() > step / 2).float().mean()) < 0.02, "a tie may fall the other way"


def test_a_value_out_of_float16s_range_stays() -> None:
    values = torch.tensor([1e-7, 1e6, 0.1, 0.0])
    float16_constants._round_in_place(values)
    assert values.tolist() == [torch.tensor(1e-7).item(), 1e6, torch.tensor(0.1).half().item(), 0.0]

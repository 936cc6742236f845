"""Surgery: changes of structure as data that rebuild a network."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict

import pytest
import torch
from torch import nn

from edgewise.errors import StageError
from edgewise.models._layers import PadShortcut, SeparableConv
from edgewise.network import surgery
from edgewise.network.surgery import Replace, Resize


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def halved() -> nn.Sequential:
    """Channels 1 and 3 of the first convolution taken out by hand."""
    pruned = net()
    conv, norm, last = pruned
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and isinstance(last, nn.Conv2d)
    kept = [0, 2]
    conv.out_channels, norm.num_features, last.in_channels = 2, 2, 2
    conv.weight, conv.bias = nn.Parameter(conv.weight[kept]), nn.Parameter(conv.bias[kept])
    norm.weight, norm.bias = nn.Parameter(norm.weight[kept]), nn.Parameter(norm.bias[kept])
    norm.running_mean, norm.running_var = norm.running_mean[kept], norm.running_var[kept]
    last.weight = nn.Parameter(last.weight[:, kept])
    return pruned


def test_difference_names_what_changed_and_nothing_else() -> None:
    change = surgery.difference(net(), halved())
    assert change.attributes == {"0": {"out_channels": 2}, "1": {"num_features": 2}, "2": {"in_channels": 2}}
    assert change.shapes == {
        "0.weight": [2, 1, 3, 3],
        "0.bias": [2],
        "1.weight": [2],
        "1.bias": [2],
        "1.running_mean": [2],
        "1.running_var": [2],
        "2.weight": [2, 2, 1, 1],
    }


def test_apply_rebuilds_from_json_and_leaves_the_input() -> None:
    before, wanted = net(), halved().eval()
    change = Resize(**json.loads(json.dumps(asdict(surgery.difference(before, wanted)))))
    kept = copy.deepcopy(before.state_dict())
    rebuilt = surgery.apply(before, change).eval()
    rebuilt.load_state_dict(wanted.state_dict(), strict=True)
    images = torch.randn(2, 1, 5, 5)
    assert torch.equal(rebuilt(images), wanted(images))
    assert surgery.history(rebuilt) == (change,) and surgery.history(before) == ()
    assert all(torch.equal(kept[k], t) for k, t in before.state_dict().items())


def test_record_keeps_the_order_and_copies_carry_it() -> None:
    first, second = Resize({}, {}), Replace({})
    model = surgery.record(surgery.record(net(), first), second)
    assert surgery.history(copy.deepcopy(model)) == (first, second)


def test_difference_refuses_other_modules() -> None:
    with pytest.raises(StageError, match="different modules"):
        surgery.difference(net(), nn.Sequential(nn.Conv2d(1, 4, 3)))
    with pytest.raises(StageError, match="different modules"):
        surgery.difference(nn.Sequential(nn.ReLU()), nn.Sequential(nn.Identity()))


def test_replace_builds_nested_modules() -> None:
    separable = {"type": "SeparableConv", "args": {"in_channels": 1, "out_channels": 4, "kernel_size": [3, 3]}}
    sequence = {"type": "Sequential", "children": [{"type": "ReLU"}, {"type": "Identity"}]}
    changed = surgery.apply(net(), Replace({"0": separable, "1": sequence}))
    assert isinstance(changed[0], SeparableConv) and changed[0].depthwise.kernel_size == (3, 3)
    assert [type(m) for m in changed[1]] == [nn.ReLU, nn.Identity]
    assert changed(torch.zeros(1, 1, 5, 5)).shape == (1, 2, 3, 3)


@pytest.mark.parametrize("training", [False, True])
def test_what_is_put_in_is_in_the_mode_of_what_it_replaces(training: bool) -> None:
    separable = {"type": "SeparableConv", "args": {"in_channels": 1, "out_channels": 4, "kernel_size": [3, 3]}}
    changed = surgery.apply(
        net().train(training), Replace({"0": separable, "1": {"type": "Sequential", "children": [separable]}})
    )
    assert {module.training for module in changed.modules()} == {training}


def test_replace_refuses_an_unknown_kind() -> None:
    with pytest.raises(StageError, match=r"'Popen'; known: SeparableConv"):
        surgery.apply(net(), Replace({"0": {"type": "Popen", "args": {}}}))


def test_a_padding_shortcut_is_remapped() -> None:
    before = nn.Sequential(PadShortcut(2, 4))
    after = copy.deepcopy(before)
    assert isinstance(after[0], PadShortcut)
    after[0].select([1], [0, 2])  # sources of the outputs are -1, 0, 1, -1
    change = Resize(**json.loads(json.dumps(asdict(surgery.difference(before, after)))))
    assert change.attributes == {"0": {"in_channels": 1, "source": [-1, 0]}}
    images = torch.randn(1, 1, 4, 4)
    rebuilt = surgery.apply(before, change)
    assert torch.equal(rebuilt(images), after(images)) and rebuilt(images).shape == (1, 2, 2, 2)


def test_an_irregular_map_rebuilds_its_kernel() -> None:
    before = nn.Sequential(PadShortcut(3, 3, stride=1))
    after = copy.deepcopy(before)
    assert isinstance(after[0], PadShortcut)
    after[0].select(None, [2, 0])
    images = torch.randn(1, 3, 2, 2)
    rebuilt = surgery.apply(before, surgery.difference(before, after))
    assert torch.equal(rebuilt(images), images[:, [2, 0]])

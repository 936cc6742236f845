"""Quantized and compressed tensors of Core ML's MIL, by hand and on packages that coremltools compressed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgewise.targets.coreml._compression import OPERATORS
from edgewise.targets.coreml._weights import unpack_bits


def test_packed_indices_run_from_the_least_significant_bit_on() -> None:
    # 2-bit elements 3, 0, 1, 2 fill a byte from the right: 10 01 00 11; the fifth starts the next byte.
    assert unpack_bits(bytes([0b10010011, 0b00000011]), 2, 5).tolist() == [3, 0, 1, 2, 3]
    # 3-bit elements 5, 6, 7: the third is split across the bytes.
    assert unpack_bits(bytes([0b11110101, 0b1]), 3, 3).tolist() == [5, 6, 7]
    assert unpack_bits(bytes([0b10010111]), 4, 2, signed=True).tolist() == [7, -7]


def test_quantize_rounds_halves_to_even_and_clips() -> None:
    x = torch.tensor([-100.0, 0.25, 0.75, 1.0, 100.0])
    found = OPERATORS["quantize"](input=x, scale=0.5, zero_point=3, output_dtype="int8")
    assert found.tolist() == [-128, 3, 5, 5, 127]
    assert found.dtype is torch.int8
    unsigned = OPERATORS["quantize"](input=x, scale=0.5, output_dtype="uint8")
    assert unsigned.tolist() == [0, 0, 2, 2, 200]


def test_dequantize_along_an_axis_does_not_wrap() -> None:
    x = torch.tensor([[-128, 127], [-128, 127]], dtype=torch.int8)
    scale, zero_point = torch.tensor([0.5, 2.0]), torch.tensor([127, -128], dtype=torch.int8)
    rows = OPERATORS["dequantize"](input=x, scale=scale, zero_point=zero_point, axis=0)
    assert rows.tolist() == [[-127.5, 0.0], [0.0, 510.0]]
    columns = OPERATORS["dequantize"](input=x, scale=scale, zero_point=zero_point, axis=1)
    assert columns.tolist() == [[-127.5, 510.0], [-127.5, 510.0]]


def test_affine_weights_have_a_scale_for_each_channel() -> None:
    data = torch.tensor([[1, -2], [3, 4]], dtype=torch.int8)
    found = OPERATORS["constexpr_affine_dequantize"](
        quantized_data=data, scale=torch.tensor([0.5, 2.0]), zero_point=torch.tensor([0, 1], dtype=torch.int8), axis=0
    )
    assert found.tolist() == [[0.5, -1.0], [4.0, 6.0]]


def test_a_scale_covers_its_block() -> None:
    data = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=torch.int8)
    scale, offset = torch.tensor([[1.0, 10.0]]), torch.tensor([[0, 1]], dtype=torch.int8)
    found = OPERATORS["constexpr_blockwise_shift_scale"](data=data, scale=scale, offset=offset)
    assert found.tolist() == [[1, 2, 20, 30], [5, 6, 60, 70]]


def test_one_table_of_packed_indices() -> None:
    found = OPERATORS["constexpr_lut_to_dense"](
        indices=torch.tensor([0b10010011], dtype=torch.uint8), lut=torch.tensor([1.0, 5.0, 9.0, 13.0]), shape=[2, 2]
    )
    assert found.tolist() == [[13, 1], [5, 9]]


def test_a_table_for_each_group_of_rows() -> None:
    lut = torch.tensor([[1.0, 5.0, 9.0, 13.0], [2.0, 10.0, 18.0, 26.0]]).reshape(2, 1, 4, 1)
    indices = torch.tensor([[2, 3], [3, 0], [3, 0], [2, 1]], dtype=torch.uint8)
    found = OPERATORS["constexpr_lut_to_dense"](indices=indices, lut=lut)
    assert found.tolist() == [[9, 13], [13, 1], [26, 2], [18, 10]]


def test_a_table_of_vectors_fills_an_axis() -> None:
    lut = torch.tensor([[1.0, 2.0, 3.0], [7.0, 8.0, 9.0]]).reshape(1, 1, 2, 3)
    indices = torch.tensor([[0, 1]], dtype=torch.uint8)
    find = OPERATORS["constexpr_lut_to_dense"]
    assert find(indices=indices, lut=lut, vector_axis=1).tolist() == [[1, 2, 3, 7, 8, 9]]
    assert find(indices=indices, lut=lut, vector_axis=0).tolist() == [[1, 7], [2, 8], [3, 9]]


def test_a_packed_mask_places_what_is_not_zero() -> None:
    found = OPERATORS["constexpr_sparse_to_dense"](
        nonzero_data=torch.tensor([4.0, 5.0]), mask=torch.tensor([0b01100], dtype=torch.uint8), shape=[5]
    )
    assert found.tolist() == [0, 0, 4, 5, 0]


@pytest.mark.parametrize("kind", ["palettized", "linear int8", "sparse"])
def test_packages_that_coremltools_compressed(kind: str, tmp_path: Path) -> None:
    coremltools = pytest.importorskip("coremltools")
    from edgewise.targets import get

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 10)).eval()
    target = get("coreml")
    assert target.reference is not None
    plain = target.export(torch.export.export(net, (torch.randn(1, 3, 6, 6),)), tmp_path / "plain.mlpackage").path
    optimize = coremltools.optimize.coreml
    model = coremltools.models.MLModel(str(plain), skip_model_load=True)
    if kind == "palettized":
        chosen = optimize.OptimizationConfig(optimize.OpPalettizerConfig(nbits=6, weight_threshold=64))
        smaller, tolerance = optimize.palettize_weights(model, chosen), 0.05
    elif kind == "linear int8":
        chosen = optimize.OptimizationConfig(optimize.OpLinearQuantizerConfig(weight_threshold=64))
        smaller, tolerance = optimize.linear_quantize_weights(model, chosen), 0.01
    else:
        chosen = optimize.OptimizationConfig(
            optimize.OpMagnitudePrunerConfig(target_sparsity=0.02, weight_threshold=64)
        )
        smaller, tolerance = optimize.prune_weights(model, chosen), 0.02
    smaller.save(str(tmp_path / "smaller.mlpackage"))
    images = torch.randn(8, 3, 6, 6)
    found, wanted = target.reference(tmp_path / "smaller.mlpackage")(images), net(images).detach()
    difference = float((found - wanted).abs().max())
    assert 1e-4 < difference < tolerance, "compression changes the logits, a little"

"""The XNNPACK target: nothing is left outside the delegate, and the file computes what the quantized graph computes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

pytest.importorskip("executorch")

from edgewise.targets import Artifact, Grid, TargetError, _executorch_runtime
from edgewise.targets import xnnpack as target
from edgewise.targets._executorch_runtime import runtime_log


class Residual(nn.Module):
    """A residual block, a depthwise one, a subsampled shortcut with zero channels, concatenation and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.down = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.relu(self.inner(x) + x)
        y = torch.cat([F.max_pool2d(y, 3, 1, 1), F.relu6(self.depthwise(y))], 1)
        z = F.relu(self.down(y) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))
        return self.fc(self.drop(z.mean((2, 3), keepdim=True).flatten(1)))


class Tiny(nn.Module):
    """A convolution and a mean that XNNPACK does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


def quantize(model: nn.Module, images: Tensor, grid: Grid) -> GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    graph = torch.export.export(model.eval(), (images[:1],)).module(check_guards=False)
    prepared = prepare_pt2e(graph, target.TARGET.quantizer(grid))
    for image in images:
        prepared(image[None])
    return convert_pt2e(prepared)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def graph(images: Tensor) -> GraphModule:
    torch.manual_seed(0)
    return quantize(Residual(), images[:16], Grid(weight_bits=8))


@pytest.fixture(scope="module")
def written(graph: GraphModule, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    program = torch.export.export(graph, (images[:1],))
    return target.export(program, tmp_path_factory.mktemp("int8") / "net.pte")


@pytest.fixture(scope="module")
def tiny(images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Artifact]:
    torch.manual_seed(0)
    model = Tiny().eval()
    program = torch.export.export(model, (images[:1],))
    return model, target.export(program, tmp_path_factory.mktemp("tiny") / "tiny.pte")


def test_the_whole_network_is_one_delegate(written: Artifact) -> None:
    assert written.precision == "int8" and written.undelegated == ()
    assert written.facts["delegates"] == 1 and written.facts["undelegated"] == {}
    delegated = written.facts["delegated"]
    # Four convolutions of the network, and the subsampled shortcut written as one.
    assert (delegated["convolution"], delegated["linear"], delegated["add"], delegated["cat"]) == (5, 1, 2, 1)


def test_the_file_computes_what_the_quantized_graph_computes(
    written: Artifact, graph: GraphModule, images: Tensor
) -> None:
    expected = torch.cat([graph(image[None]) for image in images])
    found = _executorch_runtime.load(written.path, 1)(images)
    assert found.dtype == torch.float32 and found.shape == (24, 6)
    step = [n.args[1] for n in graph.graph.nodes if str(n.target).endswith(".quantize_per_tensor.default")][-1]
    steps = (found - expected).abs() / step
    assert steps.max() < 2.01 and steps.mean() < 0.25
    margin = expected.topk(2).values
    clear = margin[:, 0] - margin[:, 1] > 2.01 * step
    assert clear.sum() > 5 and torch.equal(found.argmax(1)[clear], expected.argmax(1)[clear])


def test_the_number_of_threads_is_the_one_asked_for(written: Artifact, images: Tensor) -> None:
    from executorch.extension.pybindings import portable_lib

    results = []
    for threads in (1, 2, 1):
        runner = _executorch_runtime.load(written.path, threads)
        assert portable_lib._threadpool_get_thread_count() == threads
        results.append(runner(images[:4]))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_results_outlive_the_next_call(written: Artifact, images: Tensor) -> None:
    runner = _executorch_runtime.load(written.path, 1)
    first = runner(images[:1])
    copy = first.clone()
    runner(images[1:2])
    assert torch.equal(first, copy)


def test_what_xnnpack_does_not_take_is_named_and_still_right(tiny: tuple[nn.Module, Artifact], images: Tensor) -> None:
    model, artifact = tiny
    assert artifact.precision == "float32"
    assert artifact.undelegated == ("mean",) and artifact.facts["undelegated"] == {"mean": 1}
    assert torch.allclose(_executorch_runtime.load(artifact.path, 1)(images), model(images), atol=1e-5)


def test_a_plain_sequence_with_its_batch_norms_is_written(images: Tensor, tmp_path: Path) -> None:
    # Its tensors are called "0.weight" and the like, which no variable of Python's can be.
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(400, 6))
    plain.eval()[1].running_mean.uniform_(-1, 1)
    program = torch.export.export(plain, (images[:1],))
    names = list(program.state_dict)
    artifact = target.export(program, tmp_path / "plain.pte")
    assert torch.allclose(_executorch_runtime.load(artifact.path, 1)(images), plain(images), atol=1e-5)
    assert list(program.state_dict) == names, "the program itself is left as it was"


class Between(nn.Module):
    """A function between two convolutions."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.function, self.second = nn.Conv2d(3, 4, 3), function, nn.Conv2d(4, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self.first(x))).mean((2, 3))


@pytest.mark.parametrize(
    "function",
    [
        F.softplus, F.mish, F.hardshrink, lambda x: F.rms_norm(x, x.shape[1:]), lambda x: F.max_pool2d(x, 2),
        lambda x: x.clamp(-0.5, 0.5), lambda x: x.clamp(0, 1), lambda x: x.clamp(0.1, 0.6), lambda x: x.clamp(max=0.5),
        lambda x: F.hardtanh(x, 0.1, 0.6), lambda x: x.clamp(min=1e-6).pow(3),
    ],
    ids=["softplus", "mish", "hard shrink", "rms norm", "pool without stride", "clamp", "clamp from 0", "clamp above 0",
         "clamp from above", "hard tanh above 0", "generalized mean"],
)  # fmt: skip
def test_what_stands_between_int8_convolutions_runs(
    function: Callable[[Tensor], Tensor], images: Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = quantize(Between(function), images[:8], Grid(weight_bits=8))
    artifact = target.export(torch.export.export(network, (images[:1],)), tmp_path / "net.pte")
    expected = torch.cat([network(image[None]) for image in images])
    found = _executorch_runtime.load(artifact.path, 1)(images)
    assert float((found - expected).norm() / expected.norm()) < 0.05


def test_the_same_program_gives_the_same_bytes_and_no_traces_of_this_machine(
    tiny: tuple[nn.Module, Artifact], written: Artifact, images: Tensor, tmp_path: Path
) -> None:
    model, artifact = tiny
    again = target.export(torch.export.export(model, (images[:1],)), tmp_path / "again.pte")
    assert again.path.read_bytes() == artifact.path.read_bytes()
    for trace in (b"site-packages", b".py", str(Path.cwd()).encode(), str(tmp_path).encode()):
        assert trace not in written.path.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.99])
def test_a_truncated_file_is_refused_with_the_runtimes_reason(
    written: Artifact, tmp_path: Path, share: float, capfd: pytest.CaptureFixture[str]
) -> None:
    held = written.path.read_bytes()
    cut = tmp_path / "cut.pte"
    cut.write_bytes(held[: int(share * len(held))])
    reason = r"File size is too small" if share else "offset 0"
    with pytest.raises(
        TargetError, match=rf"wanted an ExecuTorch program .*cut.pte, found .*{reason}.*export it again"
    ):
        _executorch_runtime.load(cut, 1)
    assert capfd.readouterr().err == ""


def test_another_kind_of_file_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.pte"
    other.write_bytes(b"x" * 4096)
    with pytest.raises(TargetError, match="Program identifier"):
        _executorch_runtime.load(other, 1)
    with pytest.raises(TargetError, match="found: No such file"):
        _executorch_runtime.load(tmp_path / "none.pte", 1)


def test_loading_is_silent(written: Artifact, capfd: pytest.CaptureFixture[str]) -> None:
    _executorch_runtime.load(written.path, 2)
    _executorch_runtime.load(written.path, 1)
    assert capfd.readouterr() == ("", "")


def test_other_lines_on_standard_error_pass(capfd: pytest.CaptureFixture[str]) -> None:
    with runtime_log() as log:
        sys.stderr.write("[threadpool.cpp:66] Resetting threadpool to 1 threads.\nsomething else\n")
    assert log == ["Resetting threadpool to 1 threads."]
    assert capfd.readouterr().err == "something else\n"


def test_both_widths_of_weights_are_accepted_the_widest_first() -> None:
    assert [grid.weight_bits for grid in target.TARGET.grids] == [8, 7]
    assert target.TARGET.quantizer(Grid(), qat=True).qat

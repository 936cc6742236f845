"""A network that files are made of, and the images it is calibrated and tested on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edgewise import calib_data
from edgewise.calib_data import Data
from edgewise.calib_data._parts import MemoryPart, in_memory
from edgewise.images.normalise import normalise
from edgewise.images.resized import resize_images
from edgewise.models import Spec
from edgewise.network import architecture
from edgewise.network import weights as network_weights
from edgewise.network.architecture import Base
from edgewise.stage import Context
from edgewise.stages.fitting.batch_norms import batch_norms, reestimate_norms
from edgewise.stages.fold import Fold
from edgewise.stages.train import Train
from edgewise.stages.training.augment import Augment
from edgewise.stages.training.settings import Training

CALIBRATION, CALIBRATION_LARGE = 512, 64
TEST_LARGE = 200
"""Images for networks with random weights, of which only agreement with the float file is asked."""
_LARGE = 64
"""Sides above which images are enlarged from the data set's own."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One network of the comparison."""

    name: str
    spec: Spec
    data: Data
    trained: bool
    """Whether top-1 means something; otherwise the files are held against the float file alone."""
    network: nn.Module
    """Float, in evaluation mode, batch norms as they are."""
    folded: nn.Module
    """The same with its batch norms folded."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.data.shape

    def calibration(self) -> Tensor:
        """Normalised float32 images [N, C, H, W]."""
        count = CALIBRATION if self.trained else CALIBRATION_LARGE
        return normalise(self.data.calib.batch(torch.arange(min(count, len(self.data.calib)))), self.spec)


def load(name: str, weights: Path | None, data_name: str, folder: Path) -> Subject:
    """The network ``name`` on a data set: with given weights, trained here on the digits, or with random ones.

    A network published for images larger than the data set's gets them enlarged, and random weights; its batch norms
    are estimated on them, so that ranges are those of a live network.
    """
    spec, data = architecture.spec_of(name), calib_data.load(data_name, 0)
    large = spec.input_shape[1] > _LARGE
    if large:
        data = _enlarge_data(data, spec.input_shape)
    base = Base(name, len(data.classes) if not large else spec.num_classes, data.shape[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = architecture.build(base).eval()
    spec = dataclasses.replace(spec, classifier=architecture.classifier_of(network, spec))
    context = Context(spec=spec, data=data, scratch=folder)
    if weights is not None:
        network_weights.load_weights(network, weights)
    elif large:
        batches = torch.split(torch.arange(len(data.calib)), 16)
        reestimate_norms(network, batch_norms(network), (normalise(data.calib.batch(index), spec) for index in batches))
    else:
        network = Train(training=_TRAINING)(network, context).eval()
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return Subject(
        name=name,
        spec=spec,
        data=data,
        trained=not large,
        network=network,
        folded=Fold()(network, context).eval(),
    )


_TRAINING = Training(epochs=20, lr=0.1, batch_size=64, warmup=1, augment=Augment(crop=1, flip=False))


def _enlarge_data(data: Data, shape: tuple[int, int, int]) -> Data:
    """The first images of the calibration and the test part at another size, bilinear; grey ones in three channels."""

    def part(of: object, count: int) -> MemoryPart:
        source = getattr(data, str(of))
        index = torch.arange(min(count, len(source)))
        images = resize_images(source.batch(index), shape[1:]).expand(-1, shape[0], -1, -1).contiguous()
        return MemoryPart(images, source.labels[index])

    calib, test = part("calib", CALIBRATION_LARGE), part("test", TEST_LARGE)
    return in_memory(f"{data.name}, enlarged", calib, calib, test, data.classes)

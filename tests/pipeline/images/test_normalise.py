"""What images are normalised with: one value a channel, or refused."""

from __future__ import annotations

import pytest

from edgewise.errors import RequestError
from edgewise.images.normalise import per_channel


@pytest.mark.parametrize(
    ("values", "channels", "wanted"),
    [((0.1, 0.2, 0.3), 3, (0.1, 0.2, 0.3)), ((0.5,), 3, (0.5, 0.5, 0.5)), ((0.1, 0.2, 0.3), 1, (0.2,))],
)
def test_values_are_spread_over_the_channels(
    values: tuple[float, ...], channels: int, wanted: tuple[float, ...]
) -> None:
    assert per_channel(values, channels) == pytest.approx(wanted)


@pytest.mark.parametrize(("values", "channels"), [((), 1), ((), 3), ((0.1, 0.2), 3)])
def test_values_that_fit_no_channels_are_refused(values: tuple[float, ...], channels: int) -> None:
    with pytest.raises(RequestError, match=f"normalises {len(values)} channels, the data has {channels}"):
        per_channel(values, channels)

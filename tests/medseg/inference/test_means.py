"""Instance normalisations by means of means."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.inference.engines.means import MeanOfMeans, in_means


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.InstanceNorm3d(3, affine=True), (2, 3, 16, 12, 20)),
        (nn.InstanceNorm3d(3), (1, 3, 7, 2, 9)),
        (nn.InstanceNorm3d(3, eps=0.1), (1, 3, 1, 1, 5)),
        (nn.InstanceNorm2d(3, affine=True), (2, 3, 10, 36)),
    ],
)
def test_a_normalisation_by_means_of_means_is_the_same(norm: nn.InstanceNorm3d, shape: tuple[int, ...]) -> None:
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    network = nn.Sequential(norm).eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 4
    expected = network(x)
    replaced = in_means(network)
    assert isinstance(network[0], MeanOfMeans)
    assert torch.allclose(replaced(x), expected, atol=2e-5)


def test_a_normalisation_with_statistics_of_its_own_stays() -> None:
    network = nn.Sequential(nn.InstanceNorm3d(2, track_running_stats=True), nn.BatchNorm3d(2))
    assert in_means(network) is network
    assert [type(module) for module in network] == [nn.InstanceNorm3d, nn.BatchNorm3d]

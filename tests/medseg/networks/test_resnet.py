from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.errors import UsageError
from medseg.networks.resnet import ResNet
from tests.medseg.networks.families import both_dims, count


def test_parameters_of_resnet_50_and_101_without_classifier() -> None:
    assert count(lambda: ResNet(2, 3)) == 25_557_032 - (2048 * 1000 + 1000) == 23_508_032
    assert count(lambda: ResNet(2, 3, blocks=(3, 4, 23, 3))) == 44_549_160 - (2048 * 1000 + 1000)


def test_parameters_are_named_as_torchvisions() -> None:
    def block(first: bool) -> set[str]:
        names = {f"{part}{i}" for part in ("conv", "bn") for i in (1, 2, 3)}
        return names | {"downsample.0", "downsample.1"} if first else names

    expected = {"conv1", "bn1"} | {
        f"layer{i + 1}.{j}.{name}" for i, n in enumerate((3, 4, 6, 3)) for j in range(n) for name in block(j == 0)
    }
    with torch.device("meta"):
        assert {name.rpartition(".")[0] for name, _ in ResNet(2, 3).named_parameters()} == expected


@both_dims
@pytest.mark.parametrize("output_stride", [4, 8, 16, 32])
@pytest.mark.parametrize("length", [64, 65])
def test_output_stride(dims: int, output_stride: int, length: int) -> None:
    net = ResNet(dims, 1, width=2, blocks=(1, 1, 1, 1), output_stride=output_stride).eval()
    with torch.no_grad():
        fine, deep = net(torch.zeros(1, 1, *[length] * dims))
    assert fine.shape == (1, 8, *[-(-length // 4)] * dims)
    assert deep.shape == (1, 64, *[-(-length // output_stride)] * dims)


@pytest.mark.parametrize(
    ("output_stride", "dilations"),
    [(32, [1, 1, 1]), (16, [1, 1, 2]), (8, [1, 2, 4])],
)
@both_dims
def test_dilation_of_the_deeper_layers(dims: int, output_stride: int, dilations: list[int]) -> None:
    net = ResNet(dims, 1, width=2, output_stride=output_stride)
    assert [layer[-1].conv2.dilation for layer in (net.layer2, net.layer3, net.layer4)] == [
        (d,) * dims for d in dilations
    ]


@both_dims
@pytest.mark.parametrize("output_stride", [4, 8, 16])
def test_dilated_it_computes_the_strided_networks_features_at_more_places(dims: int, output_stride: int) -> None:
    """À trous: every 32nd voxel of the dense features is what the plain network has there."""
    torch.manual_seed(0)
    plain = ResNet(dims, 1, width=2, blocks=(2, 2, 2, 2), output_stride=32).eval()
    dense = ResNet(dims, 1, width=2, blocks=(2, 2, 2, 2), output_stride=output_stride).eval()
    dense.load_state_dict(plain.state_dict())
    x = torch.randn(1, 1, *(97, 70, 65)[:dims])
    step = 32 // output_stride
    with torch.no_grad():
        found = dense(x)[1][(..., *[slice(None, None, step)] * dims)]
        torch.testing.assert_close(found, plain(x)[1], rtol=1e-4, atol=1e-5)


def test_normalisation_is_of_one_kind() -> None:
    net = ResNet(3, 1, width=4, norm="group")
    assert not [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="output_stride is 12"):
        ResNet(2, 1, output_stride=12)
    with pytest.raises(UsageError, match="blocks"):
        ResNet(2, 1, blocks=(1, 1, 1))

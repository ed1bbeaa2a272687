from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from medseg.errors import UsageError
from medseg.networks import FCN
from medseg.networks.fcn import Deconvolution
from tests.medseg.networks.families import VGG, both_dims, count


@pytest.mark.parametrize(("stride", "parameters"), [(32, 136_152_917), (16, 134_815_994), (8, 134_489_759)])
def test_parameters_of_the_paper(stride: int, parameters: int) -> None:
    assert count(lambda: FCN(2, 3, 21, stride)) == parameters


def test_the_8s_is_the_default() -> None:
    assert count(lambda: FCN(2, 3, 21)) == 134_489_759


@both_dims
@pytest.mark.parametrize("factor", [2, 4, 8, 16, 32])
def test_a_new_deconvolution_interpolates_linearly(dims: int, factor: int) -> None:
    size = (5, 4, 3)[:dims] if factor < 16 else (3, 2, 1)[:dims]
    x = torch.randn(2, 2, *size)
    mode = {2: "bilinear", 3: "trilinear"}[dims]
    with torch.no_grad():
        up = Deconvolution(dims, 2, factor)(x)
    torch.testing.assert_close(up, functional.interpolate(x, scale_factor=factor, mode=mode), rtol=0, atol=1e-6)


@both_dims
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_skips_are_scored_at_their_stride(dims: int, stride: int) -> None:
    """pool4 and pool3 are scored at strides 16 and 8, the head at 32, and the last deconvolution is the stride's."""
    net = FCN(dims, 1, 2, stride, **VGG).eval()
    seen: list[int] = []
    for module in (net.score, *net.skip_scores):
        module.register_forward_hook(lambda _, __, out: seen.append(64 // out.shape[-1]))
    net(torch.zeros(1, 1, *[64] * dims))
    assert seen == {32: [32], 16: [32, 16], 8: [32, 16, 8]}[stride]
    assert net.last.deconv.stride == (stride,) * dims
    assert net.last.deconv.kernel_size == (2 * stride,) * dims


def test_without_its_finer_scores_the_8s_is_the_32s() -> None:
    """Interpolating by 2, 2 and 8 is nearly interpolating by 32; scores of a constant image are exactly constant."""
    net = FCN(2, 1, 2, 8, **VGG).eval()
    for score in net.skip_scores:
        nn.init.zeros_(score.weight)
    coarse = torch.full((1, 2, 2, 3), 0.25)
    net.score.register_forward_hook(lambda *_: coarse)
    with torch.no_grad():
        torch.testing.assert_close(net(torch.rand(1, 1, 64, 96)), torch.full((1, 2, 64, 96), 0.25))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="stride is 4"):
        FCN(2, 1, 2, 4)
    with pytest.raises(UsageError, match="4 widths"):
        FCN(2, 1, 2, widths=(1, 2, 3, 4), depths=(1, 1, 1, 1))

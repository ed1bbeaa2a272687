"""What holds of every network: the contract, gradients, two dimensions in three, engines, learning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from medseg.errors import UsageError
from medseg.inference.engines.backends import BACKENDS, made
from medseg.inference.engines.case import Case
from medseg.networks.layers import linear_kernel
from tests.medseg.networks.families import Family, both_dims, every_family, every_variant

ODD = (33, 27, 21)
CPU = torch.device("cpu")
OPENVINO = BACKENDS["openvino"]


@every_variant
@both_dims
@given(data=st.data())
@hypothesis_settings(max_examples=5, deadline=None)
def test_logits_have_the_inputs_size_whatever_it_is(family: Family, dims: int, data: st.DataObject) -> None:
    size = data.draw(st.tuples(*[st.integers(2, 70 if dims == 2 else 20)] * dims))
    batch = data.draw(st.integers(1, 2))
    net = family.make(dims, in_channels=2, out_channels=5).eval()
    with torch.no_grad():
        logits = net(torch.randn(batch, 2, *size))
    assert logits.shape == (batch, 5, *size)
    assert logits.isfinite().all()


@every_variant
@both_dims
@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_reach_every_parameter_and_are_finite(family: Family, dims: int, batch: int) -> None:
    net = family.make(dims).train()
    x = torch.randn(batch, 1, *ODD[:dims], requires_grad=True)
    net(x).square().mean().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.any()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@every_family
def test_other_dimensions_are_refused(family: Family) -> None:
    with pytest.raises(UsageError, match="spatial_dims is 4"):
        family.make(4)


@every_family
def test_in_3d_a_volume_of_one_slice_is_what_the_2d_network_sees(family: Family) -> None:
    flat, solid = family.make(2).eval(), family.make(3).eval()
    solid.load_state_dict({name: _thickened(name, value) for name, value in flat.state_dict().items()})
    x = torch.randn(1, 1, 33, 27)
    with torch.no_grad():
        torch.testing.assert_close(solid(x[:, :, None])[:, :, 0], flat(x), rtol=1e-4, atol=1e-5)


def _thickened(name: str, value: Tensor) -> Tensor:
    """2D weights as 3D ones that do the same on a single slice, whose neighbours are padding."""
    if value.dim() != 4:
        return value
    size = value.shape[-1]
    along_k = torch.zeros(size)
    if "deconv" in name:
        along_k = linear_kernel(1, size // 2)  # the edge is repeated there: every slice is the same
    elif "enlarge" in name:
        along_k[0] = 1  # two slices come up, the second is cropped
    else:
        along_k[size // 2] = 1
    return value[:, :, None] * along_k[:, None, None]


@every_family
@both_dims
def test_exported_it_computes_the_same(family: Family, dims: int) -> None:
    net, x = family.make(dims).eval(), torch.randn(1, 1, *ODD[:dims])
    exported = torch.export.export(net, (x,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(x), net(x), rtol=0, atol=1e-4)


FATAL_TO_OPENVINO = {"DeepLabV3Plus plain, group norm", "PSPNet instance norm, stride 16"}
"""Version 2026.4.1 may end the process that compiles these, which must not be the one that segments."""


@pytest.mark.slow
@pytest.mark.skipif(OPENVINO.missing(CPU, "fp32") is not None, reason="OpenVINO is not here: pip install openvino")
@every_variant
@both_dims
def test_openvino_computes_the_same(family: Family, dims: int, tmp_path: Path) -> None:
    net, x = family.make(dims).eval(), torch.randn(1, 1, *ODD[:dims])
    case = Case(net, CPU, "fp32", tuple(x.shape[1:]), 1, "digest")
    try:
        run = made(case, OPENVINO, tmp_path)
    except RuntimeError as error:
        assert str(family) in FATAL_TO_OPENVINO and "ended its process" in str(error), error
        return
    with torch.no_grad():
        torch.testing.assert_close(run(x), net(x), rtol=0, atol=1e-4)


@every_family
@pytest.mark.parametrize("dims", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_small_it_learns_one_phantom(family: Family, dims: int) -> None:
    net = family.make_small(dims)
    image, labels = ball(dims)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(200):
        loss = functional.cross_entropy(net.train()(image), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 19 and dice(net, image, labels) > 0.9:
            return
    pytest.fail(f"a Dice of {dice(net, image, labels):.3f} after 200 steps")


def ball(dims: int) -> tuple[Tensor, Tensor]:
    """A bright ball beside the centre of a noisy image: (1, 1, *S), and its labels (1, *S)."""
    length = 48 if dims == 2 else 24
    axes = torch.meshgrid(*[torch.arange(length)] * dims, indexing="ij")
    centre = (0.55 * length, 0.45 * length, 0.5 * length)
    inside = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=False)) < (0.3 * length) ** 2
    noise = torch.randn(inside.shape, generator=torch.Generator().manual_seed(1))
    return (inside + 0.3 * noise)[None, None], inside[None].long()


def dice(net: nn.Module, image: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        found = net.eval()(image).argmax(1)
    return float(2 * (found & labels).sum() / (found.sum() + labels.sum()))

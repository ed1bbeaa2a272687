from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from medseg.errors import UsageError
from medseg.networks import layers
from tests.medseg.networks.families import both_dims

POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
UNPOOL = {2: nn.MaxUnpool2d, 3: nn.MaxUnpool3d}


@both_dims
@given(data=st.data())
@hypothesis_settings(max_examples=25, deadline=None)
def test_a_maximum_returns_to_its_place_and_all_else_is_zero(dims: int, data: st.DataObject) -> None:
    size = data.draw(st.tuples(*[st.integers(1, 9)] * dims))
    x = torch.randn(2, 3, *size) + 10
    pooled, where = POOL[dims](2, ceil_mode=True, return_indices=True)(x)
    back = layers.unpool(pooled, where, size)
    assert back.shape == x.shape
    kept = back != 0
    assert torch.equal(back[kept], x[kept])
    assert int(kept.sum()) == pooled.numel()
    assert torch.equal(POOL[dims](2, ceil_mode=True)(back), pooled)


@both_dims
def test_unpooling_is_torchs(dims: int) -> None:
    size = (9, 8, 7)[:dims]
    pooled, where = POOL[dims](2, return_indices=True)(torch.randn(2, 3, *size))
    assert torch.equal(layers.unpool(pooled, where, size), UNPOOL[dims](2)(pooled, where, size))


@both_dims
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_torchs_where_torch_has_an_answer(dims: int, training: bool) -> None:
    ours = layers.normalise(dims, "batch", 4).train(training)
    theirs = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](4).train(training)
    x = torch.randn(2, 4, *[5] * dims)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@both_dims
@pytest.mark.parametrize("norm", ["batch", "group", "instance", None])
def test_one_value_per_channel_trains(dims: int, norm: layers.Norm | None) -> None:
    context = layers.PooledContext(dims, 8, 8, 1, norm).train()
    x = torch.randn(1, 8, *[4] * dims, requires_grad=True)
    y = context(x)
    y.square().sum().backward()
    assert y.shape == x.shape and x.grad is not None and x.grad.isfinite().all() and x.grad.any()


@both_dims
def test_instance_norm_is_torchs(dims: int) -> None:
    x = torch.randn(2, 6, *[5] * dims)
    torch.testing.assert_close(layers.normalise(dims, "instance", 6)(x), functional.instance_norm(x))


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@both_dims
def test_pooled_context_of_one_hot_cells(dims: int, bins: int) -> None:
    """Averages over a grid of bins, by hand: each cell of 4 voxels holds its own number."""
    cells = torch.rand(1, 1, *[bins] * dims)
    context = layers.PooledContext(dims, 1, 1, bins, None)
    nn.init.ones_(context.project[0].weight)
    expected = layers.resize(cells, [4 * bins] * dims)
    torch.testing.assert_close(context(functional.interpolate(cells, scale_factor=4)), expected)


def test_a_separable_unit_has_its_fraction_of_the_weights() -> None:
    plain = sum(p.numel() for p in layers.unit(3, 64, 64, norm=None).parameters())
    separable = sum(p.numel() for p in layers.separable_unit(3, 64, 64, norm=None).parameters())
    assert (plain, separable) == (64 * 64 * 27, 64 * 27 + 64 * 64)


def test_unknown_norms_activations_and_dimensions_are_refused() -> None:
    with pytest.raises(UsageError, match="norm is 'layer'"):
        layers.normalise(2, "layer", 4)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="activation is 'tanh'"):
        layers.activate("tanh")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="spatial_dims is 1"):
        layers.conv(1)
    with pytest.raises(UsageError, match="2 widths and 3 depths"):
        layers.stages(2, 1, (4, 8), (1, 1, 1), norm=None)

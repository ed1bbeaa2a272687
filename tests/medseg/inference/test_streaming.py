"""Slabs of class scores, against MONAI's sliding_window_inference on the whole volume."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import SliceInferer, sliding_window_inference
from torch import Tensor, nn

from medseg.bundle.inferers import SliceStackInferer
from medseg.bundle.recipe import Blend, Window
from medseg.errors import Interrupted
from medseg.inference.grids.grid import Axes
from medseg.inference.windows.layout import Layout, importance, lay_out
from medseg.inference.windows.streaming import Network, rows_of, stream
from tests.examples import SAME_IN_EVERY_RUN
from tests.medseg.inference.axes import ALL_AXES
from tests.medseg.inference.phantoms import Allocations


def silent(_: Layout, windows: int) -> None:
    """A tick that nobody hears."""


def small_network(dims: int, channels: int = 2, inputs: int = 1) -> nn.Module:
    torch.manual_seed(dims)
    conv = nn.Conv3d if dims == 3 else nn.Conv2d
    return nn.Sequential(conv(inputs, 4, 3, padding=1), nn.ReLU(), conv(4, channels, 3, padding=1)).eval()


def streamed(volume: Tensor, axes: Axes, window: Window, network: nn.Module) -> tuple[Tensor, list[tuple[int, int]]]:
    """All slabs put together in stored order, and where each began and ended."""
    layout = lay_out(tuple(volume.shape[1:]), axes, window)
    weights = importance(layout.roi, window.blend, window.sigma_scale)
    counted = []

    def run(windows: Tensor) -> Tensor:
        assert len(windows) <= window.batch
        axis = window.slice_axis + 2
        with torch.no_grad():
            return network(windows) if len(window.roi) == 3 else network(windows.squeeze(axis)).unsqueeze(axis)

    def tick(_: Layout, windows: int) -> None:
        counted.append(windows)

    slabs = list(stream(lambda a, b: volume[:, a:b], rows_of(layout), weights, run, batch=window.batch, tick=tick))
    assert sum(counted) == layout.count
    return torch.cat([slab for _, slab in slabs], dim=1), [(at, at + slab.shape[1]) for at, slab in slabs]


@st.composite
def layouts(
    draw: st.DrawFn, rois: tuple[int, int], shapes: tuple[int, int], batches: tuple[int, int]
) -> tuple[tuple[int, int, int], Axes, Window]:
    """A volume's shape, how it lies, and a window on it; of these sizes."""
    overlaps = st.sampled_from([0.0, 0.25, 0.5, 0.6, 0.75])
    window = Window(
        draw(st.tuples(*[st.integers(*rois)] * 3)),
        draw(st.tuples(*[overlaps] * 3)),
        draw(st.sampled_from(Blend)),
        sigma_scale=draw(st.sampled_from([0.125, 0.25])),
        cval=draw(st.sampled_from([0.0, -3.0])),
        batch=draw(st.integers(*batches)),
    )
    return draw(st.tuples(*[st.integers(*shapes)] * 3)), draw(st.sampled_from(ALL_AXES)), window


@settings(SAME_IN_EVERY_RUN, max_examples=60)
@given(layout=layouts(rois=(3, 13), shapes=(2, 29), batches=(1, 6)), seed=st.integers(0, 2**32))
def test_slabs_equal_monai_whatever_the_axes(layout: tuple[tuple[int, int, int], Axes, Window], seed: int) -> None:
    """Max difference 1e-5."""
    shape, axes, window = layout
    volume = torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))
    network = small_network(3)
    with torch.no_grad():
        expected = sliding_window_inference(
            axes.to_model(volume)[None],
            window.roi,
            window.batch,
            network,
            window.overlap,
            str(window.blend),
            window.sigma_scale,
            cval=window.cval,
        )[0]
    found, slabs = streamed(volume, axes, window, network)
    assert (axes.to_model(found) - expected).abs().max() <= 1e-5
    assert slabs[0][0] == 0
    assert slabs[-1][1] == shape[0]
    assert all(end == begin for (_, end), (begin, _) in pairwise(slabs))


@pytest.mark.parametrize("padding_mode", ["reflect", "replicate", "circular"])
def test_a_volume_smaller_than_the_window_is_padded_as_monai_pads_it(padding_mode: str) -> None:
    axes = Axes((2, 0, 1), (True, False, True))
    volume = torch.randn(1, 7, 12, 9)
    window = Window((12, 10, 14), (0.5,) * 3, padding_mode=padding_mode)
    network = small_network(3)
    with torch.no_grad():
        expected = sliding_window_inference(
            axes.to_model(volume)[None], window.roi, 1, network, 0.5, padding_mode=padding_mode
        )[0]
    found, _ = streamed(volume, axes, window, network)
    assert (axes.to_model(found) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("slice_axis", range(3))
@pytest.mark.parametrize("axes", ALL_AXES[::5], ids=str)
def test_2d_networks_run_slice_by_slice_along_any_axis(axes: Axes, slice_axis: int) -> None:
    volume = torch.randn(1, 6, 11, 13)
    window = Window((5, 6), (0.5, 0.5), Blend.GAUSSIAN, batch=4, slice_axis=slice_axis)
    network = small_network(2)
    inferer = SliceInferer(slice_axis, roi_size=(5, 6), sw_batch_size=4, overlap=0.5, mode="gaussian")
    with torch.no_grad():
        expected = inferer(axes.to_model(volume)[None], network)[0]
    found, _ = streamed(volume, axes, window, network)
    assert (axes.to_model(found) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("slice_axis", range(3))
@pytest.mark.parametrize("axes", ALL_AXES[::5], ids=str)
def test_slices_with_their_neighbours_along_any_axis(axes: Axes, slice_axis: int) -> None:
    """Five slices as channels of a 2D network, against MONAI's SliceInferer on a volume that is stacked so."""
    volume = torch.randn(1, 6, 11, 13)
    window = Window((5, 6), (0.5, 0.5), Blend.GAUSSIAN, batch=8, slice_axis=slice_axis, slices=5)
    network = small_network(2, inputs=5)
    inferer = SliceStackInferer(5, slice_axis, roi_size=(5, 6), sw_batch_size=4, overlap=0.5, mode="gaussian")
    with torch.no_grad():
        expected = inferer(axes.to_model(volume)[None], network)[0]
    found, _ = streamed(volume, axes, window, network)
    assert (axes.to_model(found) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("slice_axis", range(3))
def test_neighbours_beyond_the_volume_repeat_its_edge(slice_axis: int) -> None:
    """The stacked channels, from numpy's own edge padding."""
    volume = torch.randn(2, 3, 4, 5)
    seen = []

    def network(windows: Tensor) -> Tensor:
        seen.append(windows)
        return windows[:, :1]

    shape = [n for axis, n in enumerate((3, 4, 5)) if axis != slice_axis]
    SliceStackInferer(3, slice_axis, roi_size=shape, sw_batch_size=5)(volume[None], network)
    padded = np.pad(volume.numpy(), [(0, 0), *[(1, 1) if axis == slice_axis else (0, 0) for axis in range(3)]], "edge")
    slices = np.moveaxis(padded, 1 + slice_axis, 0)
    expected = [np.concatenate(slices[n : n + 3]) for n in range(len(slices) - 2)]
    np.testing.assert_array_equal(torch.cat(seen).numpy(), expected)


def test_a_slab_needs_no_slice_beyond_its_own_row() -> None:
    """Slices are asked for row by row, none twice from before the row: a series may still be arriving."""
    asked = []
    volume = torch.randn(1, 40, 8, 8)
    layout = lay_out((40, 8, 8), ALL_AXES[0], Window((10, 8, 8), (0.5,) * 3))
    arrived = 0

    def planes(first: int, last: int) -> Tensor:
        nonlocal arrived
        arrived = max(arrived, last)
        asked.append((first, last))
        return volume[:, first:last]

    weights = importance(layout.roi, Blend.CONSTANT, 0.125)
    for first, slab in stream(planes, rows_of(layout), weights, lambda w: w, batch=1, tick=silent):
        assert arrived <= first + 10
        assert torch.allclose(slab, volume[:, first : first + slab.shape[1]], atol=1e-6)
    assert [first for first, _ in asked] == sorted(first for first, _ in asked)


@pytest.mark.parametrize(("slices", "roi"), [(200, (12, 8, 8)), (200, (8, 8))])
def test_scores_in_memory_do_not_grow_with_the_slices(slices: int, roi: tuple[int, ...]) -> None:
    """The largest tensor of scores ever made holds a window's depth of slices, for 200 slices as for 20."""
    volume = torch.zeros(1, slices, 16, 16)
    window = Window(roi, (0.5,) * len(roi), batch=2, slice_axis=0)
    with Allocations() as made:
        streamed_slabs(volume, ALL_AXES[0], window, small_network(len(roi), channels=5))
    depth = roi[0] if len(roi) == 3 else 2
    assert max(made.numel) <= 5 * max(depth * 16 * 16, 2 * int(np.prod(roi)))
    assert max(made.numel) < volume.numel()


def streamed_slabs(volume: Tensor, axes: Axes, window: Window, network: nn.Module) -> None:
    layout = lay_out(tuple(volume.shape[1:]), axes, window)
    weights = importance(layout.roi, window.blend, window.sigma_scale)

    def run(windows: Tensor) -> Tensor:
        with torch.no_grad():
            return network(windows) if len(window.roi) == 3 else network(windows.squeeze(2)).unsqueeze(2)

    for _ in stream(lambda a, b: volume[:, a:b], rows_of(layout), weights, run, batch=window.batch, tick=silent):
        pass


def test_a_wish_to_stop_is_heard_between_batches() -> None:
    volume = torch.zeros(1, 30, 8, 8)
    window = Window((8, 8, 8), (0.5,) * 3)
    layout = lay_out((30, 8, 8), ALL_AXES[0], window)

    def stop(_: Layout, windows: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        next(stream(lambda a, b: volume[:, a:b], rows_of(layout), torch.ones(8, 8, 8), lambda w: w, batch=1, tick=stop))


def one_row(count: int, batch: int, network: Network) -> None:
    """`count` windows of 4^3 voxels side by side."""
    volume = torch.randn(1, 4, 4, 4 * count)
    layout = lay_out((4, 4, 4 * count), ALL_AXES[0], Window((4, 4, 4), (0.0,) * 3))
    slabs = stream(lambda a, b: volume[:, a:b], rows_of(layout), torch.ones(4, 4, 4), network, batch=batch, tick=silent)
    for first, slab in slabs:
        assert torch.equal(slab, volume[:, first : first + slab.shape[1]])


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("count", [1, 2, 5, 9, 25])
def test_batches_are_even_and_none_is_of_one_window_where_that_can_be(count: int, batch: int) -> None:
    sizes = []

    def network(windows: Tensor) -> Tensor:
        sizes.append(len(windows))
        return windows.clone()

    one_row(count, batch, network)
    assert sum(sizes) == count
    assert len(sizes) == -(-count // batch)
    if batch > 2 and count > 1:
        assert min(sizes) > 1
    if batch % 2 == 0:
        assert sum(size % 2 for size in sizes) == count % 2


class GoesOn:
    """A network with threads of its own: `ahead` windows may be on their way. late: it looks at them at last."""

    def __init__(self, network: nn.Module, ahead: int, *, late: bool) -> None:
        self.network, self.most, self.late = network, ahead, late
        self.calls = self.on_their_way = self.most_on_their_way = 0

    def __call__(self, windows: Tensor) -> Tensor:
        self.calls += 1
        with torch.no_grad():
            return self.network(windows)

    @property
    def ahead(self) -> int:
        return self.most if self.calls else 0

    def begin(self, window: Tensor) -> Callable[[], Tensor]:
        self.on_their_way += 1
        self.most_on_their_way = max(self.most_on_their_way, self.on_their_way)
        given = window if self.late else window.clone()

        def answer() -> Tensor:
            self.on_their_way -= 1
            return self(given)

        return answer


@settings(SAME_IN_EVERY_RUN, max_examples=50)
@given(
    layout=layouts(rois=(3, 8), shapes=(2, 23), batches=(2, 6)),
    ahead=st.integers(1, 8),
    late=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_windows_on_their_way_change_no_bit(
    layout: tuple[tuple[int, int, int], Axes, Window], ahead: int, late: bool, seed: int
) -> None:
    shape, axes, window = layout
    where = lay_out(shape, axes, window)
    volume = torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))
    volume[:, shape[0] // 2 :] = 0.0  # blank windows, computed once
    layer = nn.Conv3d(1, 2, 1)  # whose scores are the same bits in any batch
    network = GoesOn(layer, ahead, late=late)
    weights = importance(where.roi, window.blend, window.sigma_scale)
    counted: list[int] = []

    def scores(of: Network) -> list[tuple[int, Tensor]]:
        with torch.no_grad():
            return list(
                stream(
                    lambda first, last: volume[:, first:last],
                    rows_of(where),
                    weights,
                    of,
                    batch=window.batch,
                    tick=lambda _, windows: counted.append(windows),
                    steady=lambda: True,
                )
            )

    expected = scores(lambda windows: layer(windows))
    assert sum(counted) == where.count
    counted.clear()
    found = scores(network)
    assert sum(counted) == where.count
    assert [first for first, _ in found] == [first for first, _ in expected]
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(found, expected, strict=True))
    assert network.on_their_way == 0
    assert network.most_on_their_way <= window.batch  # of which it has memory for as many


def test_planes_are_prepared_while_windows_are_on_their_way() -> None:
    volume, window = torch.randn(1, 30, 8, 24), Window((8, 8, 8), (0.5,) * 3, batch=4)
    layout = lay_out((30, 8, 24), ALL_AXES[0], window)
    network, on_their_way = GoesOn(nn.Conv3d(1, 2, 1), 3, late=True), []

    def planes(first: int, last: int) -> Tensor:
        on_their_way.append(network.on_their_way)
        return volume[:, first:last]

    for _ in stream(planes, rows_of(layout), torch.ones(8, 8, 8), network, batch=window.batch, tick=silent):
        pass
    assert len(on_their_way) == 7
    assert set(on_their_way[1:]) == {2}  # and one was waited for, when the row began


def test_who_stops_waits_for_windows_on_their_way() -> None:
    volume, window = torch.randn(1, 30, 8, 24), Window((8, 8, 8), (0.5,) * 3, batch=4)
    layout = lay_out((30, 8, 24), ALL_AXES[0], window)
    network = GoesOn(nn.Conv3d(1, 2, 1), 3, late=True)
    ticks = 0

    def stop(_: Layout, windows: int) -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 4:
            raise Interrupted

    slabs = stream(
        lambda a, b: volume[:, a:b], rows_of(layout), torch.ones(8, 8, 8), network, batch=window.batch, tick=stop
    )
    with pytest.raises(Interrupted):
        list(slabs)
    assert network.most_on_their_way > 1
    assert network.on_their_way == 0

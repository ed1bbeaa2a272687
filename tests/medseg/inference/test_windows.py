"""Where windows lie and what they weigh, against MONAI."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers.utils import _get_scan_interval

from medseg.bundle.recipe import Blend, Window
from medseg.inference.grids.grid import Axes
from medseg.inference.windows.layout import importance, lay_out, padding, starts
from medseg.inference.windows.stitching import as_stored

PLAIN = Axes((0, 1, 2), (False, False, False))
ANY_AXES = st.builds(
    lambda order, flips: Axes(tuple(order), tuple(flips)),
    st.permutations([0, 1, 2]),
    st.tuples(*[st.booleans()] * 3),
)
SHAPES = st.tuples(*[st.integers(1, 40)] * 3)
ROIS = st.tuples(*[st.integers(1, 24)] * 3)
OVERLAPS = st.floats(0, 0.95)


@given(length=st.integers(1, 300), size=st.integers(1, 128), overlap=st.floats(0, 0.99))
def test_starts_are_those_of_monai(length: int, size: int, overlap: float) -> None:
    length = max(length, size)
    step = _get_scan_interval((length,), (size,), 1, (overlap,))
    expected = [window[0].start for window in dense_patch_slices((length,), (size,), step)]
    assert list(starts(length, size, overlap)) == expected


@given(length=st.integers(1, 300), size=st.integers(1, 128), overlap=st.floats(0, 0.99))
def test_windows_cover_every_voxel_and_stay_inside(length: int, size: int, overlap: float) -> None:
    length = max(length, size)
    covered = np.zeros(length, bool)
    for begin in starts(length, size, overlap):
        assert 0 <= begin <= length - size
        covered[begin : begin + size] = True
    assert covered.all()


@given(length=st.integers(1, 40), size=st.integers(1, 40))
def test_padding_fills_the_window_with_the_odd_voxel_behind(length: int, size: int) -> None:
    before, after = padding(length, size)
    assert length + before + after == max(length, size)
    assert after - before in (0, 1)


@settings(deadline=None, max_examples=50)
@given(
    roi=st.lists(st.integers(1, 20), min_size=2, max_size=3),
    blend=st.sampled_from(Blend),
    sigma_scale=st.floats(0.05, 0.5),
)
def test_importance_is_that_of_monai(roi: list[int], blend: Blend, sigma_scale: float) -> None:
    expected = compute_importance_map(tuple(roi), mode=str(blend), sigma_scale=sigma_scale)
    assert torch.equal(importance(roi, blend, sigma_scale), expected)


@settings(deadline=None)
@given(axes=ANY_AXES, shape=SHAPES)
def test_to_model_and_back_is_identity(axes: Axes, shape: tuple[int, int, int]) -> None:
    volume = torch.arange(int(np.prod(shape))).reshape(1, *shape)
    assert torch.equal(axes.to_source(axes.to_model(volume)), volume)


@settings(deadline=None, max_examples=60)
@given(axes=ANY_AXES, shape=SHAPES, roi=ROIS, overlap=OVERLAPS)
def test_every_window_is_cut_and_laid_back_where_it_came_from(
    axes: Axes, shape: tuple[int, int, int], roi: tuple[int, int, int], overlap: float
) -> None:
    where = lay_out(shape, axes, Window(roi, (overlap,) * 3, cval=-1))
    volume = torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(1, *shape)
    depth, height, width = where.extent
    for k, _ in list(where.rows())[:3]:
        for j, i in where.in_plane()[:4]:
            window = where.cut(volume, k, j, i)
            assert window.shape == (1, *where.roi)
            under = volume[:, k : k + depth, j : j + height, i : i + width]
            assert torch.equal(where.uncut(window), under)
            assert torch.equal(as_stored(where.inside(window).contiguous(), axes), under)


@settings(deadline=None, max_examples=60)
@given(axes=ANY_AXES, shape=SHAPES, roi=ROIS, overlap=st.floats(0, 0.8))
def test_windows_are_cut_as_monai_cuts_them(
    axes: Axes, shape: tuple[int, int, int], roi: tuple[int, int, int], overlap: float
) -> None:
    """The set of windows the network sees is MONAI's: same voxels, same padding, same way round."""
    seen: set[bytes] = set()

    def remember(windows: torch.Tensor) -> torch.Tensor:
        seen.update(window.contiguous().numpy().tobytes() for window in windows)
        return windows

    from monai.inferers import sliding_window_inference

    volume = torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(1, *shape)
    sliding_window_inference(axes.to_model(volume)[None], roi, 2, remember, overlap, cval=-1)
    where = lay_out(shape, axes, Window(roi, (overlap,) * 3, cval=-1))
    ours = {
        where.cut(volume, k, j, i).contiguous().numpy().tobytes() for k, _ in where.rows() for j, i in where.in_plane()
    }
    assert ours == seen
    assert where.count == len(ours)


def test_rows_follow_the_slices_and_say_what_is_final() -> None:
    where = lay_out((10, 5, 5), PLAIN, Window((5, 5, 5), (0.4,) * 3))
    assert list(where.rows()) == [(0, 3), (3, 5), (5, 10)]
    upside_down = lay_out((10, 5, 5), Axes((0, 1, 2), (True, False, False)), Window((5, 5, 5), (0.4,) * 3))
    assert list(upside_down.rows()) == [(0, 2), (2, 5), (5, 10)]


def test_a_2d_window_is_one_slice_thick_along_its_axis() -> None:
    sagittal_source = Axes((0, 1, 2), (False, False, False))
    where = lay_out((7, 20, 30), sagittal_source, Window((16, 16), (0.25, 0.25), slice_axis=0))
    assert where.roi == (1, 16, 16)
    assert len(where.begins[0]) == 7

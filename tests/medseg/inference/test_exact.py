"""Streamed scores against MONAI's sliding_window_inference: to the bit when exact, else within 1e-5.

Over networks of every family, in 2D, 2.5D and 3D; sizes, windows, overlaps, blends, batches and axes at random. Arrival
and spacing are varied in `test_arrival`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import monai.networks.nets as monai_nets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import SliceInferer, sliding_window_inference
from torch import Tensor, nn

from medseg import networks
from medseg.bundle.inferers import SliceStackInferer
from medseg.bundle.recipe import Blend, Window
from medseg.inference.engines.company import AsInCompany
from medseg.inference.engines.device import steady_batch
from medseg.inference.grids.grid import Axes
from medseg.inference.windows.layout import Layout, importance, lay_out
from medseg.inference.windows.streaming import rows_of, stream
from tests.examples import SAME_IN_EVERY_RUN
from tests.medseg.inference.axes import ALL_AXES

CLASSES = 3
FAMILIES: Mapping[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "FCN": (networks.FCN, {"widths": (4, 4, 8, 8, 8), "depths": (1,) * 5, "head": 16, "head_kernel": 3}),
    "SegNet": (networks.SegNet, {"widths": (4, 8), "depths": (1, 2)}),
    "UNet2015": (networks.UNet2015, {"widths": (4, 8, 8), "norm": "batch"}),
    "PSPNet": (networks.PSPNet, {"width": 4, "blocks": (1,) * 4, "head": 8, "norm": "group"}),
    "DeepLabV3": (networks.DeepLabV3, {**networks.DeepLabV3.SMALL, "width": 4, "blocks": (1,) * 4}),
    "DeepLabV3Plus": (networks.DeepLabV3Plus, {**networks.DeepLabV3Plus.SMALL, "width": 4, "blocks": (1,) * 4}),
    "MeshNet": (networks.MeshNet, {"channels": 4, "dilations": (1, 2, 1)}),
    "monai UNet": (monai_nets.UNet, {"channels": (4, 8, 8), "strides": (2, 2), "num_res_units": 1}),
    "monai BasicUNet": (monai_nets.BasicUNet, {"features": (4, 4, 8, 8, 8, 4)}),
    "monai SegResNet": (monai_nets.SegResNet, {"init_filters": 8, "blocks_down": (1, 1), "blocks_up": (1,)}),
}
SIZES = {
    "monai UNet": (8, 4),
    "monai BasicUNet": (32, 16),
    "monai SegResNet": (8, 2),
}  # the least, and steps from there
PAIRS = list(product(FAMILIES, (2, 3)))
MOST = 24


@cache
def make_network(family: str, dims: int, inputs: int) -> nn.Module:
    torch.manual_seed(dims)
    kind, arguments = FAMILIES[family]
    network = kind(spatial_dims=dims, in_channels=inputs, out_channels=CLASSES, **arguments)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return network.eval()


@dataclass(frozen=True)
class Case:
    family: str
    shape: tuple[int, int, int]
    axes: Axes
    window: Window
    seed: int
    air: bool

    @property
    def dims(self) -> int:
        return len(self.window.roi)

    def volume(self) -> Tensor:
        voxels = torch.randn((1, *self.shape), generator=torch.Generator().manual_seed(self.seed))
        if self.air:  # as a CT has beside the patient, after its range was clipped
            voxels[:, : self.shape[0] // 2] = 0.0
            voxels[..., self.shape[2] // 2 :] = 0.0
        return voxels

    def network(self) -> Callable[[Tensor], Tensor]:
        """As MONAI calls it."""
        net = make_network(self.family, self.dims, self.window.slices)

        def run(windows: Tensor) -> Tensor:
            with torch.no_grad():
                return net(windows)

        return run


@st.composite
def cases(draw: st.DrawFn, family: str, dims: int) -> Case:
    """At most MOST windows, of sizes that the network takes."""
    least, multiple = SIZES.get(family, (6, 1))
    roi = draw(st.tuples(*[st.integers(0, 8 // multiple).map(lambda n: least + multiple * n)] * dims))
    overlaps = st.sampled_from([0.0, 0.25, 0.5, 0.6, 0.75])
    window = Window(
        roi,
        draw(st.tuples(*[overlaps] * 3)) if dims == 3 else (draw(overlaps),) * 2,
        draw(st.sampled_from(Blend)),
        sigma_scale=draw(st.sampled_from([0.125, 0.25])),
        cval=draw(st.sampled_from([0.0, -3.0])),
        batch=draw(st.integers(1, 7)),
        slice_axis=draw(st.integers(0, 2)),
        slices=draw(st.sampled_from([1, 3])) if dims == 2 else 1,
    )
    shape, axes = draw(st.tuples(*[st.integers(4, 29)] * 3)), draw(st.sampled_from(ALL_AXES))
    while lay_out(shape, axes, window).count > MOST:
        shape = tuple(max(n * 3 // 4, 4) for n in shape)
    return Case(family, shape, axes, window, draw(st.integers(0, 2**32)), draw(st.booleans()))


def by_monai(case: Case) -> Tensor:
    """(K, *model axes)"""
    window, given = case.window, case.axes.to_model(case.volume())[None]
    settings = {
        "roi_size": window.roi,
        "sw_batch_size": window.batch,
        "mode": str(window.blend),
        "sigma_scale": window.sigma_scale,
        "cval": window.cval,
    }
    if case.dims == 3:
        found = sliding_window_inference(given, predictor=case.network(), overlap=window.overlap, **settings)
    elif window.slices > 1:
        found = SliceStackInferer(window.slices, window.slice_axis, overlap=window.overlap[0], **settings)(
            given, case.network()
        )
    else:
        found = SliceInferer(window.slice_axis, overlap=window.overlap[0], **settings)(given, case.network())
    return found[0].clone()


@dataclass
class Counted:
    """A case's network as `stream` calls it, on a CPU: how many windows it was asked for."""

    case: Case
    exact: bool
    windows: int = 0

    def __call__(self, windows: Tensor) -> Tensor:
        count = len(windows)
        self.windows += count
        run, axis = self.case.network(), self.case.window.slice_axis + 2
        with AsInCompany() if not self.exact and count == 1 else nullcontext():  # as an engine does
            return run(windows) if self.case.dims == 3 else run(windows.squeeze(axis)).unsqueeze(axis)


def streamed(
    case: Case, layout: Layout | None = None, *, exact: bool = False, steady: bool = True
) -> tuple[Tensor, int]:
    """(K, *model axes), and how many windows the network saw."""
    volume, network = case.volume(), Counted(case, exact)
    layout = layout or lay_out(case.shape, case.axes, case.window)
    if layout.axes != case.axes:
        volume = volume.flip(1)
    weights = importance(layout.roi, case.window.blend, case.window.sigma_scale)
    batch = case.window.batch if exact else min(case.window.batch, steady_batch(case.window.batch))
    slabs = stream(
        lambda a, b: volume[:, a:b],
        rows_of(layout),
        weights,
        network,
        batch=batch,
        tick=lambda *_: None,
        exact=exact,
        steady=lambda: steady,
    )
    return layout.axes.to_model(torch.cat([slab for _, slab in slabs], dim=1)), network.windows


def compare(case: Case) -> None:
    expected = by_monai(case)
    exact, _ = streamed(case, exact=True)
    assert torch.equal(exact, expected), case
    found, seen = streamed(case)
    scale = max(float(expected.abs().max()), 1.0)
    if case.window.batch == 1:
        # By default a window alone is computed as in company. Where a norm of a few voxels of air makes much of a last
        # bit, MONAI one by one is as far from MONAI in pairs, and these are what is to be met.
        pairs = by_monai(replace(case, window=replace(case.window, batch=2)))
        default = expected if (pairs - expected).abs().max() <= 1e-5 * scale else pairs
    else:
        default = expected
    assert (found - default).abs().max() <= 1e-5 * scale, case
    assert (found.argmax(0) != default.argmax(0)).sum() <= 1e-6 * default[0].numel(), case
    # The same bits without reuse of blank windows, in other batches, from the other end
    plain, all_of_them = streamed(case, steady=False)
    assert seen <= all_of_them
    assert torch.equal(plain, found), case
    other = replace(case, window=replace(case.window, batch=4 if case.window.batch == 1 else 1))
    assert torch.equal(streamed(other)[0], found), case
    mirrored = lay_out(case.shape, case.axes, case.window).mirrored()
    assert torch.equal(streamed(case, mirrored)[0], found), case
    assert torch.equal(streamed(case, mirrored, exact=True)[0], expected), case


@pytest.mark.parametrize(("family", "dims"), PAIRS)
@settings(SAME_IN_EVERY_RUN, max_examples=4)
@given(data=st.data())
def test_scores_are_monais(family: str, dims: int, data: st.DataObject) -> None:
    compare(data.draw(cases(family, dims)))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "dims"), PAIRS)
@settings(deadline=None, max_examples=14)
@given(data=st.data())
def test_scores_are_monais_in_many_cases(family: str, dims: int, data: st.DataObject) -> None:
    compare(data.draw(cases(family, dims)))


def test_scores_of_a_norm_of_a_few_voxels_are_monais() -> None:
    """Where a last bit becomes 0.25 with AVX2, since a batch of one is another convolution."""
    window = Window((32, 32), (0.75, 0.75), Blend.CONSTANT, batch=1, slice_axis=1, slices=3)
    compare(Case("monai BasicUNet", (25, 14, 16), Axes((1, 2, 0), (True, True, False)), window, 238, air=True))


@pytest.mark.parametrize("exact", [False, True])
def test_blank_windows_are_run_once(exact: bool) -> None:
    """A phantom three quarters of which are air: fewer windows are run, with the same bits."""
    window = Window((8, 8, 8), (0.5,) * 3, Blend.GAUSSIAN, batch=3)
    case = Case("monai UNet", (32, 24, 40), ALL_AXES[0], window, 1, air=True)
    found, seen = streamed(case, exact=exact)
    plain, all_of_them = streamed(case, exact=exact, steady=False)
    assert seen < 0.6 * all_of_them
    assert torch.equal(found, plain)


@pytest.mark.parametrize("classes", [2, 3, 8])
@pytest.mark.parametrize("size", [(3, 2), (7, 7), (9, 9, 5)], ids=str)
def test_a_product_has_the_same_bits_wherever_it_lies(size: tuple[int, ...], classes: int) -> None:
    """On one thread torch has MKL multiply for a convolution with one voxel, each window of a batch where it lies."""
    torch.manual_seed(0)
    window = torch.randn(1, 16, *size)
    layer = (nn.Conv2d if len(size) == 2 else nn.Conv3d)(16, classes, 1)
    with torch.no_grad():
        for scores in layer(window.expand(7, *window.shape[1:]).contiguous()):
            assert torch.equal(scores, layer(window)[0])

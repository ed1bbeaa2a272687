"""A window alone on a CPU has the bits that it has in company."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medseg.bundle.recipe import Window
from medseg.inference.engines.case import Case, eager
from medseg.inference.engines.company import AsInCompany
from medseg.inference.engines.device import CPU
from medseg.inference.engines.engine import Engine
from medseg.inference.grids.grid import Axes
from medseg.inference.windows.layout import lay_out
from tests.medseg.inference.phantoms import make_bundle

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "3D": (lambda: nn.Conv3d(8, 12, 3, padding=1), (8, 12, 12, 12)),
    "3D, strided": (lambda: nn.Conv3d(8, 12, 3, stride=2, padding=1), (8, 12, 12, 12)),
    "3D, 'same'": (lambda: nn.Conv3d(8, 12, 3, padding="same"), (8, 12, 12, 12)),
    "3D, columns first": (lambda: nn.Sequential(Turned(), nn.Conv3d(8, 12, 3)), (8, 12, 12, 12)),
    "2D, grouped, dilated": (lambda: nn.Conv2d(8, 16, 3, groups=2, dilation=2), (8, 24, 24)),
    "transposed": (lambda: nn.ConvTranspose3d(8, 4, 3, stride=2, padding=1, output_padding=1), (8, 6, 6, 6)),
    "one row of a product": (lambda: nn.Linear(100, 50), (100,)),
}


class Turned(nn.Module):
    def forward(self, windows: Tensor) -> Tensor:
        return windows.transpose(-1, -2)


@pytest.mark.parametrize("name", LAYERS)
def test_alone_as_in_company(name: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, windows = make().eval(), torch.randn(3, *shape)
    with torch.inference_mode():
        together = layer(windows)
        with AsInCompany():
            alone = torch.cat([layer(window[None]) for window in windows])
    assert torch.equal(alone, together)


def test_without_it_a_window_alone_has_other_bits() -> None:
    """Else all of this would do nothing. Exact results, and nnU-Net's, have those."""
    torch.manual_seed(0)
    layer, windows = nn.Conv3d(8, 12, 3, padding=1).eval(), torch.randn(2, 8, 12, 12, 12)
    plain, in_company = (
        eager(Case(layer, CPU, "fp32", tuple(windows.shape[1:]), 1, "", plain=plain)) for plain in (True, False)
    )
    if torch.equal(plain(windows[:1]), plain(windows)[:1]):
        pytest.skip("this CPU has the same convolutions for both")
    assert torch.equal(in_company(windows[:1]), plain(windows)[:1])
    assert torch.equal(plain(windows[:1]), layer(windows[:1]))


def test_large_windows_run_alone_and_small_ones_together(tmp_path: Path) -> None:
    """A window's input and scores, 4 numbers a voxel, are held at least; measured once, and kept."""
    calls: list[int] = []
    network = nn.Conv3d(1, 3, 1)
    network.register_forward_hook(lambda *_: calls.append(1))
    engine = Engine(network, make_bundle(tmp_path), CPU, batch=4)
    axes = Axes((0, 1, 2), (False, False, False))

    def worth(size: int) -> int:
        return engine.worth(lay_out((size, size, size), axes, Window((size,) * 3, (0.5,) * 3)))

    assert [worth(size) for size in (32, 200, 300)] == [4, 2, 1]
    assert len(calls) == 3
    assert worth(300) == 1
    assert len(calls) == 3

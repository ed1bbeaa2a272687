from __future__ import annotations

import torch

from medseg.networks import UNet2015
from tests.medseg.networks.families import both_dims, count


def test_parameters_of_the_paper() -> None:
    assert count(lambda: UNet2015(2, 1, 2)) == 31_030_658


def test_in_3d_the_same_lines_have_27_weights_for_9_and_8_for_4() -> None:
    def parameters(dims: int) -> int:
        inner, total, n = 3**dims, 0, 1
        widths = (64, 128, 256, 512, 1024)
        for m in widths:  # down: two convolutions
            total, n = total + n * m * inner + m + m * m * inner + m, m
        for n in reversed(widths[:-1]):  # up: enlarge 2n -> n, join to 2n, two convolutions
            total += 2 * n * n * 2**dims + n + 2 * n * n * inner + n + n * n * inner + n
        return total + 64 * 2 + 2

    assert parameters(2) == 31_030_658
    assert count(lambda: UNet2015(3, 1, 2)) == parameters(3)


@both_dims
def test_each_level_joins_what_was_kept_there(dims: int) -> None:
    """Silence everything from below: the logits still see the image, through the skip."""
    net = UNet2015(dims, 1, 2, widths=(2, 4, 8)).eval()
    for enlarge in net.enlarge:
        torch.nn.init.zeros_(enlarge.weight)
        torch.nn.init.zeros_(enlarge.bias)
    x = torch.rand(1, 1, *[12] * dims, requires_grad=True)
    net(x)[(0, 0, *[6] * dims)].backward()
    assert x.grad is not None
    seen = x.grad.nonzero()[:, 2:]
    assert seen.numel() and int(seen.min()) >= 6 - 4 and int(seen.max()) <= 6 + 4  # four convolutions, no pool

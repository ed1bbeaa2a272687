"""The convolutional encoder-decoder that remembers where its maxima stood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from medseg.networks.layers import Norm, conv, initialise, max_pool, stage, stages, unpool


class SegNet(nn.Module):
    """SegNet on VGG16: (B, C, *S) -> (B, K, *S), any S.

    The encoder is VGG16's convolutions; each pool keeps where its maxima stood. The decoder is its mirror image: it
    puts values back on those places, zeros elsewhere, and convolves them dense, so that edges return to the voxel
    while no feature map is kept.
    Badrinarayanan, Kendall, Cipolla: SegNet, TPAMI 2017, arXiv:1511.00561.

    spatial_dims: 2 or 3. in_channels, out_channels: C and K.
    widths, depths: channels and convolutions of each stage, outermost first; the decoder mirrors them.
    norm: of every convolution but the last.
    Raises UsageError where widths and depths differ in number, or for other dimensions.
    """

    SMALL: ClassVar[Mapping[str, Any]] = {"widths": (8, 16, 32, 64), "depths": (2, 2, 2, 2)}

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        depths: Sequence[int] = (2, 2, 3, 3, 3),
        norm: Norm | None = "batch",
    ) -> None:
        super().__init__()
        self.encoder = stages(spatial_dims, in_channels, widths, depths, norm=norm)
        self.pool = max_pool(spatial_dims)(2, ceil_mode=True, return_indices=True)
        # Outermost first too. An inner stage ends as narrow as the next; the outermost ends in the classifier.
        inner = zip(widths[:-1], widths[1:], depths[1:], strict=True)
        self.decoder = nn.ModuleList(
            stage(spatial_dims, chain, norm=norm)
            for chain in ([widths[0]] * depths[0], *([m] * depth + [n] for n, m, depth in inner))
        )
        self.classify = conv(spatial_dims)(widths[0], out_channels, 3, padding=1)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for convolutions in self.encoder:
            x = convolutions(x)
            size = x.shape[2:]
            x, where = self.pool(x)
            kept.append((where, size))
        for convolutions, (where, size) in zip(reversed(self.decoder), reversed(kept), strict=True):
            x = convolutions(unpool(x, where, size))
        logits: Tensor = self.classify(x)
        return logits

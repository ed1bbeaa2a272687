"""The residual network that PSPNet and DeepLab see through, with strides traded for dilation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor, nn

from medseg.errors import UsageError
from medseg.networks.layers import Norm, activate, conv, max_pool, normalise

# output stride -> for layer1 to layer4: stride, dilation of the first block, dilation of the others. A first block
# that no longer strides still reads the grid of the layer before, and so with that layer's dilation.
GRIDS: Final = {
    32: ((1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)),
    16: ((1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2)),
    8: ((1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)),
    4: ((1, 1, 1), (1, 1, 2), (1, 2, 4), (1, 4, 8)),
}


class ResNet(nn.Module):
    """ResNet-50 without its classifier: (B, C, *S) -> (B, 4w, *ceil(S / 4)), (B, 32w, *ceil(S / output_stride)).

    The first is what layer1 sees (fine), the second what layer4 sees (deep). Where the next stride would pass
    `output_stride` the layer keeps the size and spreads its kernels instead, so that it computes what the strided
    network computes, at every place and not at every second one.

    He, Zhang, Ren, Sun: Deep residual learning, CVPR 2016, arXiv:1512.03385; stride on the 3-wide convolution, and
    parameter names, as in torchvision, so that its weights load. Dilation: Yu, Koltun, Funkhouser: Dilated residual
    networks, CVPR 2017, arXiv:1705.09914.

    blocks: bottlenecks per layer: (3, 4, 6, 3) is ResNet-50, (3, 4, 23, 3) ResNet-101. width: w, of the stem.
    Raises UsageError for an output stride other than 4, 8, 16 or 32, or for other dimensions.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        blocks: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        output_stride: int = 8,
        norm: Norm | None = "batch",
    ) -> None:
        super().__init__()
        if output_stride not in GRIDS:
            raise UsageError(f"output_stride is {output_stride}: a ResNet's is 4, 8, 16 or 32")
        if len(blocks) != 4 or min(blocks) < 1:
            raise UsageError(f"blocks are {tuple(blocks)}: a ResNet has 4 layers of at least one block")
        self.fine_channels, self.deep_channels = 4 * width, 32 * width
        self.conv1 = conv(spatial_dims)(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = normalise(spatial_dims, norm, width)
        self.relu = activate("relu")
        self.maxpool = max_pool(spatial_dims)(3, stride=2, padding=1)
        layers, channels = [], width
        for i, (count, (stride, first, rest)) in enumerate(zip(blocks, GRIDS[output_stride], strict=True)):
            narrow = width * 2**i
            layer = nn.Sequential(Bottleneck(spatial_dims, channels, narrow, stride=stride, dilation=first, norm=norm))
            channels = 4 * narrow
            for _ in range(count - 1):
                layer.append(Bottleneck(spatial_dims, channels, narrow, stride=1, dilation=rest, norm=norm))
            layers.append(layer)
        self.layer1, self.layer2, self.layer3, self.layer4 = layers

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        return fine, self.layer4(self.layer3(self.layer2(fine)))


class Bottleneck(nn.Module):
    """Narrow, convolve, widen; add what came in: (B, C, *S) -> (B, 4 * width, *ceil(S / stride))."""

    def __init__(
        self, dims: int, in_channels: int, width: int, *, stride: int, dilation: int, norm: Norm | None
    ) -> None:
        super().__init__()
        convolution, out_channels = conv(dims), 4 * width
        self.conv1 = convolution(in_channels, width, 1, bias=False)
        self.bn1 = normalise(dims, norm, width)
        self.conv2 = convolution(width, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = normalise(dims, norm, width)
        self.conv3 = convolution(width, out_channels, 1, bias=False)
        self.bn3 = normalise(dims, norm, out_channels)
        self.relu = activate("relu")
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                convolution(in_channels, out_channels, 1, stride=stride, bias=False),
                normalise(dims, norm, out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        summed: Tensor = self.relu(y + self.downsample(x))
        return summed

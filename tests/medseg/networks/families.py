"""Every network, tiny: the same structure with few channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from medseg.networks import FCN, DeepLabV3, DeepLabV3Plus, MeshNet, PSPNet, SegNet, UNet2015

VGG = {"widths": (2, 3, 4, 5, 6), "depths": (1, 1, 2, 1, 1), "head": 6, "head_kernel": 3}
RESNET = {"width": 2, "blocks": (1, 1, 2, 1), "head": 4}


@dataclass(frozen=True)
class Family:
    network: Callable[..., nn.Module]
    tiny: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""

    def make(self, dims: int, in_channels: int = 1, out_channels: int = 3) -> nn.Module:
        torch.manual_seed(0)
        return self.network(dims, in_channels, out_channels, **self.tiny)

    def make_small(self, dims: int, in_channels: int = 1, out_channels: int = 2) -> nn.Module:
        torch.manual_seed(0)
        return self.network(dims, in_channels, out_channels, **self.network.SMALL)  # type: ignore[attr-defined]

    def __str__(self) -> str:
        return " ".join(filter(None, (self.network.__name__, self.remark)))


FAMILIES = (
    Family(FCN, VGG),
    Family(SegNet, {"widths": (2, 3, 4), "depths": (1, 2, 2)}),
    Family(UNet2015, {"widths": (2, 3, 4)}),
    Family(PSPNet, RESNET),
    Family(DeepLabV3, RESNET | {"rates": (1, 2, 3)}),
    Family(DeepLabV3Plus, RESNET | {"rates": (1, 2, 3), "fine": 3}),
    Family(MeshNet, {"channels": 3, "dilations": (1, 2, 4)}),
)
VARIANTS = (
    Family(FCN, VGG | {"stride": 16}, "16s"),
    Family(FCN, VGG | {"stride": 32}, "32s"),
    Family(DeepLabV3, RESNET | {"rates": (1, 2, 3), "output_stride": 8}, "stride 8"),
    Family(DeepLabV3Plus, RESNET | {"separable": False, "norm": "group"}, "plain, group norm"),
    Family(PSPNet, RESNET | {"norm": "instance", "output_stride": 16}, "instance norm, stride 16"),
    Family(UNet2015, {"widths": (2, 3, 4), "norm": "group"}, "group norm"),
    Family(MeshNet, {"channels": 3, "dilations": (2, 1), "activation": "gelu", "norm": "instance"}, "as mindgrab"),
)

every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)
every_variant = pytest.mark.parametrize("family", FAMILIES + VARIANTS, ids=str)
both_dims = pytest.mark.parametrize("dims", [2, 3])


def count(make: Callable[[], nn.Module]) -> int:
    """Learned parameters, counted without memory for one of them."""
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())

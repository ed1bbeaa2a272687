"""Convolutions of two things side by side as the sum of one of each, where that takes less memory.

nnU-Net's decoder puts what it enlarged beside what a stage skipped, and convolves both: at full size, that is the most
that is ever held. A convolution of both is the sum of two, up to the order of additions; that of what was skipped can
be had before there is the rest, and the other is added to it in place.

    enlarged, skipped, both of them beside each other      ->      one of each at a time, and their sum
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from medseg.networks.nnunet_layers import Blocks, UNetDecoder


class SummedDecoder(nn.Module):
    """Computes what a decoder of nnU-Net does, up to the order of additions."""

    def __init__(self, of: UNetDecoder) -> None:
        super().__init__()
        self.enlarge = of.transpconvs
        stages = [stage for stage in of.stages if isinstance(stage, Blocks)]
        self.parts = nn.ModuleList(_Summed(stage.first.conv) for stage in stages)
        rests = (
            nn.Sequential(*stage.first.all_modules[1:].children(), *stage.convs[1:].children()) for stage in stages
        )
        self.rest = nn.ModuleList(rests)
        self.classify = of.seg_layers[-1]

    def forward(self, kept: list[Tensor]) -> Tensor:
        x = kept[-1]
        for enlarge, part, rest, skip in zip(self.enlarge, self.parts, self.rest, reversed(kept[:-1]), strict=True):
            x = rest(part(enlarge(x), skip))
        logits: Tensor = self.classify(x)
        return logits


class _Summed(nn.Module):
    """A convolution of two inputs beside each other, of equally many channels."""

    def __init__(self, of: nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        self.of_skip, self.of_rest = (_of_half(of, number) for number in (1, 0))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        both: Tensor = self.of_rest(x) + self.of_skip(skip)
        return both


def _of_half(of: nn.Conv2d | nn.Conv3d, number: int) -> nn.Conv2d | nn.Conv3d:
    """The convolution of one half of the channels; the second adds the bias."""
    half = of.in_channels // 2
    made = copy.copy(of)
    made._parameters = dict(of._parameters)
    made.in_channels = half
    weight = of.weight.detach()[:, number * half : (number + 1) * half].clone()
    made.weight = nn.Parameter(weight, requires_grad=False)
    if not number:
        made.bias = None
    return made


def in_sums(network: nn.Module) -> nn.Module:
    """The network, with decoders of nnU-Net replaced. It is changed."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is UNetDecoder:
                setattr(parent, name, SummedDecoder(child).train(child.training))
    return network

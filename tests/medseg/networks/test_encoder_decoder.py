from __future__ import annotations

import torch
from torch import nn

from medseg.networks import SegNet
from tests.medseg.networks.families import both_dims, count


def test_parameters_of_the_paper() -> None:
    assert count(lambda: SegNet(2, 3, 21)) == 29_455_125
    assert count(lambda: SegNet(2, 3, 12)) == 29_449_932


def test_the_encoder_is_vggs_and_the_decoder_mirrors_it() -> None:
    with torch.device("meta"):
        net = SegNet(2, 3, 21)

    def widths(part: nn.Module) -> list[int]:
        return [module.out_channels for module in part.modules() if isinstance(module, nn.Conv2d)]

    assert widths(net.encoder) == [64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    inwards = [widths(stage) for stage in net.decoder]
    assert inwards == [[64], [128, 64], [256, 256, 128], [512, 512, 256], [512, 512, 512]]
    encoder = [m for m in net.encoder.modules() if isinstance(m, nn.Conv2d)]
    assert sum(p.numel() for m in encoder for p in m.parameters()) == 14_714_688  # VGG16's convolutions


@both_dims
def test_the_decoder_puts_values_where_the_encoders_maxima_stood(dims: int) -> None:
    net = SegNet(dims, 1, 2, widths=(2, 3), depths=(1, 1)).eval()
    before: list[torch.Tensor] = []
    after: list[torch.Tensor] = []
    for stage in net.encoder:
        stage.register_forward_hook(lambda _, __, out: before.append(out))
    for stage in net.decoder:
        stage.register_forward_pre_hook(lambda _, args: after.append(args[0]))
    with torch.no_grad():
        net(torch.rand(1, 1, *(9, 7, 5)[:dims]))
    for features, sparse in zip(before, reversed(after), strict=True):
        assert features.shape == sparse.shape
        _, where = net.pool(features)
        maxima = torch.zeros_like(features).flatten(2).scatter(2, where.flatten(2), 1).bool()
        assert not sparse.flatten(2)[~maxima].any()
        assert sparse.flatten(2)[maxima].any()

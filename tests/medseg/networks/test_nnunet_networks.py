"""nnU-Net's networks: the names that its checkpoints have, gradients, export, and arguments that contradict."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medseg.errors import UsageError
from medseg.networks import PlainConvUNet, ResidualEncoderUNet
from tests.medseg.networks.families import both_dims

PLAIN = (PlainConvUNet, {"convs": [1, 1, 1]})
RESIDUAL = (ResidualEncoderUNet, {"blocks": [1, 2, 1]})
either = pytest.mark.parametrize("kind", [PLAIN, RESIDUAL], ids=["plain", "residual"])


def make(kind: Any, dims: int = 3, **changes: Any) -> torch.nn.Module:
    network, depths = kind
    sizes = {"kernels": [[3] * dims] * 3, "strides": [[1] * dims, [2] * dims, [2] * dims]}
    arguments: dict[str, Any] = {"widths": [4, 6, 8], **sizes, **depths, "convs_up": [1, 1], **changes}
    made: torch.nn.Module = network(dims, 2, 3, **arguments)
    return made


def test_a_tensor_has_all_the_names_that_a_checkpoint_has_for_it() -> None:
    state = make(PLAIN).state_dict()
    assert (len(state), len({held.data_ptr() for held in state.values()})) == (72, 28)
    twice = ("encoder.stages.1.0.convs.0", "decoder.encoder.stages.1.0.convs.0")
    same = [state[f"{name}.{way}.weight"] for name in twice for way in ("conv", "all_modules.0")]
    assert len({held.data_ptr() for held in same}) == 1
    assert {"decoder.transpconvs.0.bias", "decoder.seg_layers.1.weight", "decoder.stages.0.convs.0.norm.bias"} < {
        *state
    }


def test_a_residual_encoder_has_a_stem_and_skips() -> None:
    state = make(RESIDUAL).state_dict()
    assert "encoder.stem.convs.0.conv.weight" in state
    assert "encoder.stages.1.blocks.0.skip.1.conv.weight" in state  # behind the pool
    assert "encoder.stages.1.blocks.0.skip.1.conv.bias" not in state
    assert not [name for name in state if name.startswith("encoder.stages.1.blocks.1.skip")]


@either
@both_dims
def test_gradients_are_finite_and_the_outermost_layer_alone_classifies(kind: Any, dims: int) -> None:
    network = make(kind, dims)
    scores = network(torch.randn(2, 2, *[8] * dims))
    assert scores.shape == (2, 3, *[8] * dims)
    scores.square().mean().backward()
    without = {name for name, held in network.named_parameters() if held.grad is None}
    assert without == {"decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"}
    assert all(bool(held.grad.isfinite().all()) for held in network.parameters() if held.grad is not None)


@either
def test_an_exported_network_gives_the_same(kind: Any) -> None:
    network, window = make(kind).eval(), torch.randn(1, 2, 8, 8, 8)
    with torch.inference_mode():
        exported = torch.export.export(network, (window,)).module()
        assert torch.allclose(exported(window), network(window), atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"widths": [4, 6]},
        {"strides": [[1, 1, 1], [2, 2, 2]]},
        {"kernels": [[3, 3], [3, 3], [3, 3]]},
        {"convs_up": [1, 1, 1]},
        {"norm": "layer"},
    ],
)
def test_arguments_that_contradict_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        make(PLAIN, **changes)

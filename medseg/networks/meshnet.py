"""A short stack of dilated convolutions at full resolution: a brain segmented with a few thousand weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Final

from torch import Tensor, nn

from medseg.errors import UsageError
from medseg.networks.layers import Activation, Norm, activate, conv, initialise, normalise


class MeshNet(nn.Module):
    """MeshNet: (B, C, *S) -> (B, K, *S), any S.

    No pooling and no skips: kernels spread wider and wider until a voxel has seen its surroundings, and every feature
    map stays at full resolution. Few weights, much memory.
    Fedorov et al.: End-to-end learning of brain tissue segmentation from imperfect labeling, IJCNN 2017,
    arXiv:1612.00940 (the defaults).

    spatial_dims: 2 or 3. in_channels, out_channels: C and K.
    channels: of every hidden layer. dilations: one 3-wide convolution each; a single-voxel one classifies.
    activation: relu, elu or gelu. norm: of hidden layers, before their activation. bias: of hidden convolutions.
    Parameters are named as brainchop's: `layers.{i}.weight`, `layers.{i}.bias`; `arguments` reads its descriptions.
    Raises UsageError for other dimensions, norms or activations.
    """

    SMALL: ClassVar[Mapping[str, Any]] = {"channels": 10, "dilations": (1, 2, 4, 8, 4, 2, 1)}

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        channels: int = 21,
        dilations: Sequence[int] = (1, 1, 2, 4, 8, 16, 1),
        activation: Activation = "relu",
        norm: Norm | None = "batch",
        bias: bool = True,
    ) -> None:
        super().__init__()
        convolution = conv(spatial_dims)
        widths = pairwise((in_channels, *[channels] * len(dilations)))
        self.layers = nn.ModuleList(
            convolution(n, m, 3, padding=dilation, dilation=dilation, bias=bias)
            for (n, m), dilation in zip(widths, dilations, strict=True)
        )
        self.layers.append(convolution(channels, out_channels, 1))
        self.norms = nn.ModuleList(normalise(spatial_dims, norm, channels) for _ in dilations)
        self.activation = activate(activation)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        *hidden, classify = self.layers
        for convolution, norm in zip(hidden, self.norms, strict=True):
            x = self.activation(norm(convolution(x)))
        logits: Tensor = classify(x)
        return logits


NORMS: Final[dict[str | None, Norm | None]] = {None: None, "GroupNorm(C,C,affine=False)": "instance"}


def arguments(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the `MeshNet` that a description of brainchop's means, as in a bundle's `network_def`.

    architecture: its JSON: `layers` (a list of `in_channels, out_channels, kernel_size, dilation, padding, bias`),
    `activation`, `norm_layer`. Raises UsageError where what it describes is not a `MeshNet`.
    """
    try:
        layers, norm = architecture["layers"], NORMS[architecture["norm_layer"]]
        first, last = layers[0], layers[-1]
        found = {
            "spatial_dims": 3,
            "in_channels": first["in_channels"],
            "out_channels": last["out_channels"],
            "channels": first["out_channels"],
            "dilations": [layer["dilation"] for layer in layers[:-1]],
            "activation": architecture["activation"],
            "norm": norm,
            "bias": first["bias"],
        }
    except (LookupError, TypeError) as error:
        raise UsageError(f"not the description of a MeshNet: {error!r}") from error
    for i, (given, expected) in enumerate(zip(layers, _described(found), strict=True)):
        wrong = {key: given.get(key) for key, value in expected.items() if given.get(key) != value}
        if wrong:
            raise UsageError(f"layer {i} has {wrong}: a MeshNet's has { ({key: expected[key] for key in wrong}) }")
    return found


def _described(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The layers that a MeshNet of these arguments has, in the words of its description."""
    channels, dilations = found["channels"], found["dilations"]
    hidden = [
        {
            "in_channels": n,
            "out_channels": channels,
            "kernel_size": 3,
            "padding": dilation,
            "dilation": dilation,
            "bias": found["bias"],
        }
        for n, dilation in zip([found["in_channels"]] + [channels] * len(dilations), dilations, strict=False)
    ]
    return [*hidden, {"in_channels": channels, "kernel_size": 1, "padding": 0, "dilation": 1, "bias": True}]

"""Weights that a training goes on from: those of an earlier version, or of a network that sees fewer channels."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from medseg.bundle.bundle import Bundle
from medseg.errors import UsageError
from medseg.training.plan import CONFIG


class WrongStart(UsageError):
    """Not the weights that the bundle's plan starts from."""

    code = "wrong_start"

    def __init__(self, bundle: str, why: str) -> None:
        super().__init__(f"bundle {bundle}: {CONFIG}.start: {why}")


def started(network: nn.Module, bundle: Bundle, wanted: str | None, file: Path | None) -> nn.Module:
    """The network with the tensors of `file`, whose SHA-256 is `wanted`; as it is where neither is given.

    A network that looks at several images where the weights know one takes them for its reference channel, and
    begins with nothing of the others. Raises WrongStart.
    """
    if wanted is None and file is None:
        return network
    if wanted is None:
        raise WrongStart(bundle.name, f"names no weights, and {file} was given: the training starts by chance")
    if file is None:
        raise WrongStart(bundle.name, f"expected weights of SHA-256 {wanted}, none were given")
    content = file.read_bytes() if file.is_file() else b""
    digest = hashlib.sha256(content).hexdigest()
    if digest != wanted:
        raise WrongStart(bundle.name, f"expected weights of SHA-256 {wanted}, found {digest if content else 'no file'}")
    images = len(bundle.channels.each) if bundle.channels else 1
    known = bundle.channels.names.index(bundle.channels.reference) if bundle.channels else 0
    try:
        weights = load(content)
        layers = network.state_dict()
        network.load_state_dict({name: widened(value, layers[name], images, known) for name, value in weights.items()})
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise WrongStart(bundle.name, f"{file.name} is not of this network: {error}") from error
    return network


def widened(weights: Tensor, like: Tensor, images: int, known: int) -> Tensor:
    """Of a layer that sees `images` times as many channels: what it knows of each image `known`, 0 of the others.

    Channels are all images of the first slice, then of the next: see `SliceStackInferer`.
    """
    if weights.shape == like.shape or like.dim() < 2 or images * weights.shape[1] != like.shape[1]:
        return weights
    wide = torch.zeros_like(like)
    wide[:, known::images] = weights
    return wide
